"""A run's directions in other projects' formats.

Knows which directions of a run are meant. Knows no format.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refusal_lens.directions import formats
from refusal_lens.models.hook_points import select_hook_points, site_of
from refusal_lens.runs.decision import best_by_default
from refusal_lens.runs.folder import RunFolder


def export_stage(
    source: Path,
    output: Path,
    format_name: str | None,
    hook_points: Sequence[str] = (),
    positions: Sequence[str] = (),
) -> None:
    """Write a run's directions, or those of a file that `formats.read_directions` reads.

    Without a format, the suffix says which one of `formats.FORMATS`. Without hook points
    (selectors) or positions, all of a file are taken; of a run, the site and position of the best
    place.
    """
    context: dict[str, Any] = {}
    if source.is_dir():
        run_folder = RunFolder.open(source)
        directions = run_folder.read_directions()
        context["scores"] = run_folder.read_separation()
        if format_name == "llm-abliteration":
            context["activations"] = run_folder.read_activations(directions.hook_points)
        best = None if hook_points and positions else best_by_default(run_folder)
    else:
        directions, best = formats.read_directions(source), None
    names = tuple(
        name
        for name in directions.hook_points
        if best is None or site_of(name) == site_of(best.hook_point)
    )
    if hook_points:
        names = select_hook_points(directions.hook_points, hook_points, str(source))
    columns = positions or (directions.positions if best is None else [best.position])
    chosen = formats.take(directions, names, list(columns))
    formats.write_directions(chosen, output, format_name, **context)
