"""How far a direction can be believed. No model runs here."""
