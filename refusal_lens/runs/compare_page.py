"""Compared runs as figures, and as one page that opens from disk.

Knows which figures there are and their titles. Computes nothing.

Tested in tests/runs/test_compare.py.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from refusal_lens import plots
from refusal_lens.models.hook_points import layer_of, short_name, site_of
from refusal_lens.plots.picture_files import FIT_FIGURE
from refusal_lens.plots.style import PRIVATE
from refusal_lens.runs.compare import Place, Run
from refusal_lens.validation.cosines import square_cosines
from refusal_lens.validation.densities import shared_densities
from refusal_lens.validation.frames import rows_where

TEMPLATES = Path(__file__).parent / "templates"

PANELS = 4
"""Runs beside each other in one figure."""


def draw_comparison(runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Draw what the tables allow, by title: scores first, then what lies between and within runs.

    Within a run, cosines are drawn around its best place; the tables hold those of every place.
    """
    scores, cosines, transfer = tables["scores"], tables["cosines"], tables["transfer"]
    rows = pd.concat([_rows_of_run(scores, run) for run in runs], ignore_index=True)
    best = {run.name: run.best for run in runs if run.best is not None}
    figures = {
        f"{_capital(plots.SCORE_NAMES[score])} of every place, on new prompts of the same topics": (
            plots.place_heatmap(rows, score, best=best)
        )
        for score in ("auroc", "separation", "cohens_d")
    }
    placed = [(run, run.best) for run in runs if run.best is not None]
    deep = [
        _over_depth(scores, run, place) for run, place in placed if layer_of(place[0]) is not None
    ]
    if len(deep) > 1:
        title = "AUROC over depth, each at the site and position of its best place"
        figures[title] = plots.depth_curves(pd.concat(deep))
    for start in range(0, len(placed), PANELS):
        shown = placed[start : start + PANELS]
        names = ", ".join(run.name for run, _ in shown)
        figures[f"Held-out projections of {names}, each at its best place"] = (
            plots.directions_side_by_side([_panel(run, best) for run, best in shown], title="")
        )
    for kind in ("prompt_sets", "models", "methods"):
        for place, table in _by_place(rows_where(cosines, kind=kind, run="")):
            title = f"Cosines between {_words(kind)} at {_sentence(place)}"
            figures[title] = plots.cosine_heatmap(*square_cosines(table))
    for place, table in _by_place(rows_where(transfer, kind="prompt_set")):
        figures[f"Transfer between prompt sets at {_sentence(place)}"] = plots.transfer_matrix(
            table
        )
    for run in runs:
        methods = _compared_methods(scores, run)
        if len(methods):
            figures[f"{run.name}: AUROC by way to fit"] = plots.place_heatmap(methods, "auroc")
        figures |= _draw_run(run, cosines, transfer)
    return figures


def _panel(run: Run, place: Place) -> plots.Panel:
    """Return what a run's prompts look like along its direction at a place."""
    projections = run.projections
    row, column = projections.place(*place)
    numbers = projections.values[:, row, column]
    return plots.Panel(
        f"{run.name}\n{short_name(place[0])},\n{place[1]}",
        run.prompts.prompts,
        numbers,
        projections.is_harmful,
        projections.thresholds[row, column].item(),
        shared_densities(numbers, projections.is_harmful),
    )


def _by_place(table: pd.DataFrame) -> list[tuple[Place, pd.DataFrame]]:
    pairs = zip(table["hook_point"], table["position"], strict=True)
    return [
        (place, rows_where(table, hook_point=place[0], position=place[1]))
        for place in dict.fromkeys(pairs)
    ]


def _rows_of_run(scores: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the scores of a run's own method and clip."""
    is_clipped = run.directions.clip_quantile is not None
    method = run.directions.method
    return rows_where(scores, run=run.name, method=method, is_clipped=is_clipped)


def _over_depth(scores: pd.DataFrame, run: Run, best: Place) -> pd.DataFrame:
    """Return the scores of all layers at the best place's site and position."""
    rows = rows_where(_rows_of_run(scores, run), site=site_of(best[0]), position=best[1])
    return rows.assign(n_layers=run.folder.read_provenance()["model"]["n_layers"])


def _compared_methods(scores: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the scores of all methods, clipped as the run's own, where it compared them.

    Empty where it did so at one place alone: that is a table, not a heatmap.
    """
    is_clipped = run.directions.clip_quantile is not None
    mine = rows_where(scores, run=run.name, is_clipped=is_clipped)
    compared = [table for _, table in _by_place(mine) if len(table) > 1]
    return pd.concat(compared) if len(compared) > 1 else mine.head(0)


def _draw_run(run: Run, cosines: pd.DataFrame, transfer: pd.DataFrame) -> dict[str, go.Figure]:
    if run.best is None:
        return {}
    hook_point, position = run.best
    mine = rows_where(cosines, run=run.name)
    mine = mine.assign(
        site=[site_of(name) for name in mine["a"]], layer=[layer_of(name) for name in mine["a"]]
    )
    site, layer = site_of(hook_point), layer_of(hook_point)
    place = {"hook_point": hook_point, "position": position}
    parts = {
        "layers": rows_where(mine, kind="layers", position=position, site=site),
        "sites": rows_where(mine, kind="sites", position=position, layer=layer),
        "positions": rows_where(mine, kind="positions", hook_point=hook_point),
        "ways to fit": rows_where(mine, kind="methods", **place),
        "categories": rows_where(mine, kind="categories", **place),
    }
    places = {
        "layers": position,
        "sites": f"layer {layer_of(hook_point)}, {position}",
        "positions": short_name(hook_point),
    }
    figures = {
        f"{run.name}: cosines between {kind} at {places.get(kind, _sentence(run.best))}": (
            plots.cosine_heatmap(*square_cosines(table))
        )
        for kind, table in parts.items()
        if len(table)
    }
    pairs = rows_where(transfer, run=run.name, kind="category")
    if len(pairs):
        title = f"{run.name}: transfer between categories at {_sentence(run.best)}"
        figures[title] = plots.transfer_matrix(pairs)
    return figures


def _capital(words: str) -> str:
    return words if words == "d'" else words[0].upper() + words[1:]


def _words(kind: str) -> str:
    return {"prompt_sets": "prompt sets", "methods": "settings"}.get(kind, kind)


def _sentence(place: Place) -> str:
    return f"{short_name(place[0])}, {place[1]}"


def render_page(runs: Sequence[Run], figures: dict[str, go.Figure]) -> str:
    """Return all figures as one page that opens from disk, without a network."""
    # plotly.js stands in the page's head, once for all.
    drawn = {
        title: Markup(
            figure.to_html(
                full_html=False,
                include_plotlyjs=False,
                config=PRIVATE | {"responsive": True},
                post_script="fitFigure(document.getElementById('{plot_id}'));",
            )
        )
        for title, figure in figures.items()
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("comparison.html.j2").render(
        title=f"Comparison of {', '.join(run.name for run in runs)}",
        sentences={run.name: run.sentence for run in runs},
        figures=drawn,
        plotly=Markup(get_plotlyjs() + FIT_FIGURE),
    )
