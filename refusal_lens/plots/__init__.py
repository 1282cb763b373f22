"""Numbers in, plotly figures out.

Figures never show, save or compute statistics: bins and scores come from `validation`.
"""

from refusal_lens.plots.comparison import (
    SCORE_NAMES,
    cosine_heatmap,
    place_heatmap,
    transfer_matrix,
)
from refusal_lens.plots.histogram import projection_histogram
from refusal_lens.plots.profile import layer_profile
from refusal_lens.plots.style import HARMFUL_COLOUR, HARMLESS_COLOUR

__all__ = [
    "HARMFUL_COLOUR",
    "HARMLESS_COLOUR",
    "SCORE_NAMES",
    "cosine_heatmap",
    "layer_profile",
    "place_heatmap",
    "projection_histogram",
    "transfer_matrix",
]
