"""From a run folder to its figures, by name: one record a figure.

Knows which of a run's files each figure needs and what a reader is told about it. Does not know how
a figure looks, and computes nothing itself.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.models.hook_points import site_of
from refusal_lens.plots.parts import ways_to_split
from refusal_lens.plots.style import CLASSES, THEMES, Classes, named
from refusal_lens.plots.text import place_name
from refusal_lens.runs.folder import RunFolder, best_or_refuse
from refusal_lens.validation import densities
from refusal_lens.validation.cosines import square_cosines
from refusal_lens.validation.frames import rows_that, rows_where

Rows = Callable[[RunFolder, pd.DataFrame], pd.DataFrame]
"""Which rows of a table are drawn."""


@dataclass(frozen=True)
class Figure:
    """One figure of a run."""

    title: str
    """Its heading."""

    sentence: str
    """What a reader sees in it, in one sentence."""

    draw: Callable[[RunFolder], go.Figure]
    """Reads the run and draws; called where every file in `needs` is there."""

    needs: tuple[str, ...]
    """Files of the run folder that it reads."""

    folded: str = ""
    """The heading under which the report folds it; the few that are open have none."""

    extra: str = ""
    """An extra that it needs: it is drawn where it is asked for by name, and nowhere else."""


def draw_figure(run_folder: RunFolder | str | Path, name: str, theme: str = "light") -> go.Figure:
    """Draw one figure of a run.

    Args:
        run_folder: The run, or where it is.
        name: A key of `FIGURES`.
        theme: light or dark.

    Raises:
        RefusalLensError: There is no such figure or theme, or the stage it needs has not run.
    """
    if not isinstance(run_folder, RunFolder):
        run_folder = RunFolder.open(run_folder)
    for kind, asked, there in (("figure", name, FIGURES), ("theme", theme, THEMES)):
        if asked not in there:
            raise RefusalLensError(f"There is no {kind} {asked!r}. There are: {', '.join(there)}.")
    missing = _missing(run_folder, name)
    if missing:
        raise RefusalLensError(
            f"Figure {name} needs {', '.join(missing)}, which {run_folder.path} does not have. "
            f"{run_folder.writer_of(missing[-1])}"
        )
    drawn = FIGURES[name].draw(run_folder)
    # In light it is drawn; to put a theme on takes as long as to draw what is small.
    return drawn if theme == "light" else drawn.update_layout(template=THEMES[theme])


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


def _classes(run_folder: RunFolder) -> Classes:
    """Return how the classes look, called by what they are where that is what the model did."""
    if run_folder.relabelling() is None:
        return CLASSES
    prompts = run_folder.read_prompts()
    return named(prompts.harmless.name, prompts.harmful.name)


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


def _only_at_best(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place, if any: another place's would mislead."""
    hook_point, position = _best_place(run_folder)
    return rows_where(table, hook_point=hook_point, position=position)


def _at_best_column(run_folder: RunFolder, table: pd.DataFrame) -> pd.DataFrame:
    """Keep the rows of the best place's site and position, all layers."""
    hook_point, position = _best_place(run_folder)
    rows = rows_that(
        table, (table["site"] == site_of(hook_point)) & (table["position"] == position)
    )
    return rows if len(rows) else table


# --- figures of scores and projections ---------------------------------------------------------


def _projection_histogram(run_folder: RunFolder) -> go.Figure:
    best = run_folder.best()
    return plots.projection_histogram(
        run_folder.read_projections(),
        run_folder.separation(),
        run_folder.read_prompts().prompts,
        outcomes=_outcomes(run_folder),
        nulls=run_folder.read_table("nulls"),
        initial=(best.hook_point, best.position) if best else None,
        classes=_classes(run_folder),
    )


def _outcomes(run_folder: RunFolder) -> list[str] | None:
    """Return what became of every prompt; None where that was not measured, or is its class."""
    refusal = run_folder.read_refusal()
    if refusal is None or run_folder.relabelling() is not None:
        return None
    return [answer.outcome for answer in refusal.answers]


