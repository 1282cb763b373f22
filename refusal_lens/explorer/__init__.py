"""A page to look at stored activations by hand: place after place, prompt by prompt.

Reads run folders and never writes them. What figures look like is known in `plots`.
"""

from refusal_lens.explorer.server import build_app, open_server

__all__ = ["build_app", "open_server"]
