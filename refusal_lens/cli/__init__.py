"""The command line: one thin command a stage.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""

import gc
import io
import os
import sys

import typer

from refusal_lens.cli import directions, experiments, explore, new, study

app = typer.Typer(
    help="Find, check and look at the refusal direction of a chat model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)

STUDY = (
    study.run,
    study.collect,
    study.refusal_rate,
    study.fit,
    study.plot,
    study.report,
    study.plan,
)
DIRECTIONS = (directions.compare, directions.inspect, directions.attribute, directions.export)
EXPERIMENTS = (experiments.select, experiments.ablate, experiments.judge, experiments.chat)

app.command()(new.new)
for command in (*STUDY, *DIRECTIONS):
    app.command()(command)
app.command("import")(directions.import_)
for command in (*EXPERIMENTS, explore.explore):
    app.command()(command)


SPINS = "1000"
"""How often a thread of GNU's OpenMP looks whether the others are done before it sleeps. By itself
it looks for about a millisecond, on a core that another program may be waiting for: beside one
that is busy on two cores, answers of a model of 0.5 B took 5.9 s; so they take 3.5, and 1.95 alone
where they took 1.89."""


def main() -> None:
    """Start the command line."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when torch is loaded
    gc.disable()  # until `starting` has imported what the command needs
    for stream in (sys.stdout, sys.stderr):
        # Windows gives a pipe cp1252, and C locales ASCII: what they lack is escaped, and a run
        # does not end over a prompt in Chinese.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        # A piped prompt in another encoding is told of by its name, as one in a file is.
        sys.stdin.reconfigure(errors="surrogateescape")
    # Alone on a terminal it asks what to study; on a pipe it prints its help.
    app(["new"] if len(sys.argv) == 1 and new.is_terminal() else None)
