"""From a run folder to its figures, by name.

Knows which of a run's files each figure needs. Draws nothing and computes nothing itself.
"""

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.models.hook_points import site_of
from refusal_lens.plots.tables import where
from refusal_lens.plots.text import place_name
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation import densities
from refusal_lens.validation.best_place import Choice, choose_best
from refusal_lens.validation.cosines import square_cosines
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.separation import Separation

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
    missing = _missing(run_folder, name)
    if missing:
        raise RefusalLensError(
            f"Figure {name} needs {', '.join(missing)}, which {run_folder.path} does not have. "
            f"Run first: refusal-lens {_STAGES.get(missing[0], 'fit')} {run_folder.path}"
        )
    return FIGURES[name](run_folder, template)


def available(run_folder: RunFolder) -> list[str]:
    """List the figures whose files this run has, in the order of `FIGURES`."""
    return [name for name in FIGURES if not _missing(run_folder, name)]


def _missing(run_folder: RunFolder, name: str) -> list[str]:
    return [file for file in NEEDS[name] if not (run_folder.path / file).is_file()]


def _table(run_folder: RunFolder, name: str) -> pd.DataFrame:
    table = run_folder.read_table(name)
    assert table is not None, "draw has seen that the file is there"
    if "position" in table:
        # A column of positions -1, -2 alone would be read as numbers.
        table["position"] = table["position"].astype(str)
    return table


def _separation(run_folder: RunFolder) -> Separation:
    n_folds = run_folder.read_config().validation.n_folds
    return Separation.from_frame(run_folder.read_separation(), n_folds)


def _n_layers(run_folder: RunFolder) -> int:
    return run_folder.read_provenance()["model"]["n_layers"]


def _best(run_folder: RunFolder) -> Choice | None:
    return choose_best(_separation(run_folder), _n_layers(run_folder))


def _best_place(run_folder: RunFolder) -> tuple[str, str]:
    """Return the best place, or refuse where there is no direction anywhere."""
    best = _best(run_folder)
    if best is None:
        raise RefusalLensError(
            f"{run_folder.path} has no direction anywhere, so there is nothing to draw. Read its "
            "diagnosis: refusal-lens fit says what is wrong with the prompts or the places."
        )
    return best.hook_point, best.position


