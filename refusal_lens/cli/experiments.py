"""Commands of experiments on the running model: select, ablate, chat."""

from typing import Annotated

import typer

from refusal_lens.cli.base import RunArgument, SetOption, console, existing_run

DirectionOption = Annotated[
    str | None,
    typer.Option(
        "--direction",
        metavar="HOOK_POINT[,POSITION]",
        help="Which direction: resid_post:5,last. Default: the one that select chose, else the "
        "best by separation.",
    ),
]
InterventionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--intervention",
        help="What to do with it, such as affine_ablate, ablate or add. Repeatable.",
    ),
]
CoefficientOption = Annotated[
    list[float] | None,
    typer.Option(
        "--coefficient",
        help="Strength of ablation (1 removes all), or of addition in units of the class "
        "difference. Repeatable.",
    ),
]


def select(run_path: RunArgument, set_: SetOption = None) -> None:
    """Choose the direction by what it does to refusal, on prompts it was not fitted on."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import experiment, terminal

        terminal.show_paths(console, experiment.select_stage(settings, run_folder, console))
        console.print(f"Next: refusal-lens ablate {run_folder.path}", markup=False, soft_wrap=True)


def ablate(
    run_path: RunArgument,
    direction: DirectionOption = None,
    intervention: InterventionOption = None,
    coefficient: CoefficientOption = None,
    set_: SetOption = None,
) -> None:
    """Remove and add the direction, beside controls, and count refusals."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import experiment, terminal

        request = experiment.read_request(direction, intervention, coefficient)
        written = experiment.ablate_stage(settings, run_folder, console, request)
        terminal.show_paths(console, written)


def chat(
    run_path: RunArgument,
    direction: DirectionOption = None,
    intervention: InterventionOption = None,
    coefficient: CoefficientOption = None,
    set_: SetOption = None,
) -> None:
    """Answer typed (or piped) prompts with and without the intervention."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.stages import experiment

        request = experiment.read_request(direction, intervention, coefficient)
        experiment.chat_stage(settings, run_folder, console, request)
