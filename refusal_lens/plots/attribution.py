"""What writes a direction and what it says: heads, tokens of the vocabulary, tokens of a prompt.

Knows how contributions are laid out. Their numbers come as tables.
"""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plots.style import (
    HARMFUL_COLOUR,
    HARMLESS_COLOUR,
    dress,
    empty,
    signed_scale,
)
from refusal_lens.plots.text import escape

N_COLUMNS = 10
"""Tokens in a line of a prompt."""

N_LARGEST = 14
"""Components named beside the heatmap."""


def head_attribution(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw what each attention head and MLP adds to the difference along the direction.

    Args:
        table: `attribution` at one place: contributions in projection units, positive towards
            harmful; rows of a category are left out.
        template: Name of a plotly template.
    """
    own = (
        table[table["category"].isna() | (table["category"] == "")]
        if "category" in table
        else table
    )
    figure = make_subplots(
        cols=2, column_widths=[0.64, 0.36], horizontal_spacing=0.19,
        subplot_titles=["by layer and head", "largest"],
    )  # fmt: skip
    columns, layers, cells = _attribution_grid(own)
    limit = (
        max((abs(cell) for row in cells for cell in row if cell is not None), default=1.0) or 1.0
    )
    figure.add_trace(
        go.Heatmap(
            x=columns, y=layers, z=cells, zmin=-limit, zmax=limit,
            colorscale=signed_scale(template), xgap=1, ygap=1 if len(layers) < 40 else 0,
            colorbar={"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom",
                      "thickness": 10, "len": 0.6, "x": 0, "xanchor": "left", "nticks": 5,
                      "title": {"text": "projection units, towards harmful", "side": "top"}},
            hovertemplate="layer %{y}, %{x}: %{z:.3~f}<extra></extra>",
        ),
        row=1, col=1,
    )  # fmt: skip
    names = _component_names(own)
    largest = own.assign(name=names).sort_values("contribution", key=abs).tail(N_LARGEST)
    figure.add_trace(
        go.Bar(
            y=largest["name"].tolist(), x=largest["contribution"].tolist(), orientation="h",
            marker={"color": [HARMFUL_COLOUR if x > 0 else HARMLESS_COLOUR
                              for x in largest["contribution"]],
                    "pattern": {"shape": ["/" if x > 0 else "" for x in largest["contribution"]],
                                "solidity": 0.3}},
            hovertemplate="%{y}: %{x:.3~f}<extra></extra>", showlegend=False,
        ),
        row=1, col=2,
    )  # fmt: skip
    figure.update_xaxes(title_text="head", type="category", tickangle=0, row=1, col=1)
    figure.update_yaxes(title_text="layer", row=1, col=1)
    figure.update_xaxes(title_text="projection units", nticks=4, row=1, col=2)
    height = min(900, max(460, 240 + 14 * len(layers)))
    return dress(figure, template, "Which heads and MLPs write the direction", height=height,
                 margin={"l": 60, "r": 20, "t": 84, "b": 130})  # fmt: skip


def _attribution_grid(
    own: pd.DataFrame,
) -> tuple[list[str], list[int], list[list[float | None]]]:
    """Lay heads and MLPs out: a row a layer, a column a head, then one for the MLP."""
    own = own.dropna(subset=["layer"])
    is_mlp = own["component"].astype(str).str.endswith("mlp")
    is_head = own["head"].notna()
    is_attention = own["component"].astype(str).str.endswith("attn") & ~is_head
    own = own.assign(column=None)
    own["column"] = own["column"].astype(object)
    own.loc[is_head, "column"] = own.loc[is_head, "head"].astype(int).astype(str)
    own.loc[is_mlp, "column"] = "MLP"
    if not is_head.any():
        own.loc[is_attention, "column"] = "attention"
    own = own.dropna(subset=["column"])
    columns = [name for name in dict.fromkeys(own["column"]) if name.isdigit()]
    columns = sorted(columns, key=int) + [
        n for n in ("attention", "MLP") if n in set(own["column"])
    ]
    layers = sorted(set(own["layer"].astype(int)))
    found = {(int(layer), column): value for layer, column, value in
             zip(own["layer"], own["column"], own["contribution"], strict=True)}  # fmt: skip
    return columns, layers, [[found.get((layer, column)) for column in columns] for layer in layers]


def _component_names(own: pd.DataFrame) -> list[str]:
    """Name components as people say them."""
    return [
        str(component).removeprefix("blocks.").replace(".", " ")
        + ("" if pd.isna(head) else f" head {int(head)}")
        for component, head in zip(own["component"], own["head"], strict=True)
    ]


def unembedding(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw the tokens that a direction raises and lowers most, read through the unembedding.

    Args:
        table: `unembedding` at one place.
        template: Name of a plotly template.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.24, subplot_titles=["lowered", "raised"])
    for column, (end, colour, pattern) in enumerate(
        (("bottom", HARMLESS_COLOUR, ""), ("top", HARMFUL_COLOUR, "/")), start=1
    ):
        own = table[table["end"] == end].sort_values("rank", ascending=False)
        figure.add_trace(
            go.Bar(
                # Two tokens can look alike; the rank keeps their bars apart.
                y=[f"{int(rank)} {_shown(token)}"
                   for rank, token in zip(own["rank"], own["token"], strict=True)],
                x=own["logit"].tolist(), orientation="h", showlegend=False,
                marker={"color": colour, "pattern": {"shape": pattern, "solidity": 0.3}},
                customdata=[[escape(repr(str(token))), int(token_id)] for token, token_id in
                            zip(own["token"], own["token_id"], strict=True)],
                hovertemplate="%{customdata[0]} (token %{customdata[1]}): %{x:.3~f}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.update_yaxes(type="category", automargin=True).update_xaxes(title_text="logit", nticks=4)
    n_rows = int(table["rank"].max()) if len(table) else 1
    return dress(figure, template, "What the direction says through the unembedding",
                 height=180 + 20 * n_rows, margin_t=84)  # fmt: skip


def prompt_tokens(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw the tokens of prompts, coloured by their projection; a menu goes over the prompts.

    Args:
        table: `prompt_tokens` at one hook point.
        template: Name of a plotly template.
    """
    prompts = [own.sort_values("index") for _, own in table.groupby("prompt_id", sort=False)]
    if not prompts:
        return empty(template, "Tokens along the direction", "no prompts")
    limit = float(table["projection"].abs().max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            **_token_grid(prompts[0]), texttemplate="%{text}", textfont={"size": 11}, zmin=-limit,
            zmax=limit, colorscale=signed_scale(template), xgap=2, ygap=4,
            colorbar={"thickness": 10, "title": {"text": "projection", "side": "right"}},
            hovertemplate="%{customdata[0]}<br>token %{customdata[1]}, projection %{z:.3~f}"
            "<extra></extra>",
        )
    )  # fmt: skip
    n_lines = max(math.ceil(len(own) / N_COLUMNS) for own in prompts)
    layout: dict[str, Any] = {"margin": {"l": 14, "r": 20, "t": 96, "b": 20}}
    if len(prompts) > 1:
        layout["updatemenus"] = [_prompt_menu(prompts)]
    figure.update_xaxes(visible=False, fixedrange=True)
    figure.update_yaxes(
        visible=False, fixedrange=True, autorange=False, range=[n_lines - 0.5, -0.5]
    )
    return dress(figure, template, "Each token's projection on the direction",
                 height=120 + 34 * max(n_lines, 3), **layout)  # fmt: skip


