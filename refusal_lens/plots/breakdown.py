"""Which prompts: by category, and those on the wrong side.

Knows how to name prompts in a figure. Their numbers come as tables.
"""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plots.style import CLASSES, NEUTRAL_COLOUR, dress, empty, style_of
from refusal_lens.plots.text import escape, hover_prompt, place_name, shorten

N_MISREAD = 30
"""Misread prompts drawn; the table holds all."""


def category_breakdown(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw mean cosine and share called harmful of every category, at one place.

    Args:
        table: `categories` at one place.
        template: Name of a plotly template.
    """
    title = "Categories" + _place(table)
    if table.empty:
        return empty(template, title, "no categories")
    own = table.sort_values(["is_harmful", "mean_cosine"]).assign(
        label=lambda rows: [f"{escape(shorten(str(category), 22))} ({int(n)})"
                            for category, n in zip(rows["category"], rows["n"], strict=True)]
    )  # fmt: skip
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.05)
    for style in CLASSES:
        rows = own[own["is_harmful"].astype(bool) == style.is_harmful]
        # Harmful and harmless categories can have one name: a space keeps their rows apart.
        labels = [label + " " * style.is_harmful for label in rows["label"]]
        hover = [escape(str(category)) for category in rows["category"]]
        figure.add_trace(
            go.Scatter(name=style.name, legendgroup=style.name, x=rows["mean_cosine"].tolist(),
                       y=labels, mode="markers", hovertext=hover,
                       marker={"color": style.colour, "symbol": style.symbol, "size": 11},
                       hovertemplate=f"%{{hovertext}} ({style.name})<br>mean cosine %{{x:.3f}}"
                       "<extra></extra>"),
            row=1, col=1,
        )  # fmt: skip
        figure.add_trace(
            go.Bar(name=style.name, legendgroup=style.name, showlegend=False, y=labels,
                   x=(100 * rows["share_called_harmful"]).tolist(), orientation="h", hovertext=hover,
                   marker={"color": style.colour, "pattern": {"shape": style.pattern, "solidity": 0.3}},
                   hovertemplate=f"%{{hovertext}} ({style.name})<br>%{{x:.1f}} % called harmful"
                   "<extra></extra>"),
            row=1, col=2,
        )  # fmt: skip
    figure.update_xaxes(title_text="mean cosine", nticks=5, row=1, col=1)
    figure.update_xaxes(title_text="called harmful (%)", range=[0, 100], dtick=25, row=1, col=2)
    figure.update_yaxes(type="category", automargin=True, dtick=1)
    return dress(figure, template, title, height=150 + 24 * len(own), barmode="overlay")


def misread_prompts(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw the prompts on the wrong side of the threshold, and how far.

    Args:
        table: `misread` at one place: `margin` is the distance to the threshold in projection
            units.
        template: Name of a plotly template.
    """
    title = "Misread prompts" + _place(table)
    if table.empty:
        return empty(template, title, "every prompt is on its own side of the threshold")
    own = table.sort_values("margin", key=abs, ascending=False).head(N_MISREAD)[::-1]
    if len(table) > N_MISREAD:
        title += f"<br>the {N_MISREAD} farthest of {len(table)}"
    figure = go.Figure()
    for style in CLASSES:
        rows = own[own["is_harmful"].astype(bool) == style.is_harmful]
        hover = [hover_prompt(str(name), str(category), str(text)) for name, category, text in
                 zip(rows["prompt_id"], rows["category"], rows["text"], strict=True)]  # fmt: skip
        towards = "harmless" if style.is_harmful else "harmful"
        figure.add_trace(
            go.Bar(name=f"{style.name}, read as {towards}", orientation="h",
                   y=rows["prompt_id"].astype(str).tolist(),
                   x=rows["margin"].abs().tolist(), hovertext=hover, hoverlabel={"align": "left"},
                   text=[escape(shorten(str(text), 44)) for text in rows["text"]],
                   textposition="outside", cliponaxis=False,
                   marker={"color": style.colour, "pattern": {"shape": style.pattern, "solidity": 0.3}},
                   hovertemplate="%{hovertext}<br>%{x:.3~f} beyond the threshold<extra></extra>")
        )  # fmt: skip
    farthest = float(own["margin"].abs().max())
    figure.update_xaxes(title_text="beyond the threshold (projection units)",
                        range=[0, 2.6 * farthest])  # fmt: skip
    figure.update_yaxes(type="category", automargin=True, dtick=1, categoryorder="array",
                        categoryarray=own["prompt_id"].astype(str).tolist())  # fmt: skip
    return dress(figure, template, title, height=170 + 24 * len(own), barmode="overlay")


def confounds(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw how well plain features of the text tell the classes apart, beside the direction.

    Args:
        table: `confounds`: AUROC with interval, a row a feature.
        template: Name of a plotly template.
    """
    own = table.sort_values("auroc")
    figure = go.Figure()
    for is_direction, said, symbol, colour in (
        (False, "feature of the text", "square", NEUTRAL_COLOUR),
        (True, "direction", "star", "#009E73"),
    ):
        rows = own[(own["feature"] == "direction") == is_direction]
        figure.add_trace(
            go.Scatter(name=said, y=[escape(str(name).replace("_", " ")) for name in rows["feature"]],
                       x=rows["auroc"].tolist(), mode="markers",
                       error_x={"type": "data", "symmetric": False, "thickness": 2,
                                "array": (rows["auroc_high"] - rows["auroc"]).tolist(),
                                "arrayminus": (rows["auroc"] - rows["auroc_low"]).tolist()},
                       marker={"color": colour, "symbol": symbol, "size": 11},
                       customdata=(100 * rows["accuracy"]).tolist(),
                       hovertemplate="%{y}<br>AUROC %{x:.3f}, accuracy %{customdata:.1f} %"
                       "<extra></extra>")
        )  # fmt: skip
    figure.add_vline(0.5, line={"color": NEUTRAL_COLOUR, "dash": "dot", "width": 1},
                     annotation={"text": "chance", "font": {"size": 11}})  # fmt: skip
    figure.update_xaxes(title_text="AUROC")
    figure.update_yaxes(type="category", automargin=True, categoryorder="array",
                        categoryarray=[str(name).replace("_", " ") for name in own["feature"]])  # fmt: skip
    return dress(figure, template, "Could something simpler tell the classes apart?",
                 height=180 + 34 * len(own), margin_t=74)  # fmt: skip


def method_comparison(table: pd.DataFrame, *, template: str = "plotly_white") -> go.Figure:
    """Draw methods of fitting side by side over the layers, at one site and position.

    Args:
        table: `methods` at one site and position.
        template: Name of a plotly template.
    """
    from refusal_lens.plots.style import layer_axis, line_looks

    frame = table.dropna(subset=["layer"]).sort_values("layer", kind="stable")
    panels = (("separation", "separation"), ("auroc", "AUROC"),
              ("cosine_to_difference_of_means", "cosine to difference of means"))  # fmt: skip
    figure = make_subplots(rows=3, shared_xaxes=True, vertical_spacing=0.05)
    groups = list(frame.groupby("method", sort=False))
    for (method, of_method), (colour, symbol) in zip(groups, line_looks(), strict=False):
        for is_clipped, own in of_method.groupby("is_clipped", sort=False):
            said = str(method).replace("_", " ") + (", clipped" if is_clipped else "")
            for row, (score, of) in enumerate(panels, start=1):
                layers = own["layer"].astype(int).tolist()
                line = go.Scatter(
                    name=said, legendgroup=said, showlegend=row == 1, x=layers,
                    y=own[score].tolist(), mode="lines+markers",
                    line={"color": colour, "width": 2, "dash": "dot" if is_clipped else "solid"},
                    marker={"symbol": f"{symbol}-open" if is_clipped else symbol,
                            "size": 8 if len(layers) < 40 else 4},
                    hovertemplate=f"{said}, layer %{{x}}<br>{of} %{{y:.3~f}}<extra></extra>",
                )  # fmt: skip
                figure.add_trace(line, row=row, col=1)
    last = max(frame["layer"].astype(int).tolist(), default=0)
    figure.update_xaxes(**layer_axis(last)).update_xaxes(title_text="layer", row=3, col=1)
    for row, (_, of) in enumerate(panels, start=1):
        figure.update_yaxes(title_text=of, row=row, col=1)
    site = f" · {table['site'].iloc[0]}, {table['position'].iloc[0]}" if len(table) else ""
    return dress(figure, template, f"Methods of fitting{site}", height=720)


def _place(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    return f" · {place_name(str(table['hook_point'].iloc[0]), str(table['position'].iloc[0]))}"