def _ridgeline(run_folder: RunFolder) -> go.Figure:
    projections = run_folder.read_projections()
    classes = _classes(run_folder)
    splits = ways_to_split(projections.is_harmful, _outcomes(run_folder), classes)
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
    )


def _layer_profile(run_folder: RunFolder) -> go.Figure:
    return plots.layer_profile(
        run_folder.read_separation(),
        nulls=run_folder.read_table("nulls"),
        best=run_folder.best(),
    )


def _activation_plane(run_folder: RunFolder) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    activations = run_folder.read_activations([hook_point])
    unit = run_folder.read_directions()[hook_point, position].unit
    return plots.activation_plane(
        densities.activation_plane(activations.at(hook_point, position), unit),
        activations.is_harmful,
        run_folder.read_prompts().prompts,
        place=place_name(hook_point, position),
        classes=_classes(run_folder),
    )


def _direction_components(run_folder: RunFolder) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    direction = run_folder.read_directions()[hook_point, position]
    return plots.direction_components(
        densities.top_coordinates(direction),
        place=place_name(hook_point, position),
    )


# --- figures of tables -------------------------------------------------------------------------


def _of_table(
    title: str,
    sentence: str,
    table: str,
    plot: Callable[..., go.Figure],
    rows: Rows | None = None,
    folded: str = "",
) -> Figure:
    """Return the figure of a table or of some rows; a `plot` that takes `classes` is given them."""
    takes_classes = "classes" in inspect.signature(plot).parameters

    def draw(run_folder: RunFolder) -> go.Figure:
        whole = _table(run_folder, table)
        options = {"classes": _classes(run_folder)} if takes_classes else {}
        return plot(whole if rows is None else rows(run_folder, whole), **options)

    return Figure(title, sentence, draw, (f"tables/{table}.csv", *(_FIT if rows else ())), folded)


def _causal_scores(run_folder: RunFolder) -> go.Figure:
    table = _table(run_folder, "causal_scores")
    rule = CausalRule.of(run_folder.read_config().causal)
    n_layers = run_folder.read_provenance()["model"]["n_layers"]
    late = [
        int(layer)
        for layer, hook_point in zip(table["layer"], table["hook_point"], strict=True)
        if rule.is_late(hook_point, n_layers)
    ]
    n_kept_layers = min(late, default=None)
    return plots.causal_scores(
        table, rule=rule, n_kept_layers=n_kept_layers, classes=_classes(run_folder)
    )


def _place_heatmap(run_folder: RunFolder) -> go.Figure:
    best = {"": _best_place(run_folder)}
    title = "Separation of every place"
    table = run_folder.read_separation()
    return plots.place_heatmap(table, "separation", best=best, title=title)


def _cosine_heatmap(run_folder: RunFolder) -> go.Figure:
    """Draw the layers at the best place's site and position."""
    cosines = _table(run_folder, "cosines")
    best = run_folder.best()
    site = site_of(best.hook_point if best else cosines["a"].iloc[0])
    position = best.position if best else cosines["position"].iloc[0]
    layers = rows_where(cosines, kind="layers", position=position)
    table = rows_where(layers.assign(site=[site_of(name) for name in layers["a"]]), site=site)
    title = f"Cosines between layers: {site}, position {position}"
    return plots.cosine_heatmap(*square_cosines(table), title=title)


def _roc(run_folder: RunFolder) -> go.Figure:
    place = _best_place(run_folder)
    table = run_folder.read_separation()
    row = rows_where(table, hook_point=place[0], position=place[1]).iloc[0]
    return plots.roc_curve(
        densities.roc(run_folder.read_projections(), *place),
        (row["auroc"], row["auroc_low"], row["auroc_high"]),
        place=place_name(*place),
        classes=_classes(run_folder),
    )


def _embedding(run_folder: RunFolder) -> go.Figure:
    hook_point, position = _best_place(run_folder)
    activations = run_folder.read_activations([hook_point])
    return plots.embedding(
        densities.embedding(activations.at(hook_point, position)),
        activations.is_harmful,
        run_folder.read_prompts().prompts,
        place=place_name(hook_point, position),
        classes=_classes(run_folder),
    )


