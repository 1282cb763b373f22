"""What writes a direction and what it says: heads, tokens of the vocabulary, tokens of a prompt.

Knows how contributions are laid out. Their numbers come as tables.
"""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.models.hook_points import short_name
from refusal_lens.plots.style import (
    CLASSES,
    Classes,
    dress,
    empty,
    hatched,
    layer_axis,
    menu,
    name_rows,
)
from refusal_lens.plots.tables import by_layer, groups, last_layer, needs_columns
from refusal_lens.plots.text import escape
from refusal_lens.validation.frames import rows_that

N_COLUMNS = 8
"""Tokens in a line of a prompt."""

N_LARGEST = 14
"""Components named beside the heatmap."""


@needs_columns("layer", "component", "head", "contribution", "category")
def head_attribution(table: pd.DataFrame, *, classes: Classes = CLASSES) -> go.Figure:
    """Draw what each attention head and MLP adds to the difference along the direction.

    Args:
        table: `attribution` at one place: contributions in projection units, positive towards
            harmful; rows of a category are left out.
        classes: What the classes are called.
    """
    rows = rows_that(table, table["category"] == "")
    figure = make_subplots(
        cols=2,
        column_widths=[0.66, 0.34],
        horizontal_spacing=0.22,
        subplot_titles=["by layer and head", f"the {min(N_LARGEST, len(rows))} largest"],
    )
    grid = _attribution_grid(rows)
    figure.add_trace(_attribution_heatmap(grid), row=1, col=1)
    names, bars = _largest_bars(rows)
    figure.add_traces(bars, rows=1, cols=2)
    figure.update_xaxes(title_text="head", type="category", tickangle=0, row=1, col=1)
    figure.update_xaxes(title_text="projection units", nticks=4, row=1, col=2)
    name_rows(figure)
    figure.update_yaxes(categoryorder="array", categoryarray=names, row=1, col=2)
    ticks = {"type": "linear", "dtick": layer_axis(last_layer(by_layer(rows)))["dtick"]}
    figure.update_yaxes(title_text="layer", tick0=0, **ticks, row=1, col=1)
    figure.update_annotations(font_size=13)
    return dress(
        figure,
        "Which heads and MLPs write the direction",
        subtitle="difference of the classes in projection units; positive writes towards "
        + classes[True].name,
        height=min(900, max(500, 260 + 14 * len(grid))),
        margin={"l": 60, "r": 20, "t": 100, "b": 110},
    )


def _attribution_grid(part: pd.DataFrame) -> pd.DataFrame:
    """Lay heads and MLPs out: a row a layer, a column a head, then one for the MLP.

    Where heads were not told apart, attention has one column.
    """
    inside = by_layer(part)
    names = [
        f"{head:.0f}" if not pd.isna(head) else "MLP" if kind.endswith("mlp") else "attention"
        for kind, head in zip(inside["component"], inside["head"], strict=True)
    ]
    grid = inside.assign(column=names).pivot_table("contribution", "layer", "column")
    heads = sorted(filter(str.isdigit, map(str, grid.columns)), key=int)
    others = ["MLP"] if heads else ["attention", "MLP"]
    return grid.reindex(columns=[*heads, *(name for name in others if name in grid)])


def _attribution_heatmap(grid: pd.DataFrame) -> go.Heatmap:
    limit = float(grid.abs().max(axis=None)) if grid.size else 0.0
    return go.Heatmap(
        x=list(grid.columns),
        y=list(grid.index),
        z=grid.to_numpy(),
        zmin=-limit or -1,
        zmax=limit or 1,
        autocolorscale=True,
        xgap=1 if grid.shape[1] < 24 else 0,
        ygap=1 if len(grid) < 40 else 0,
        colorbar={
            "orientation": "h",
            **{"y": 0, "yref": "container", "yanchor": "bottom", "x": 0, "xanchor": "left"},
            **{"thickness": 10, "len": 0.6, "nticks": 5},
        },
        hovertemplate="layer %{y}, %{x}: %{z:.3~f}<extra></extra>",
    )


def _largest_bars(rows: pd.DataFrame) -> tuple[list[str], list[go.Bar]]:
    """Return names, the largest last, and the bars towards either class."""
    largest = rows.sort_values("contribution", key=abs).tail(N_LARGEST)
    names = [
        str(component).removeprefix("blocks.").replace(".", " ")
        + ("" if pd.isna(head) else f" head {int(head)}")
        for component, head in zip(largest["component"], largest["head"], strict=True)
    ]
    told = list(zip(names, largest["contribution"].tolist(), strict=True))
    bars = []
    for style in CLASSES:
        mine = [(name, number) for name, number in told if (number > 0) == style.is_harmful]
        bars.append(
            go.Bar(
                x=[number for _, number in mine],
                y=[name for name, _ in mine],
                width=0.7,
                orientation="h",
                showlegend=False,
                marker=hatched(style.colour, style.pattern),
                hovertemplate="%{y}: %{x:.3~f}<extra></extra>",
            )
        )
    return names, bars


