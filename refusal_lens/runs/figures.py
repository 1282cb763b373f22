"""From a run folder to its figures, by name: one record a figure.

Knows which of a run's files each figure needs and what a reader is told about it. Does not know how
a figure looks, and computes nothing itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.models.hook_points import site_of
from refusal_lens.plots.parts import ways_to_split
from refusal_lens.plots.text import place_name
from refusal_lens.runs.folder import RunFolder, best_or_refuse
from refusal_lens.validation import densities
from refusal_lens.validation.cosines import square_cosines
from refusal_lens.validation.frames import rows_that, rows_where

Draw = Callable[[RunFolder, str], go.Figure]
"""Takes a run and the name of a plotly template."""


@dataclass(frozen=True)
class Figure:
    """One figure of a run."""

    draw: Draw
    """Reads the run and draws; called where every file in `needs` is there."""

    needs: tuple[str, ...]
    """Files of the run folder that it reads."""

    stage: str
    """The command that writes the last of them."""

    title: str
    """Its heading."""

    sentence: str
    """What a reader sees in it, in one sentence."""

    folded: str = ""
    """The heading under which the report folds it; the few that are open have none."""

    extra: str = ""
    """An extra that it needs: it is drawn where it is asked for by name, and nowhere else."""


def draw_figure(
    run_folder: RunFolder | str | Path, name: str, template: str = "plotly_white"
) -> go.Figure:
    """Draw one figure of a run.

    Args:
        run_folder: The run, or where it is.
        name: A key of `FIGURES`.
        template: Name of a plotly template.

    Raises:
        RefusalLensError: There is no such figure, or the stage it needs has not run.
    """
    if not isinstance(run_folder, RunFolder):
        run_folder = RunFolder.open(run_folder)
    if name not in FIGURES:
        raise RefusalLensError(f"There is no figure {name!r}. There are: {', '.join(FIGURES)}.")
    missing = _missing(run_folder, name)
    if missing:
        raise RefusalLensError(
            f"Figure {name} needs {', '.join(missing)}, which {run_folder.path} does not have. "
            f"Run first: refusal-lens {FIGURES[name].stage} {run_folder.path}"
        )
    figure = FIGURES[name].draw(run_folder, template)
    is_by_harm = name in _BY_HARM or run_folder.relabelling() is None
    return figure if is_by_harm else _rename(figure, run_folder)


_OF_PROMPTS = ("hovertext", "customdata", "text")
"""What of a trace holds prompts' own texts, in lists."""

_BY_HARM = ("quadrants", "refusal_by_length")
"""Figures of what prompts are, whatever the directions are fitted by."""


