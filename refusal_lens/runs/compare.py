"""Several runs beside each other: from run folders to tables.

Knows which runs can be compared in what. Does not fit: each run's own fit has done that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.store import load_hook_point
from refusal_lens.directions.direction import Directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.groups import find_groups
from refusal_lens.runs.diagnosis import decide_run
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.cosines import (
    NamedDirections,
    Sample,
    cosine_table,
    reliabilities,
    transfer_between,
)
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.scores import SCORES

Place = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Run:
    """A fitted run under the name that it has among the compared ones."""

    name: str
    folder: RunFolder

    @cached_property
    def directions(self) -> Directions:
        """Its directions, with their provenance."""
        return self.folder.read_directions()

    @cached_property
    def projections(self) -> Projections:
        """Its held-out projections."""
        return self.folder.read_projections()

    @cached_property
    def prompts(self) -> ContrastSet:
        """Its prompts."""
        return self.folder.read_prompts()

    @property
    def model(self) -> tuple[str, ...]:
        """What tells its model from others: the weights if known, else name and revision."""
        model = self.directions.provenance.get("model", {})
        weights = model.get("weights_sha256") or f"{model.get('name')} {model.get('revision')}"
        return weights, str(model.get("processing"))

    @property
    def prompt_hashes(self) -> tuple[str, str]:
        """Fingerprints of its prompts."""
        return self.prompts.harmful.sha256, self.prompts.harmless.sha256

    @property
    def d_model(self) -> int:
        """Size of its residual stream."""
        return self.directions.vectors.shape[-1]

    @cached_property
    def best(self) -> Place | None:
        """Its best place, if it has a direction at all."""
        best = self.folder.best()
        return (best.hook_point, best.position) if best else None

    @cached_property
    def sentence(self) -> str:
        """Whether there is a direction, in the words of its report; "" before it is scored."""
        is_scored = self.folder.separation_path.is_file()
        return decide_run(self.folder).sentence if is_scored else ""

    def has(self, place: Place) -> bool:
        """Say whether it has a direction there."""
        rows, columns = self.directions.hook_points, self.directions.positions
        if place[0] not in rows or place[1] not in columns:
            return False
        return bool(self.directions.is_kept[rows.index(place[0]), columns.index(place[1])])

    def table(self, name: str) -> pd.DataFrame:
        """Read one of its tables, with the run's name in front; refuse a run that has none."""
        table = self.folder.read_table(name)
        if table is None:
            raise RefusalLensError(
                f"{self.folder.path} has no tables/{name}.csv yet. Fit it (again): refusal-lens "
                f"fit {self.folder.typed}."
            )
        table.insert(0, "run", self.name)
        return table

    def sample(self, place: Place) -> Sample:
        """Return its activations, its direction and its held-out scores at one place."""
        stored = load_hook_point(self.folder.activations_path, place[0])
        scores = _scores_at_places(self)
        at_place = rows_where(scores, hook_point=place[0], position=place[1])
        return Sample(
            values=stored[:, self.directions.positions.index(place[1])],
            is_harmful=self.projections.is_harmful,
            texts=tuple(prompt.text for prompt in self.prompts.prompts),
            unit=self.directions[place].unit,
            held_out={name: float(at_place.iloc[0][name]) for name in SCORES},
        )


def open_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Open run folders, and name each by as much of its path as tells it from the others.

    Raises:
        RefusalLensError: A folder holds no run or is given twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise RefusalLensError("A run was given twice. Give each folder once.")
    depth = next(
        n
        for n in range(1, max(len(path.parts) for path in resolved) + 1)
        if len({path.parts[-n:] for path in resolved}) == len(resolved)
    )
    names = ["/".join(path.parts[-depth:]) for path in resolved]
    return [Run(name, RunFolder.open(path)) for name, path in zip(names, paths, strict=True)]


# --- tables -----------------------------------------------------------------------------------


def compare_runs(runs: Sequence[Run]) -> dict[str, pd.DataFrame]:
    """Put the runs' numbers beside each other.

    Returns:
        `summary` (one row a run), `scores` (hook points x positions x methods), `cosines`,
        `transfer`, `categories` and `misread`, each with the run it is of.
    """
    between = [_cosines_between(runs), _transfer_between(runs)]
    return {
        "summary": pd.DataFrame([_summarise(run) for run in runs]),
        "scores": pd.concat([_scores(run) for run in runs], ignore_index=True),
        "cosines": _joined([*(run.table("cosines") for run in runs), *between[0]]),
        "transfer": _joined([*(run.table("transfer") for run in runs if run.best), *between[1]]),
        "categories": _joined([run.table("categories") for run in runs]),
        "misread": _joined([run.table("misread") for run in runs]),
    }


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table for table in tables if len(table)] or tables[:1], ignore_index=True)


