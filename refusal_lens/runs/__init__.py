"""One run on disk, and what can be read off it."""