def _refusal_by_topic(run_folder: RunFolder) -> go.Figure:
    report = run_folder.read_refusal()
    assert report is not None, "draw has seen that the file is there"
    return plots.refusal_bars(report.by_topic(), "Refusal by topic")


def _refusal_by_intervention(run_folder: RunFolder) -> go.Figure:
    table = _table(run_folder, "interventions")
    names = table["intervention"].str.replace("_", " ") + ", " + table["direction"]
    plain = table.drop_duplicates("is_harmful").assign(
        name="no intervention",
        refusal_rate=table["plain_rate"],
        refusal_rate_low=math.nan,
        refusal_rate_high=math.nan,
    )
    both = pd.concat([plain, table.assign(name=names)], ignore_index=True)
    title = "Refusal under interventions at full strength"
    return plots.refusal_bars(both, title, classes=_classes(run_folder))


def _learning_curve(run_folder: RunFolder) -> go.Figure:
    best = run_folder.best()
    place = (best.hook_point, best.position) if best else None
    return plots.learning_curve(_table(run_folder, "learning_curve"), place)


_LAYERS, _PROMPTS = "Layers and activations", "Prompts"
_TRUST, _VECTOR = "How far to trust the direction", "The vector itself"
_DOES = "What the model does"
_WRITERS = "What writes and reads the direction"

_FIT = ("separation.csv", "provenance.json")

