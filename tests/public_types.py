"""Read by pyright and never run: public names have types in an editor."""

# An error that is expected has to come:
# pyright: reportUnnecessaryTypeIgnoreComment=error

from typing import assert_type

import plotly.graph_objects as go

import refusal_lens as rl


def directions(path: str) -> None:
    assert_type(rl.load_directions(path), rl.Directions)
    assert_type(rl.load_direction(path).hook_point, str)


def collected(model: rl.ModelConfig, prompts: rl.ContrastSet) -> None:
    assert_type(rl.collect(model, prompts, "resid_post", "last", folder="a"), rl.Activations)
    assert_type(rl.collect(model, ["a"], ["b"], hook_points="resid_post:3"), rl.Activations)
    assert_type(rl.collect(model, (["a"], ["b"]), positions=["last"]), rl.Activations)


def figure(path: str) -> None:
    assert_type(rl.draw_figure(rl.RunFolder.open(path), "layer_profile"), go.Figure)


def misspelt() -> None:
    rl.load_directionz  # pyright: ignore[reportAttributeAccessIssue] # noqa: B018
