"""Texts in, token ids out."""