def _summarise(run: Run) -> dict[str, object]:
    provenance, scores = run.directions.provenance, _scores_at_places(run)
    row: dict[str, object] = {
        "run": run.name,
        "model": provenance["model"]["name"],
        "n_harmful": len(run.prompts.harmful),
        "n_harmless": len(run.prompts.harmless),
        "method": run.directions.method,
        "clip_quantile": run.directions.clip_quantile,
    }
    if run.best is None:
        return row
    best = rows_where(scores, hook_point=run.best[0], position=run.best[1]).iloc[0]
    names = ("hook_point", "position", *SCORES, "auroc_new_topics", "cohens_d_new_topics")
    return row | {name: best[name] for name in names if name in best}


def _scores_at_places(run: Run) -> pd.DataFrame:
    """Return the run's own scores of every place."""
    table = run.folder.read_separation()
    table.insert(0, "run", run.name)
    table.insert(1, "method", run.directions.method)
    table.insert(2, "is_clipped", run.directions.clip_quantile is not None)
    place = ["hook_point", "site", "layer", "position"]
    of_new_topics = [f"{name}_new_topics" for name in SCORES]
    return table.filter(["run", "method", "is_clipped", *place, *SCORES, *of_new_topics])


def _scores(run: Run) -> pd.DataFrame:
    """Return the run's own scores, then those of the other methods wherever it compared them."""
    rows, methods = _scores_at_places(run), run.folder.read_table("methods")
    if methods is None:
        return rows
    methods.insert(0, "run", run.name)
    both = pd.concat([rows, methods.filter(list(rows.columns))], ignore_index=True)
    key = ["method", "is_clipped", "hook_point", "position"]
    return both.take(np.flatnonzero(~np.asarray(both.filter(key).duplicated())))


def _shared_places(runs: Sequence[Run]) -> list[Place]:
    """Return the best places of these runs at which all of them have a direction."""
    places = dict.fromkeys(run.best for run in runs if run.best is not None)
    return [place for place in places if all(run.has(place) for run in runs)]


def _groups(runs: Sequence[Run], key: Callable[[Run], object]) -> list[list[Run]]:
    groups: dict[object, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return [group for group in groups.values() if len(group) > 1]


def _cosines_between(runs: Sequence[Run]) -> list[pd.DataFrame]:
    """Compare runs of one model, and runs of several models of one d_model."""
    tables = []
    for group in _groups(runs, lambda run: run.model):
        is_same = len({run.prompt_hashes for run in group}) == 1
        tables += _cosines_of("methods" if is_same else "prompt_sets", group)
    # With other prompts, nobody could say whether model or prompts made the difference.
    for group in _groups(runs, lambda run: (run.d_model, run.prompt_hashes)):
        if len({run.model for run in group}) > 1:
            tables += _cosines_of("models", group)
    return tables


def _cosines_of(kind: str, runs: Sequence[Run]) -> list[pd.DataFrame]:
    tables = []
    for place in _shared_places(runs):
        named = NamedDirections(
            tuple(run.name for run in runs),
            torch.stack([run.directions[place].unit for run in runs]).double(),
            torch.stack([_reliability(run, place) for run in runs]),
        )
        table = cosine_table(kind, named, hook_point=place[0], position=place[1])
        # The ceiling is of other prompts: what both were fitted to has its noise in both.
        texts = {run.name: {prompt.text for prompt in run.prompts.prompts} for run in runs}
        shares = [bool(texts[a] & texts[b]) for a, b in zip(table["a"], table["b"], strict=True)]
        table.loc[shares, "ceiling"] = torch.nan
        table.insert(0, "run", "")
        tables.append(table)
    return tables


def _reliability(run: Run, place: Place) -> Float[Tensor, ""]:
    sample = run.sample(place)
    values = sample.values[:, None, None]
    groups = find_groups(run.prompts)
    at_place = Activations(values, sample.is_harmful, (place[0],), (place[1],), {}, groups)
    return reliabilities(at_place, clip_quantile=run.directions[place].clip_quantile)[0, 0]


def _transfer_between(runs: Sequence[Run]) -> list[pd.DataFrame]:
    """Test the directions of runs of one model on each other's prompts."""
    tables = []
    for group in _groups(runs, lambda run: run.model):
        for place in _shared_places(group):
            table = transfer_between({run.name: run.sample(place) for run in group}, place)
            table.insert(0, "run", "")
            tables.append(table)
    return tables
