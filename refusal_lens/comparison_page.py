"""Compared runs as figures, and as one page that opens from disk.

Knows which figures there are and their titles. Computes nothing.
"""

import html
from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from refusal_lens import plots
from refusal_lens.compare_runs import Run
from refusal_lens.comparison import square_cosines
from refusal_lens.hook_points import layer_of, short_name, site_of


def draw_comparison(runs: Sequence[Run], tables: dict[str, pd.DataFrame]) -> dict[str, go.Figure]:
    """Draw what the tables allow, by title: scores first, then what lies between and within runs.

    Within a run, cosines are drawn around its best place; the tables hold those of every place.
    """
    scores, cosines, transfer = tables["scores"], tables["cosines"], tables["transfer"]
    own = pd.concat([scores[_is_own(scores, run)] for run in runs], ignore_index=True)
    figures = {
        f"{plots.SCORE_NAMES[score]} of every place": plots.place_heatmap(own, score)
        for score in ("auroc", "separation", "cohens_d")
    }
    compared = [_compared_methods(scores, run) for run in runs]
    if any(len(table) for table in compared):
        table = pd.concat(compared, ignore_index=True)
        figures["AUROC by way to fit"] = plots.place_heatmap(table, "auroc")
    for kind in ("prompt_sets", "models", "methods"):
        between = cosines[(cosines["kind"] == kind) & (cosines["run"] == "")]
        for place, table in between.groupby(["hook_point", "position"], sort=False):
            title = f"Cosines between {_words(kind)} at {_said(place)}"
            figures[title] = plots.cosine_heatmap(*square_cosines(table))
    between = transfer[transfer["kind"] == "prompt_set"]
    for place, table in between.groupby(["hook_point", "position"], sort=False):
        figures[f"Transfer between prompt sets at {_said(place)}"] = plots.transfer_matrix(table)
    for run in runs:
        figures |= _draw_run(run, cosines, transfer)
    return figures


def _is_own(scores: pd.DataFrame, run: Run) -> pd.Series:
    """Say which rows are of a run's own method and clip."""
    is_clipped = run.directions.clip_quantile is not None
    return (
        (scores["run"] == run.name)
        & (scores["method"] == run.directions.method)
        & (scores["is_clipped"] == is_clipped)
    )


def _compared_methods(scores: pd.DataFrame, run: Run) -> pd.DataFrame:
    """Return the scores of all methods, clipped as the run's own, where it compared them.

    Empty where it did so at one place alone: that is a table, not a heatmap.
    """
    is_clipped = run.directions.clip_quantile is not None
    mine = scores[(scores["run"] == run.name) & (scores["is_clipped"] == is_clipped)]
    n_methods = mine.groupby(["hook_point", "position"])["method"].transform("nunique")
    compared = mine[n_methods > 1]
    return compared if compared["hook_point"].nunique() > 1 else compared.iloc[:0]


def _draw_run(run: Run, cosines: pd.DataFrame, transfer: pd.DataFrame) -> dict[str, go.Figure]:
    if run.best is None:
        return {}
    hook_point, position = run.best
    mine = cosines[cosines["run"] == run.name]
    is_here = (mine["hook_point"] == hook_point) & (mine["position"] == position)
    of_site = mine["a"].map(site_of) == site_of(hook_point)
    of_layer = mine["a"].map(layer_of) == layer_of(hook_point)
    at_position = mine["position"] == position
    parts = {
        "layers": mine[(mine["kind"] == "layers") & at_position & of_site],
        "sites": mine[(mine["kind"] == "sites") & at_position & of_layer],
        "positions": mine[(mine["kind"] == "positions") & (mine["hook_point"] == hook_point)],
        "ways to fit": mine[(mine["kind"] == "methods") & is_here],
        "categories": mine[(mine["kind"] == "categories") & is_here],
    }
    where = {"layers": position, "sites": f"layer {layer_of(hook_point)}, {position}",
             "positions": short_name(hook_point)}  # fmt: skip
    figures = {
        f"{run.name}: cosines between {kind} at {where.get(kind, _said(run.best))}": (
            plots.cosine_heatmap(*square_cosines(table))
        )
        for kind, table in parts.items()
        if len(table)
    }
    pairs = transfer[(transfer["run"] == run.name) & (transfer["kind"] == "category")]
    if len(pairs):
        title = f"{run.name}: transfer between categories at {_said(run.best)}"
        figures[title] = plots.transfer_matrix(pairs)
    return figures


def _words(kind: str) -> str:
    return {"prompt_sets": "prompt sets", "methods": "settings"}.get(kind, kind)


def _said(place: object) -> str:
    hook_point, position = place  # type: ignore[misc]
    return f"{short_name(hook_point)}, {position}"


def write_page(runs: Sequence[Run], figures: dict[str, go.Figure]) -> str:
    """Write all figures as one page that opens from disk, without a network."""
    sections = []
    for number, (title, figure) in enumerate(figures.items()):
        # plotly.js goes in once, with the first figure.
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0)
        sections.append(f"<section><h2>{html.escape(title)}</h2>{drawn}</section>")
    names = html.escape(", ".join(run.name for run in runs))
    return _PAGE.format(title=f"Comparison of {names}", sections="\n".join(sections))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem;
  color: #1d2430; background: #fff; }}
h1 {{ font-size: 1.5rem; }}
h2 {{ font-size: 1.1rem; margin: 2.5rem 0 0.25rem; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{sections}
</main>
</body>
</html>
"""
