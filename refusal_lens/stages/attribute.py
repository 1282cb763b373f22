"""A fitted run's direction taken apart on its model: what writes it, and what it says.

Knows which model and place of a run are meant. Computes nothing itself.

Tested in tests/stages/test_export.py.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from refusal_lens.config import Config
from refusal_lens.directions.direction import Direction, Directions
from refusal_lens.experiments.attribution import attribute
from refusal_lens.experiments.token_readout import project_tokens, read_unembedding
from refusal_lens.models.hook_points import site_of
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.runs.decision import find_place
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages import terminal

N_PROMPTS_SHOWN = 3
"""Prompts of each class that `attribute` goes through token by token."""


def attribute_stage(
    config: Config,
    run_folder: RunFolder,
    console: Console,
    hook_point: str | None = None,
    position: str | None = None,
    texts: Sequence[str] = (),
) -> list[Path]:
    """Say which components write a direction of the run and what it says; write three tables.

    Hook point (a full name or such as `resid_post:5`) and position are those of the best place
    where they are not given. `texts` are gone through token by token; without any, the first few
    prompts of each class are.
    """
    directions = run_folder.read_directions()
    direction = directions[find_place(run_folder, hook_point, position)]
    with console.status(f"Loading {config.model.name}"):
        model = run_folder.model()
    prompts, system_prompt = run_folder.read_prompts(), config.prompts.system_prompt
    found = attribute(model, prompts, direction, system_prompt=system_prompt)
    terminal.show_attribution(console, found)
    readout = read_unembedding(model, direction)
    terminal.show_unembedding(console, readout)
    shown = [
        *prompts.harmful.prompts[:N_PROMPTS_SHOWN],
        *prompts.harmless.prompts[:N_PROMPTS_SHOWN],
    ]
    if texts:
        shown = [Prompt(f"prompt-{n}", text, "") for n, text in enumerate(texts, start=1)]
    column = _same_column(directions, direction)
    tokens = [
        project_tokens(model, prompt, column, system_prompt=system_prompt) for prompt in shown
    ]
    return [
        run_folder.write_table("attribution", found.to_frame()),
        run_folder.write_table("unembedding", readout.to_frame()),
        run_folder.write_table("prompt_tokens", pd.concat([each.to_frame() for each in tokens])),
    ]


def _same_column(directions: Directions, direction: Direction) -> list[Direction]:
    """Return the directions of all layers at the site and position of one."""
    return [
        each
        for each in directions
        if (site_of(each.hook_point), each.position)
        == (site_of(direction.hook_point), direction.position)
    ]
