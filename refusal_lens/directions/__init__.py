"""One vector a place, and other projects' files of them."""
