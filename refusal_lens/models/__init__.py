"""A chat model with its hooks, and fast ways through it."""
