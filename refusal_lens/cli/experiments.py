"""Commands of experiments: select, ablate and chat with the running model; judge its answers.

Tested in tests/stages/test_experiment.py.
"""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from refusal_lens.cli.base import RunArgument, SetOption, console, existing_run

DirectionOption = Annotated[
    str | None,
    typer.Option(
        "--direction",
        metavar="HOOK_POINT[,POSITION]",
        help="Which direction: resid_post:5,last. Default: the one that select chose, else the "
        "best place of the run.",
    ),
]
InterventionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--intervention",
        metavar="NAME",
        help="What to do with it, such as affine_ablate, ablate or add. Repeatable.",
    ),
]
CoefficientOption = Annotated[
    list[float] | None,
    typer.Option(
        "--coefficient",
        metavar="NUMBER",
        help="Strength of ablation (1 removes all), or of addition in units of the class "
        "difference. Repeatable.",
    ),
]


def select(run_path: RunArgument, set_: SetOption = None) -> None:
    """Choose the direction by what it does to refusal, on prompts it was not fitted on."""
    with existing_run(run_path, set_, goes_on=True) as (settings, run_folder):
        from refusal_lens.stages import experiment, terminal

        terminal.show_paths(console, experiment.select_stage(settings, run_folder, console))
        console.print(f"Next: refusal-lens ablate {run_folder.typed}", markup=False, soft_wrap=True)


def ablate(
    run_path: RunArgument,
    direction: DirectionOption = None,
    intervention: InterventionOption = None,
    coefficient: CoefficientOption = None,
    set_: SetOption = None,
) -> None:
    """Remove and add the direction, beside controls, and count refusals."""
    with existing_run(run_path, set_, goes_on=True) as (settings, run_folder):
        from refusal_lens.stages import experiment, terminal

        request = experiment.read_request(direction, intervention, coefficient)
        written = experiment.ablate_stage(settings, run_folder, console, request)
        terminal.show_paths(console, written)
        console.print(f"Next: refusal-lens report {run_folder.typed}", markup=False, soft_wrap=True)


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


def judge(
    run_path: RunArgument,
    sheet: Annotated[
        int | None,
        typer.Option(
            "--sheet", help="Draw so many answers at random into a sheet to fill in.", min=1
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE.csv",
            help="A filled sheet: confusion table, kappa, and every rate corrected by it.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="JUDGE",
            help="Another judge, written as refusal.judge is, to read the same answers.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", help="File of the sheet. Default: RUN/answers_to_read.csv."),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Hold the judge against people, or against another judge, on stored answers."""
    with existing_run(run_path, set_) as (settings, run_folder):
        from refusal_lens.errors import RefusalLensError
        from refusal_lens.stages import judging, terminal

        if sheet is None and labels is None and against is None:
            raise RefusalLensError("Give --sheet 60, --labels FILE.csv or --against JUDGE.")
        written = []
        if sheet is not None:
            file = output or run_folder.path / "answers_to_read.csv"
            written.append(judging.sheet_stage(settings, run_folder, sheet, file))
        if labels is not None:
            written += judging.labels_stage(settings, run_folder, labels, console)
        if against is not None:
            written += judging.against_stage(settings, run_folder, against, console)
        terminal.show_paths(console, written)
        if sheet is not None:
            console.print(
                f"Fill in the column label, then: refusal-lens judge {run_folder.typed} --labels "
                f"{shlex.quote(str(written[0]))}",
                markup=False,
                soft_wrap=True,
            )