def _rename(figure: go.Figure, run_folder: RunFolder) -> go.Figure:
    """Call the classes by what they are where they are not harmful and harmless prompts."""
    reword = run_folder.read_prompts().reword

    def renamed(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return reword(value)
        if isinstance(value, dict):
            return {name: renamed(each, name) for name, each in value.items()}
        if isinstance(value, (list, tuple)) and key not in _OF_PROMPTS:
            return [renamed(each) for each in value]
        return value

    return go.Figure(renamed(figure.to_plotly_json()))


def available(run_folder: RunFolder) -> list[str]:
    """List the figures whose files this run has, in the order of `FIGURES`, without extras."""
    return [
        name
        for name, figure in FIGURES.items()
        if not figure.extra and not _missing(run_folder, name)
    ]


def _missing(run_folder: RunFolder, name: str) -> list[str]:
    return [file for file in FIGURES[name].needs if not (run_folder.path / file).is_file()]


def _table(run_folder: RunFolder, name: str) -> pd.DataFrame:
    table = run_folder.read_table(name)
    assert table is not None, "draw has seen that the file is there"
    return table


def _best_place(run_folder: RunFolder) -> tuple[str, str]:
    """Return the best place, or refuse where there is no direction anywhere."""
    best = best_or_refuse(run_folder)
    return best.hook_point, best.position


def _at_best(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place; of the table's first place where it lacks that one."""
    best = _best_place(run_folder)
    places = list(zip(table["hook_point"], table["position"], strict=True))
    if not places:
        return table
    place = best if best in places else places[0]
    return rows_that(table, [other == place for other in places])


def _at_best_column(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place's site and position, all layers."""
    hook_point, position = _best_place(run_folder)
    rows = rows_that(
        table, (table["site"] == site_of(hook_point)) & (table["position"] == position)
    )
    return rows if len(rows) else table


# --- figures of scores and projections ---------------------------------------------------------


def _projection_histogram(run_folder: RunFolder, template: str) -> go.Figure:
    best = run_folder.best()
    return plots.projection_histogram(
        run_folder.read_projections(),
        run_folder.separation(),
        run_folder.read_prompts().prompts,
        outcomes=_outcomes(run_folder),
        nulls=run_folder.read_table("nulls"),
        initial=(best.hook_point, best.position) if best else None,
        template=template,
    )


def _outcomes(run_folder: RunFolder) -> list[str] | None:
    """Return what became of every prompt; None where that was not measured, or is its class."""
    refusal = run_folder.read_refusal()
    if refusal is None or run_folder.relabelling() is not None:
        return None
    return [answer.outcome for answer in refusal.answers]


def _ridgeline(run_folder: RunFolder, template: str) -> go.Figure:
    projections = run_folder.read_projections()
    splits = ways_to_split(projections.is_harmful, _outcomes(run_folder))
    hook_point, position = _best_place(run_folder)
    columns = sorted(
        run_folder.separation().columns,
        key=lambda column: column != (site_of(hook_point), position),
    )
    return plots.ridgeline(
        [
            densities.ridges(
                projections,
                tuple(name for name in projections.hook_points if site_of(name) == site),
                position,
                labels=parts.labels,
            )
            for parts in splits
            for site, position in columns
        ],
        [parts.styles for parts in splits for _ in columns],
        template=template,
    )


def _layer_profile(run_folder: RunFolder, template: str) -> go.Figure:
    return plots.layer_profile(
        run_folder.read_separation(),
        nulls=run_folder.read_table("nulls"),
        best=run_folder.best(),
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
    rule = CausalRule.of(run_folder.read_config().causal)
    n_layers = run_folder.read_provenance()["model"]["n_layers"]
    late = [
        int(layer)
        for layer, hook_point in zip(table["layer"], table["hook_point"], strict=True)
        if rule.is_late(hook_point, n_layers)
    ]
    n_kept_layers = min(late, default=None)
    return plots.causal_scores(table, rule=rule, n_kept_layers=n_kept_layers, template=template)


def _place_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    best = {"": _best_place(run_folder)}
    title = "Separation of every place"
    table = run_folder.read_separation()
    return plots.place_heatmap(table, "separation", best=best, title=title, template=template)


def _cosine_heatmap(run_folder: RunFolder, template: str) -> go.Figure:
    """Draw the layers at the best place's site and position."""
    cosines = _table(run_folder, "cosines")
    best = run_folder.best()
    site = site_of(best.hook_point if best else cosines["a"].iloc[0])
    position = best.position if best else cosines["position"].iloc[0]
    layers = rows_where(cosines, kind="layers", position=position)
    table = rows_where(layers.assign(site=[site_of(name) for name in layers["a"]]), site=site)
    title = f"Cosines between layers: {site}, position {position}"
    return plots.cosine_heatmap(*square_cosines(table), title=title, template=template)


def _misread_prompts(run_folder: RunFolder, template: str) -> go.Figure:
    """Draw those of the best place: where it has none, another place's would mislead."""
    hook_point, position = _best_place(run_folder)
    table = rows_where(_table(run_folder, "misread"), hook_point=hook_point, position=position)
    return plots.misread_prompts(table, template=template)


def _roc(run_folder: RunFolder, template: str) -> go.Figure:
    place = _best_place(run_folder)
    table = run_folder.read_separation()
    row = rows_where(table, hook_point=place[0], position=place[1]).iloc[0]
    return plots.roc_curve(
        densities.roc(run_folder.read_projections(), *place),
        (row["auroc"], row["auroc_low"], row["auroc_high"]),
        place=place_name(*place),
        template=template,
    )


def _embedding(run_folder: RunFolder, template: str) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    activations = run_folder.read_activations([hook_point])
    return plots.embedding(
        densities.embedding(activations.at(hook_point, position)),
        activations.is_harmful,
        run_folder.read_prompts().prompts,
        place=place_name(hook_point, position),
        template=template,
    )


def _refusal_by_topic(run_folder: RunFolder, template: str) -> go.Figure:
    report = run_folder.read_refusal()
    assert report is not None, "draw has seen that the file is there"
    return plots.refusal_bars(report.by_topic(), "Refusal by topic", template=template)


def _refusal_by_intervention(run_folder: RunFolder, template: str) -> go.Figure:
    table = run_folder.read_interventions()
    assert table is not None, "draw has seen that the file is there"
    names = [
        f"{intervention}, {direction}"
        for intervention, direction in zip(table["intervention"], table["direction"], strict=True)
    ]
    title = "Refusal under interventions at full strength"
    return plots.refusal_bars(table.assign(name=names), title, template=template)


def _learning_curve(run_folder: RunFolder, template: str) -> go.Figure:
    best = run_folder.best()
    place = (best.hook_point, best.position) if best else None
    return plots.learning_curve(_table(run_folder, "learning_curve"), place, template=template)


_LAYERS, _PROMPTS = "Layers and activations", "Prompts"
_TRUST, _VECTOR = "How far to trust the direction", "The vector itself"
_DOES = "What the model does"
_WRITERS = "What writes and reads the direction"

_FIT = ("separation.csv", "provenance.json")

FIGURES: dict[str, Figure] = {
    "projection_histogram": Figure(
        _projection_histogram,
        ("projections.safetensors", "prompts.json", *_FIT),
        "fit",
        "Projection histogram",
        "Every prompt along the direction of one place, projected on a direction that it did "
        "not help to fit; crosses are misread prompts.",
    ),
    "ridgeline": Figure(
        _ridgeline,
        ("projections.safetensors", *_FIT),
        "fit",
        "All layers at once",
        "Both classes along the direction of each layer: where they part, the direction begins.",
    ),
    "layer_profile": Figure(
        _layer_profile,
        _FIT,
        "fit",
        "Layer profile",
        "Scores over the layers: solid lines are held out, dotted ones in sample, and the room "
        "between them is optimism.",
    ),
    "place_heatmap": Figure(
        _place_heatmap,
        _FIT,
        "fit",
        "All places",
        "Separation of every hook point and position, on prompts that its direction was not "
        "fitted to.",
    ),
    "cosine_heatmap": Figure(
        _cosine_heatmap,
        ("tables/cosines.csv", *_FIT),
        "fit",
        "Cosines between layers",
        "How alike the directions of the layers are, beside the most that noise would leave of "
        "two directions that are the same.",
        folded=_LAYERS,
    ),
    "activation_plane": Figure(
        _activation_plane,
        ("directions.safetensors", "activations/manifest.json", "prompts.json", *_FIT),
        "fit",
        "Activations in a plane",
        "The best direction across, the first principal component of all the rest upwards; both "
        "are fitted to the prompts shown.",
        folded=_LAYERS,
    ),
    "embedding": Figure(
        _embedding,
        ("activations/manifest.json", "prompts.json", *_FIT),
        "fit",
        "Embedding",
        "UMAP of the activations at the best place: who is near whom, in sample.",
        folded=_LAYERS,
        extra="embed",
    ),
    "roc": Figure(
        _roc,
        ("projections.safetensors", *_FIT),
        "fit",
        "ROC",
        "What every threshold at the best place would catch and raise falsely, on prompts that "
        "the direction was not fitted to.",
        folded=_TRUST,
    ),
    "category_breakdown": Figure(
        _table_at_best("categories", plots.category_breakdown),
        ("tables/categories.csv", *_FIT),
        "fit",
        "Categories",
        "How each category lies along the best direction, and how much of it is called harmful.",
    ),
    "transfer_matrix": Figure(
        _transfer_matrix,
        ("tables/transfer.csv",),
        "fit",
        "Transfer between categories",
        "AUROC of each category along the direction of another; never on prompts that it was "
        "fitted to.",
        folded=_PROMPTS,
    ),
    "misread_prompts": Figure(
        _misread_prompts,
        ("tables/misread.csv", *_FIT),
        "fit",
        "Misread prompts",
        "The prompts on the wrong side of the threshold, and how far they are beyond it.",
        folded=_PROMPTS,
    ),
    "stability": Figure(
        _whole_table("stability", plots.stability),
        ("tables/stability.csv",),
        "fit",
        "Stability",
        "How alike the directions of other draws of prompts are: near 1 they hardly turn.",
        folded=_TRUST,
    ),
    "learning_curve": Figure(
        _learning_curve,
        ("tables/learning_curve.csv", *_FIT),
        "fit",
        "Learning curve",
        "By how many degrees the direction turns when it is fitted to so many prompts.",
        folded=_TRUST,
    ),
    "nested_choice": Figure(
        _whole_table("nested_choice", plots.nested_choice),
        ("tables/nested_choice.csv",),
        "fit",
        "Nested choice",
        "Which place was chosen on a part of the prompts, and how it did on the others.",
        folded=_TRUST,
    ),
    "confounds": Figure(
        _whole_table("confounds", plots.confounds),
        ("tables/confounds.csv",),
        "fit",
        "Confounds",
        "How well length, punctuation and words alone tell the classes apart.",
    ),
    "method_comparison": Figure(
        _table_at_best_column("methods", plots.method_comparison),
        ("tables/methods.csv", *_FIT),
        "fit",
        "Ways to fit",
        "Other ways to fit a direction, on the same held-out prompts, at the places where "
        "they were compared.",
        folded=_VECTOR,
    ),
    "direction_components": Figure(
        _direction_components,
        ("directions.safetensors", *_FIT),
        "fit",
        "Components of the direction",
        "Its largest coordinates: where a single one holds most of the length, clip lower.",
        folded=_VECTOR,
    ),
    "coordinate_shares": Figure(
        _table_at_best_column("coordinates", plots.coordinate_shares),
        ("tables/coordinates.csv", *_FIT),
        "fit",
        "Shares of the coordinates",
        "How much of each direction's squared length its largest coordinates hold.",
        folded=_VECTOR,
    ),
    "clip_sweep": Figure(
        _whole_table("clip_sweep", plots.clip_sweep),
        ("tables/clip_sweep.csv",),
        "fit",
        "Clipping",
        "What clipping the direction's largest components does to it.",
        folded=_VECTOR,
    ),
    "refusal_by_length": Figure(
        _whole_table("refusal_by_length", plots.refusal_by_length),
        ("tables/refusal_by_length.csv",),
        "refusal-rate",
        "Refusal by length of answer",
        "Refusal and evasion where the same answers are cut off after so many tokens.",
        folded=_DOES,
    ),
    "refusal_by_topic": Figure(
        _refusal_by_topic,
        ("refusal.json",),
        "refusal-rate",
        "Refusal by topic",
        "How much of each topic the model refuses, harmful topics first, with 95 % intervals.",
        folded=_DOES,
    ),
    "quadrants": Figure(
        _whole_table("quadrants", plots.quadrants),
        ("tables/quadrants.csv",),
        "fit",
        "Harmful and refused",
        "Every prompt between the direction of harm and that of refusal, each fitted with the "
        "other label held fixed, and without the prompt's own fold; borderline ones are in no fit.",
        folded=_DOES,
    ),
    "causal_scores": Figure(
        _causal_scores,
        ("tables/causal_scores.csv", "provenance.json"),
        "select",
        "Causal scores",
        "What ablating and adding each direction does to refusal, with the paper's thresholds.",
    ),
    "dose_response": Figure(
        _whole_table("dose_response", plots.dose_response),
        ("tables/dose_response.csv",),
        "ablate",
        "Dose and response",
        "Refusal over the strength of the intervention, beside random and permuted directions.",
    ),
    "refusal_by_intervention": Figure(
        _refusal_by_intervention,
        ("interventions.csv",),
        "ablate",
        "Refusal under interventions",
        "What is refused with each direction removed or added at full strength, beside controls.",
        folded=_DOES,
    ),
    "side_effects": Figure(
        _whole_table("side_effects", plots.side_effects),
        ("tables/side_effects.csv",),
        "ablate",
        "Effect against cost",
        "What each strength does to refusal against how much it changes answers that should stay "
        "as they are, beside random directions.",
        folded=_DOES,
    ),
    "head_attribution": Figure(
        _table_at_best("attribution", plots.head_attribution),
        ("tables/attribution.csv", *_FIT),
        "attribute",
        "What writes the direction",
        "How much each head and MLP adds to the class difference along the direction.",
        folded=_WRITERS,
    ),
    "unembedding": Figure(
        _table_at_best("unembedding", plots.unembedding),
        ("tables/unembedding.csv", *_FIT),
        "attribute",
        "Through the unembedding",
        "The tokens that the direction speaks for and against.",
        folded=_WRITERS,
    ),
    "prompt_tokens": Figure(
        _whole_table("prompt_tokens", plots.prompt_tokens),
        ("tables/prompt_tokens.csv",),
        "attribute",
        "Tokens of a prompt",
        "Each token coloured by its projection: where in the prompt the direction appears.",
        folded=_WRITERS,
    ),
}
"""Every figure of a run, in the order a reader wants them: to add one is to add a row."""