FIGURES: dict[str, Figure] = {
    "projection_histogram": Figure(
        "Projection histogram",
        "Every prompt along the direction of one place, projected on a direction that it did "
        "not help to fit; crosses are misread prompts.",
        _projection_histogram,
        ("projections.safetensors", "prompts.json", *_FIT),
    ),
    "ridgeline": Figure(
        "All layers at once",
        "Both classes along the direction of each layer: where they part, the direction begins.",
        _ridgeline,
        ("projections.safetensors", *_FIT),
    ),
    "layer_profile": Figure(
        "Layer profile",
        "Scores over the layers: solid lines are held out, dotted ones in sample, and the room "
        "between them is optimism.",
        _layer_profile,
        _FIT,
    ),
    "place_heatmap": Figure(
        "All places",
        "Separation of every hook point and position, on prompts that its direction was not "
        "fitted to.",
        _place_heatmap,
        _FIT,
    ),
    "cosine_heatmap": Figure(
        "Cosines between layers",
        "How alike the directions of the layers are, beside the most that noise would leave of "
        "two directions that are the same.",
        _cosine_heatmap,
        ("tables/cosines.csv", *_FIT),
        folded=_LAYERS,
    ),
    "activation_plane": Figure(
        "Activations in a plane",
        "The best direction across, the first principal component of all the rest upwards; both "
        "are fitted to the prompts shown.",
        _activation_plane,
        ("directions.safetensors", "activations/manifest.json", "prompts.json", *_FIT),
        folded=_LAYERS,
    ),
    "embedding": Figure(
        "Embedding",
        "UMAP of the activations at the best place: who is near whom, in sample.",
        _embedding,
        ("activations/manifest.json", "prompts.json", *_FIT),
        folded=_LAYERS,
        extra="embed",
    ),
    "roc": Figure(
        "ROC",
        "What every threshold at the best place would catch and raise falsely, on prompts that "
        "the direction was not fitted to.",
        _roc,
        ("projections.safetensors", *_FIT),
        folded=_TRUST,
    ),
    "category_breakdown": _of_table(
        "Categories",
        "How each category lies along the best direction, and how much of it is called harmful.",
        "categories",
        plots.category_breakdown,
        _at_best,
    ),
    "transfer_matrix": _of_table(
        "Transfer between categories",
        "AUROC of each category along the direction of another; never on prompts that it was "
        "fitted to.",
        "transfer",
        partial(plots.transfer_matrix, title="AUROC of one category along another's direction"),
        folded=_PROMPTS,
    ),
    "misread_prompts": _of_table(
        "Misread prompts",
        "The prompts on the wrong side of the threshold, and how far they are beyond it.",
        "misread",
        plots.misread_prompts,
        _only_at_best,
        folded=_PROMPTS,
    ),
    "stability": _of_table(
        "Stability",
        "How alike the directions of other draws of prompts are: near 1 they hardly turn.",
        "stability",
        plots.stability,
        folded=_TRUST,
    ),
    "learning_curve": Figure(
        "Learning curve",
        "By how many degrees the direction turns when it is fitted to so many prompts.",
        _learning_curve,
        ("tables/learning_curve.csv", *_FIT),
        folded=_TRUST,
    ),
    "nested_choice": _of_table(
        "Nested choice",
        "Which place was chosen on a part of the prompts, and how it did on the others.",
        "nested_choice",
        plots.nested_choice,
        folded=_TRUST,
    ),
    "confounds": _of_table(
        "Confounds",
        "How well length, punctuation and words alone tell the classes apart.",
        "confounds",
        plots.confounds,
    ),
    "method_comparison": _of_table(
        "Ways to fit",
        "Other ways to fit a direction, on the same held-out prompts, at the places where "
        "they were compared.",
        "methods",
        plots.method_comparison,
        _at_best_column,
        folded=_VECTOR,
    ),
    "direction_components": Figure(
        "Components of the direction",
        "Its largest coordinates: where a single one holds most of the length, clip lower.",
        _direction_components,
        ("directions.safetensors", *_FIT),
        folded=_VECTOR,
    ),
    "coordinate_shares": _of_table(
        "Shares of the coordinates",
        "How much of each direction's squared length its largest coordinates hold.",
        "coordinates",
        plots.coordinate_shares,
        _at_best_column,
        folded=_VECTOR,
    ),
    "clip_sweep": _of_table(
        "Clipping",
        "What clipping the direction's largest components does to it.",
        "clip_sweep",
        plots.clip_sweep,
        folded=_VECTOR,
    ),
    "refusal_by_length": _of_table(
        "Refusal by length of answer",
        "Refusal and evasion where the same answers are cut off after so many tokens.",
        "refusal_by_length",
        plots.refusal_by_length,
        folded=_DOES,
    ),
    "refusal_by_topic": Figure(
        "Refusal by topic",
        "How much of each topic the model refuses, harmful topics first, with 95 % intervals.",
        _refusal_by_topic,
        ("refusal.json",),
        folded=_DOES,
    ),
    "quadrants": _of_table(
        "Harmful and refused",
        "Every prompt between the direction of harm and that of refusal, each fitted with the "
        "other label held fixed, and without the prompt's own fold; borderline ones are in no fit.",
        "quadrants",
        plots.quadrants,
        folded=_DOES,
    ),
    "causal_scores": Figure(
        "Causal scores",
        "What ablating and adding each direction does to refusal, with the paper's thresholds.",
        _causal_scores,
        ("tables/causal_scores.csv", "provenance.json"),
    ),
    "dose_response": _of_table(
        "Dose and response",
        "Refusal over the strength of the intervention, beside random and permuted directions.",
        "dose_response",
        plots.dose_response,
    ),
    "refusal_by_intervention": Figure(
        "Refusal under interventions",
        "What is refused with each direction removed or added at full strength, beside controls.",
        _refusal_by_intervention,
        ("interventions.csv",),
        folded=_DOES,
    ),
    "side_effects": _of_table(
        "Effect against cost",
        "What each strength does to refusal against how much it changes answers that should stay "
        "as they are, beside random directions.",
        "side_effects",
        plots.side_effects,
        folded=_DOES,
    ),
    "head_attribution": _of_table(
        "What writes the direction",
        "How much each head and MLP adds to the class difference along the direction.",
        "attribution",
        plots.head_attribution,
        _at_best,
        folded=_WRITERS,
    ),
    "unembedding": _of_table(
        "Through the unembedding",
        "The tokens that the direction speaks for and against.",
        "unembedding",
        plots.unembedding,
        _at_best,
        folded=_WRITERS,
    ),
    "prompt_tokens": _of_table(
        "Tokens of a prompt",
        "Each token coloured by its projection: where in the prompt the direction appears.",
        "prompt_tokens",
        plots.prompt_tokens,
        folded=_WRITERS,
    ),
}
"""Every figure of a run, in the order a reader wants them: to add one is to add a row."""
