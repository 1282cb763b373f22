"""Which prompts: by category, and those on the wrong side.

Knows how to name prompts in a figure. Their numbers come as tables.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plots.style import CLASSES, Classes, ClassStyle, dress, empty, hatched, name_rows
from refusal_lens.plots.tables import needs_columns, of_class
from refusal_lens.plots.text import escape, hover_prompt, place_name, shorten

N_MISREAD = 30
"""Misread prompts drawn; the table holds all."""


@needs_columns("category", "is_harmful", "mean_cosine", "share_called_harmful")
def category_breakdown(table: pd.DataFrame, *, classes: Classes = CLASSES) -> go.Figure:
    """Draw mean cosine and share called harmful of every category, at one place.

    Args:
        table: `categories` at one place.
        classes: How the classes look, and what they are called.
    """
    if table.empty:
        return empty("Categories", "no categories")
    part = table.sort_values(["is_harmful", "mean_cosine"])
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    called = f"called {classes[True].name}"
    for style in classes:
        figure.add_traces(
            _category_traces(of_class(part, style), style, called), rows=1, cols=[1, 2]
        )
    figure.update_xaxes(title_text="mean cosine", nticks=5, row=1, col=1)
    figure.update_xaxes(title_text=f"{called} (%)", range=[0, 100], dtick=25, row=1, col=2)
    name_rows(figure, dtick=1, range=[-0.6, len(part) - 0.4])
    height = 170 + 24 * len(part)
    return dress(figure, f"Categories · {_place(table)}", height=height, barmode="overlay")


def _category_traces(
    rows: pd.DataFrame, style: ClassStyle, called: str
) -> list[go.Scatter | go.Bar]:
    """Return marks and bars of the categories of one class."""
    # Harmful and harmless categories can have one name: a space keeps their rows apart.
    labels = [
        f"{escape(shorten(str(category), 22))} ({int(n)}){' ' * style.is_harmful}"
        for category, n in zip(rows["category"], rows["n"], strict=True)
    ]
    whole = [f"{escape(str(category))} ({style.name})" for category in rows["category"]]
    marks = go.Scatter(
        name=style.name,
        legendgroup=style.name,
        x=rows["mean_cosine"].tolist(),
        y=labels,
        mode="markers",
        marker={"color": style.colour, "symbol": style.symbol, "size": 11},
        hovertext=whole,
        hovertemplate="%{hovertext}<br>mean cosine %{x:.3f}<extra></extra>",
    )
    bars = go.Bar(
        name=style.name,
        legendgroup=style.name,
        showlegend=False,
        x=(100 * rows["share_called_harmful"]).tolist(),
        y=labels,
        orientation="h",
        marker=hatched(style.colour, style.pattern),
        hovertext=whole,
        hovertemplate=f"%{{hovertext}}<br>%{{x:.1f}} % {called}<extra></extra>",
    )
    return [marks, bars]


@needs_columns("prompt_id", "is_harmful", "margin", "text")
def misread_prompts(table: pd.DataFrame, *, classes: Classes = CLASSES) -> go.Figure:
    """Draw the prompts on the wrong side of the threshold, and how far.

    Args:
        table: `misread` at one place: `margin` is the distance to the threshold in projection
            units.
        classes: As in `category_breakdown`.
    """
    if table.empty:
        text = "every prompt is on its own side of the threshold"
        return empty("Misread prompts", text)
    part = table.sort_values("margin", key=abs, ascending=False).head(N_MISREAD).iloc[::-1]
    figure = go.Figure()
    for style, other in zip(classes, reversed(classes), strict=True):
        figure.add_trace(_misread_bars(of_class(part, style), style, other.name))
    # Room to the right of the longest bar for its prompt.
    figure.update_xaxes(
        title_text="beyond the threshold (projection units)",
        range=[0, 2.6 * max(map(abs, part["margin"].tolist()))],
    )
    ids = [escape(str(name)) for name in part["prompt_id"]]
    name_rows(
        figure, dtick=1, categoryorder="array", categoryarray=ids, range=[-0.6, len(part) - 0.4]
    )
    return dress(
        figure,
        f"Misread prompts · {_place(table)}",
        subtitle=f"the {N_MISREAD} farthest of {len(table)}" if len(table) > N_MISREAD else "",
        height=180 + 24 * len(part),
        barmode="overlay",
    )


def _misread_bars(rows: pd.DataFrame, style: ClassStyle, other: str) -> go.Bar:
    prompts = zip(rows["prompt_id"], rows["category"], rows["text"], strict=True)
    return go.Bar(
        name=f"{style.name}, read as {other}",
        orientation="h",
        x=rows["margin"].abs().tolist(),
        y=[escape(str(name)) for name in rows["prompt_id"]],
        text=[escape(shorten(str(text), 44)) for text in rows["text"]],
        textposition="outside",
        cliponaxis=False,
        marker=hatched(style.colour, style.pattern),
        hovertext=[hover_prompt(*map(str, prompt)) for prompt in prompts],
        hoverlabel={"align": "left"},
        hovertemplate="%{hovertext}<br>%{x:.3~f} beyond the threshold<extra></extra>",
    )


def _place(table: pd.DataFrame) -> str:
    return place_name(table["hook_point"].iloc[0], table["position"].iloc[0])
