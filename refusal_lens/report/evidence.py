"""What a run has found, gathered from its folder for the report.

Knows which files hold it, and that most of them may be missing. Words nothing.

Tested in tests/report/test_page.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.runs.decision import Chance, read_chance
from refusal_lens.runs.diagnosis import Diagnosis, diagnose_run
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.best_place import Choice
from refusal_lens.validation.frames import rows_that
from refusal_lens.validation.separation import Separation


@dataclass(frozen=True, eq=False)
class Evidence:
    """Scores, choice, prompts and refusal of a run, and the tables of the stages that have run.

    `scores` is `separation.csv` as it stands: later stages add columns to it. `is_by_behaviour`:
    the classes are refused and answered prompts, and `prompts` are sorted so. `completions` are
    answers with and without intervention, `projected` where prompts lie at the best place, held
    out, where there are such answers.
    """

    prompts: ContrastSet
    separation: Separation
    scores: pd.DataFrame
    best: Choice | None
    n_layers: int
    provenance: Mapping[str, Any]
    diagnosis: Diagnosis
    chance: Chance
    refusal: RefusalReport | None = None
    borderline: RefusalReport | None = None
    is_by_behaviour: bool = False
    completions: pd.DataFrame | None = None
    projected: Mapping[tuple[str, bool], float] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def at_best(self, name: str) -> pd.DataFrame | None:
        """Return a table's rows of the best place; None where there are none."""
        table = self.scores if name == "separation" else self.tables.get(name)
        if table is None or self.best is None or "hook_point" not in table:
            return None
        rows = rows_that(table, is_at(table, self.best))
        return rows if len(rows) else None


def is_at(table: pd.DataFrame, place: Choice) -> pd.Series:
    """Say which rows are of one place."""
    is_there = (table["hook_point"] == place.hook_point) & (table["position"] == place.position)
    return pd.Series(is_there)


def gather(run_folder: RunFolder) -> Evidence:
    """Read what a run has found.

    Raises:
        RefusalLensError: The run has no scores yet.
    """
    scores, provenance = run_folder.read_separation(), run_folder.read_provenance()
    best, completions = run_folder.best(), run_folder.read_completions()
    return Evidence(
        prompts=run_folder.read_prompts(),
        separation=run_folder.separation(),
        scores=scores,
        best=best,
        n_layers=provenance["model"]["n_layers"],
        provenance=provenance,
        diagnosis=diagnose_run(run_folder),
        chance=read_chance(run_folder, best),
        refusal=run_folder.read_refusal(),
        borderline=run_folder.read_borderline(),
        is_by_behaviour=run_folder.relabelling() is not None,
        completions=completions,
        projected={} if completions is None else _project(run_folder, best),
        tables=_read_tables(run_folder),
    )


def _project(run_folder: RunFolder, best: Choice | None) -> dict[tuple[str, bool], float]:
    """Return every prompt's projection at the best place, by its id and class."""
    if best is None:
        return {}
    projections, prompts = run_folder.read_projections(), run_folder.read_prompts()
    row, column = projections.place(best.hook_point, best.position)
    keys = zip((prompt.id for prompt in prompts.prompts), prompts.is_harmful, strict=True)
    return dict(zip(keys, projections.values[:, row, column].tolist(), strict=True))


def _read_tables(run_folder: RunFolder) -> dict[str, pd.DataFrame]:
    names = sorted(path.stem for path in (run_folder.path / "tables").glob("*.csv"))
    tables = {name: run_folder.read_table(name) for name in (*names, "interventions")}
    return {name: table for name, table in tables.items() if table is not None}
