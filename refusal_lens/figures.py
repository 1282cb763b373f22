"""From a run folder to its figures, by name.

Knows which of a run's files each figure needs. Draws nothing and computes nothing itself.
"""

from collections.abc import Callable

import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.artifacts import RunFolder
from refusal_lens.errors import RefusalLensError
from refusal_lens.selection import choose_best
from refusal_lens.validation import Separation

Draw = Callable[[RunFolder, str], go.Figure]


def draw(run_folder: RunFolder, name: str, template: str = "plotly_white") -> go.Figure:
    """Draw one figure of a run.

    Args:
        run_folder: The run.
        name: A key of `FIGURES`.
        template: Name of a plotly template.

    Raises:
        RefusalLensError: There is no such figure, or the stage it needs has not run.
    """
    if name not in FIGURES:
        raise RefusalLensError(f"There is no figure {name!r}. There are: {', '.join(FIGURES)}.")
    return FIGURES[name](run_folder, template)


def _separation(run_folder: RunFolder) -> Separation:
    n_folds = run_folder.read_config().validation.n_folds
    return Separation.from_frame(run_folder.read_separation(), n_folds)


def _projection_histogram(run_folder: RunFolder, template: str) -> go.Figure:
    separation = _separation(run_folder)
    best = choose_best(separation, run_folder.read_provenance()["model"]["n_layers"])
    return plots.projection_histogram(
        run_folder.read_projections(),
        separation,
        run_folder.read_prompts().prompts,
        initial=(best.hook_point, best.position) if best else None,
        template=template,
    )


def _layer_profile(run_folder: RunFolder, template: str) -> go.Figure:
    separation = _separation(run_folder)
    best = choose_best(separation, run_folder.read_provenance()["model"]["n_layers"])
    return plots.layer_profile(separation, best=best, template=template)


FIGURES: dict[str, Draw] = {
    "projection_histogram": _projection_histogram,
    "layer_profile": _layer_profile,
}
