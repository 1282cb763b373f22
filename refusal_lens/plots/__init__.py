"""Numbers in, plotly figures out.

Figures never show, save or compute statistics: bins, densities and scores come from
`validation`, the rest as tables of a run.
"""

from refusal_lens.plots.attribution import head_attribution, prompt_tokens, unembedding
from refusal_lens.plots.behaviour import quadrants, refusal_bars, refusal_by_length, side_effects
from refusal_lens.plots.breakdown import category_breakdown, misread_prompts
from refusal_lens.plots.causal import causal_scores, dose_response
from refusal_lens.plots.choices import confounds, method_comparison, nested_choice
from refusal_lens.plots.comparison import (
    SCORE_NAMES,
    cosine_heatmap,
    place_heatmap,
    transfer_matrix,
)
from refusal_lens.plots.curves import (
    clip_sweep,
    coordinate_shares,
    depth_curves,
    learning_curve,
    roc_curve,
    stability,
)
from refusal_lens.plots.histogram import projection_histogram
from refusal_lens.plots.profile import layer_profile
from refusal_lens.plots.shapes import (
    Panel,
    activation_plane,
    direction_components,
    directions_side_by_side,
    embedding,
    ridgeline,
)
from refusal_lens.plots.style import DARK, HARMFUL_COLOUR, HARMLESS_COLOUR, LIGHT, named

__all__ = [
    "DARK",
    "HARMFUL_COLOUR",
    "HARMLESS_COLOUR",
    "LIGHT",
    "Panel",
    "SCORE_NAMES",
    "activation_plane",
    "category_breakdown",
    "causal_scores",
    "clip_sweep",
    "confounds",
    "coordinate_shares",
    "cosine_heatmap",
    "depth_curves",
    "direction_components",
    "directions_side_by_side",
    "dose_response",
    "embedding",
    "head_attribution",
    "layer_profile",
    "learning_curve",
    "method_comparison",
    "misread_prompts",
    "named",
    "nested_choice",
    "place_heatmap",
    "projection_histogram",
    "prompt_tokens",
    "quadrants",
    "refusal_bars",
    "refusal_by_length",
    "ridgeline",
    "roc_curve",
    "side_effects",
    "stability",
    "transfer_matrix",
    "unembedding",
]
