"""From a run folder to its figures, by name.

Knows which of a run's files each figure needs. Draws nothing and computes nothing itself.
"""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.artifacts import RunFolder
from refusal_lens.comparison import rows_where, square_cosines
from refusal_lens.errors import RefusalLensError
from refusal_lens.hook_points import site_of
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


def _place_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    return plots.place_heatmap(run_folder.read_separation(), "separation", template=template)


def _cosine_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    """Draw the layers at the best place's site and position."""
    cosines = _table(run_folder, "cosines")
    best = run_folder.read_directions().provenance.get("best") or {}
    site = site_of(best.get("hook_point") or str(cosines["a"].iloc[0]))
    position = best.get("position") or str(cosines["position"].iloc[0])
    layers = rows_where(cosines, kind="layers", position=position)
    table = rows_where(layers.assign(site=[site_of(name) for name in layers["a"]]), site=site)
    return plots.cosine_heatmap(*square_cosines(table), template=template)


def _transfer_matrix(run_folder: RunFolder, template: str) -> go.Figure:
    return plots.transfer_matrix(_table(run_folder, "transfer"), template=template)


def _table(run_folder: RunFolder, name: str) -> pd.DataFrame:
    table = run_folder.read_table(name)
    if table is None or table.empty:
        raise RefusalLensError(
            f"{run_folder.path} has no tables/{name}.csv, or nothing in it. Run the stage that "
            f"writes it first: refusal-lens fit {run_folder.path}."
        )
    return table


FIGURES: dict[str, Draw] = {
    "place_heatmap": _place_heatmap,
    "cosine_heatmap": _cosine_heatmap,
    "transfer_matrix": _transfer_matrix,
    "projection_histogram": _projection_histogram,
    "layer_profile": _layer_profile,
}