def _token_grid(own: pd.DataFrame) -> dict[str, list[list[Any]]]:
    """Lay the tokens of one prompt out in lines of `N_COLUMNS`."""

    def lines(cells: list[Any], filler: Any) -> list[list[Any]]:
        padded = cells + [filler] * (-len(cells) % N_COLUMNS)
        return [padded[at : at + N_COLUMNS] for at in range(0, len(padded), N_COLUMNS)]

    tokens = [str(token) for token in own["token"].fillna("")]
    whole = [[escape(repr(token)), int(index)]
             for token, index in zip(tokens, own["index"], strict=True)]  # fmt: skip
    return {
        "z": lines(own["projection"].tolist(), None),
        "text": lines([_shown(token) for token in tokens], ""),
        "customdata": lines(whole, ["", ""]),
    }


def _shown(token: str) -> str:
    """Write a token so that it fits a cell and its spaces are seen."""
    seen = token.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
    return escape(seen if len(seen) <= 9 else seen[:8] + "…")


def _prompt_menu(prompts: list[pd.DataFrame]) -> dict[str, Any]:
    buttons = []
    for own in prompts:
        grid = _token_grid(own)
        label = escape(str(own["prompt_id"].iloc[0]))
        args = [{key: [value] for key, value in grid.items()}]
        buttons.append({"method": "restyle", "label": label, "args": args})
    return {
        "buttons": buttons, "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
        "pad": {"b": 8}, "bgcolor": "white", "font": {"color": "#2a3f5f"},
    }  # fmt: skip