def _at_best(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place; of the table's first place where it lacks that one."""
    best = _best_place(run_folder)
    places = list(zip(table["hook_point"], table["position"], strict=True))
    if not places:
        return table
    place = best if best in places else places[0]
    return where(table, [other == place for other in places])


def _at_best_column(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place's site and position, all layers."""
    hook_point, position = _best_place(run_folder)
    own = where(table, (table["site"] == site_of(hook_point)) & (table["position"] == position))
    return own if len(own) else table


# --- figures of scores and projections ---------------------------------------------------------


def _projection_histogram(run_folder: RunFolder, template: str) -> go.Figure:
    best = _best(run_folder)
    return plots.projection_histogram(
        run_folder.read_projections(),
        _separation(run_folder),
        run_folder.read_prompts().prompts,
        nulls=run_folder.read_table("nulls"),
        initial=(best.hook_point, best.position) if best else None,
        template=template,
    )


def _ridgeline(run_folder: RunFolder, template: str) -> go.Figure:
    projections = run_folder.read_projections()
    hook_point, position = _best_place(run_folder)
    columns = sorted(
        _separation(run_folder).columns,
        key=lambda column: column != (site_of(hook_point), position),
    )
    return plots.ridgeline(
        [
            densities.ridges(
                projections,
                tuple(name for name in projections.hook_points if site_of(name) == site),
                position,
            )
            for site, position in columns
        ],
        template=template,
    )  # fmt: skip


def _layer_profile(run_folder: RunFolder, template: str) -> go.Figure:
    return plots.layer_profile(
        run_folder.read_separation(),
        nulls=run_folder.read_table("nulls"),
        best=_best(run_folder),
        template=template,
    )


def _transfer_matrix(run_folder: RunFolder, template: str) -> go.Figure:
    title = "AUROC of one category along another's direction"
    return plots.transfer_matrix(_table(run_folder, "transfer"), title=title, template=template)


def _activation_plane(run_folder: RunFolder, template: str) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    activations = run_folder.read_activations([hook_point])
    unit = run_folder.read_directions()[hook_point, position].unit
    return plots.activation_plane(
        densities.activation_plane(activations.at(hook_point, position), unit),
        activations.is_harmful,
        run_folder.read_prompts().prompts,
        place=place_name(hook_point, position),
        template=template,
    )


def _direction_components(run_folder: RunFolder, template: str) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    direction = run_folder.read_directions()[hook_point, position]
    return plots.direction_components(
        densities.top_coordinates(direction),
        place=place_name(hook_point, position),
        template=template,
    )


# --- figures of tables -------------------------------------------------------------------------


def _whole_table(name: str, plot: Callable[..., go.Figure]) -> Draw:
    """Return a drawer of a table as it is."""
    return lambda run_folder, template: plot(_table(run_folder, name), template=template)


def _table_at_best(name: str, plot: Callable[..., go.Figure]) -> Draw:
    """Return a drawer of a table's rows at the best place."""
    return lambda run_folder, template: plot(
        _at_best(run_folder, _table(run_folder, name)), template=template
    )


def _table_at_best_column(name: str, plot: Callable[..., go.Figure]) -> Draw:
    """Return a drawer of a table's rows at the best place's site and position."""
    return lambda run_folder, template: plot(
        _at_best_column(run_folder, _table(run_folder, name)), template=template
    )


def _causal_scores(run_folder: RunFolder, template: str) -> go.Figure:
    table = _table(run_folder, "causal_scores")
    rule = CausalRule(run_folder.read_config().causal.max_layer_share)
    n_layers = _n_layers(run_folder)
    late = [
        int(layer)
        for layer, hook_point in zip(table["layer"], table["hook_point"], strict=True)
        if rule.is_late(hook_point, n_layers)
    ]
    n_kept_layers = min(late, default=None)
    return plots.causal_scores(table, n_kept_layers=n_kept_layers, template=template)


def _place_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    _best_place(run_folder)  # refuses where there is nothing anywhere
    title = "Separation of every place"
    table = run_folder.read_separation()
    return plots.place_heatmap(table, "separation", title=title, template=template)


def _cosine_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    """Draw the layers at the best place's site and position."""
    cosines = _table(run_folder, "cosines")
    best = run_folder.read_directions().provenance.get("best") or {}
    site = site_of(best.get("hook_point") or str(cosines["a"].iloc[0]))
    position = best.get("position") or str(cosines["position"].iloc[0])
    layers = rows_where(cosines, kind="layers", position=position)
    table = rows_where(layers.assign(site=[site_of(name) for name in layers["a"]]), site=site)
    title = f"Cosines between layers: {site}, position {position}"
    return plots.cosine_heatmap(*square_cosines(table), title=title, template=template)


def _learning_curve(run_folder: RunFolder, template: str) -> go.Figure:
    best = _best(run_folder)
    place = (best.hook_point, best.position) if best else None
    return plots.learning_curve(_table(run_folder, "learning_curve"), place, template=template)


FIGURES: dict[str, Draw] = {
    "projection_histogram": _projection_histogram,
    "ridgeline": _ridgeline,
    "layer_profile": _layer_profile,
    "place_heatmap": _place_heatmap,
    "cosine_heatmap": _cosine_heatmap,
    "activation_plane": _activation_plane,
    "category_breakdown": _table_at_best("categories", plots.category_breakdown),
    "transfer_matrix": _transfer_matrix,
    "misread_prompts": _table_at_best("misread", plots.misread_prompts),
    "stability": _whole_table("stability", plots.stability),
    "learning_curve": _learning_curve,
    "nested_choice": _whole_table("nested_choice", plots.nested_choice),
    "confounds": _whole_table("confounds", plots.confounds),
    "method_comparison": _table_at_best_column("methods", plots.method_comparison),
    "direction_components": _direction_components,
    "coordinate_shares": _table_at_best_column("coordinates", plots.coordinate_shares),
    "clip_sweep": _whole_table("clip_sweep", plots.clip_sweep),
    "causal_scores": _causal_scores,
    "dose_response": _whole_table("dose_response", plots.dose_response),
    "head_attribution": _table_at_best("attribution", plots.head_attribution),
    "unembedding": _table_at_best("unembedding", plots.unembedding),
    "prompt_tokens": _whole_table("prompt_tokens", plots.prompt_tokens),
}
"""Every figure of a run, in the order a reader wants them."""

_FIT = ("separation.csv", "provenance.json")

NEEDS: dict[str, tuple[str, ...]] = {
    "projection_histogram": ("projections.safetensors", "prompts.json", *_FIT),
    "ridgeline": ("projections.safetensors", *_FIT),
    "layer_profile": _FIT,
    "place_heatmap": _FIT,
    "cosine_heatmap": ("tables/cosines.csv", "directions.safetensors"),
    "activation_plane": (
        "directions.safetensors", "activations/manifest.json", "prompts.json", *_FIT,
    ),
    "category_breakdown": ("tables/categories.csv", *_FIT),
    "transfer_matrix": ("tables/transfer.csv",),
    "misread_prompts": ("tables/misread.csv", *_FIT),
    "stability": ("tables/stability.csv",),
    "learning_curve": ("tables/learning_curve.csv", *_FIT),
    "nested_choice": ("tables/nested_choice.csv",),
    "confounds": ("tables/confounds.csv",),
    "method_comparison": ("tables/methods.csv", *_FIT),
    "direction_components": ("directions.safetensors", *_FIT),
    "coordinate_shares": ("tables/coordinates.csv", *_FIT),
    "clip_sweep": ("tables/clip_sweep.csv",),
    "causal_scores": ("tables/causal_scores.csv", "provenance.json"),
    "dose_response": ("tables/dose_response.csv",),
    "head_attribution": ("tables/attribution.csv", *_FIT),
    "unembedding": ("tables/unembedding.csv", *_FIT),
    "prompt_tokens": ("tables/prompt_tokens.csv",),
}  # fmt: skip
"""The files of the run folder that each figure reads."""

_STAGES = {
    "tables/causal_scores.csv": "select",
    "tables/dose_response.csv": "ablate",
    "tables/attribution.csv": "attribute",
    "tables/unembedding.csv": "attribute",
    "tables/prompt_tokens.csv": "attribute",
}
"""The stage that writes a file, where it is not `fit`."""