@needs_columns("end", "rank", "token", "token_id", "logit")
def unembedding(table: pd.DataFrame) -> go.Figure:
    """Draw the tokens that a direction raises and lowers most, read through the unembedding.

    Args:
        table: `unembedding` at one place.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.24, subplot_titles=["lowered", "raised"])
    for column, (end, style) in enumerate(zip(("bottom", "top"), CLASSES, strict=True), start=1):
        rows = rows_that(table, table["end"] == end).sort_values("rank", ascending=False)
        bars = go.Bar(
            x=rows["logit"].tolist(),
            # Two tokens can look alike: the rank keeps their bars apart.
            y=[
                f"{_shown(str(token))}  {int(rank)}"
                for rank, token in zip(rows["rank"], rows["token"], strict=True)
            ],
            orientation="h",
            showlegend=False,
            marker=hatched(style.colour, style.pattern),
            customdata=[
                [escape(repr(str(token))), int(token_id)]
                for token, token_id in zip(rows["token"], rows["token_id"], strict=True)
            ],
            hovertemplate="%{customdata[0]} (token %{customdata[1]}): %{x:.3~f}<extra></extra>",
        )
        figure.add_trace(bars, row=1, col=column)
    name_rows(figure, dtick=1)
    figure.update_xaxes(title_text="logit", nticks=4).update_annotations(font_size=13)
    height = 160 + 20 * max(table["rank"].tolist(), default=1)
    title = "What the direction says through the unembedding"
    return dress(figure, title, height=height, margin_t=84)


@needs_columns("prompt_id", "hook_point", "index", "token")
def prompt_tokens(table: pd.DataFrame) -> go.Figure:
    """Draw the tokens of prompts, coloured by their projection; a menu goes over the prompts.

    At one hook point a prompt is lines of text; at several it is a row for each, coloured by the
    cosine, which can be compared between them.

    Args:
        table: `prompt_tokens`.
    """
    title = "Each token along the direction"
    prompts = [rows for _, rows in groups(table, "prompt_id")]
    if not prompts:
        return empty(title, "no prompts")
    hook_points = list(dict.fromkeys(table["hook_point"]))
    is_one = len(hook_points) == 1
    number, lay_out = ("projection", _token_grid) if is_one else ("cosine", _tokens_by_layers)
    limit = max((abs(value) for value in table[number].dropna().tolist()), default=0.0) or 1.0
    heatmap = go.Heatmap(
        **lay_out(prompts[0]),
        zmin=-limit,
        zmax=limit,
        autocolorscale=True,
        colorbar={"thickness": 10, "title": {"text": number, "side": "right"}},
        hovertemplate=f"%{{customdata[0]}}<br>token %{{customdata[1]}}, {number} %{{z:.3~f}}"
        "<extra></extra>",
    )
    figure = go.Figure(heatmap)
    layout: dict[str, Any] = {"margin": {"l": 60, "r": 20, "t": 110, "b": 100}}
    if is_one:
        n_lines = max(math.ceil(len(rows) / N_COLUMNS) for rows in prompts)
        figure.update_traces(texttemplate="%{text}", textfont_size=11, xgap=2, ygap=4)
        figure.update_xaxes(visible=False, fixedrange=True)
        figure.update_yaxes(visible=False, fixedrange=True, range=[n_lines - 0.5, -0.5])
        layout["margin"] |= {"l": 14, "b": 20}
    else:
        n_lines = max(8, len(hook_points))
        figure.update_xaxes(type="category", tickangle=-60).update_yaxes(type="category", nticks=17)
        name_rows(figure)
    if len(prompts) > 1:
        buttons = [
            {
                "method": "restyle",
                "label": escape(str(rows["prompt_id"].iloc[0])),
                "args": [{key: [value] for key, value in lay_out(rows).items()}],
            }
            for rows in prompts
        ]
        layout["updatemenus"] = [menu(buttons, x=0, xanchor="left")]
    return dress(
        figure,
        title,
        subtitle=short_name(hook_points[0]) if is_one else "layer by layer, each its own direction",
        height=min(1400, 130 + layout["margin"]["b"] + 34 * max(n_lines, 3)),
        **layout,
    )


def _tokens_by_layers(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """Lay one prompt out: a column a token, a row a hook point."""
    grid = rows.pivot_table(
        index="hook_point", columns="index", values="cosine", sort=False, dropna=False
    )
    tokens = dict(zip(rows["index"], rows["token"], strict=True))
    columns = sorted(grid.columns)
    whole = [[escape(repr(tokens[index])), int(index)] for index in columns]
    return {
        "x": [f"{_shown(tokens[index])}  {index}" for index in columns],
        "y": [short_name(str(name)) for name in grid.index],
        "z": grid[columns].round(4).to_numpy().tolist(),
        "customdata": [whole] * len(grid),
    }


def _token_grid(rows: pd.DataFrame) -> dict[str, list[list[Any]]]:
    """Lay the tokens of one prompt out in lines of `N_COLUMNS`."""
    rows = rows.sort_values("index")

    def lines(cells: list[Any], filler: Any) -> list[list[Any]]:
        padded = cells + [filler] * (-len(cells) % N_COLUMNS)
        return [padded[at : at + N_COLUMNS] for at in range(0, len(padded), N_COLUMNS)]

    tokens = rows["token"].tolist()
    whole = [
        [escape(repr(token)), int(index)]
        for token, index in zip(tokens, rows["index"], strict=True)
    ]
    return {
        "z": lines([round(float(number), 4) for number in rows["projection"]], None),
        "text": lines([_shown(token) for token in tokens], ""),
        "customdata": lines(whole, ["", ""]),
    }


def _shown(token: str) -> str:
    """Write a token so that it fits a cell and its spaces are seen."""
    seen = token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return escape(seen if len(seen) <= 9 else seen[:8] + "…")
