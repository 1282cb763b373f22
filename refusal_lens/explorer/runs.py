"""What the explorer shows of a run: its prompts and, once a method, every prompt's projection.

Knows how to read them from a run folder and keeps them in memory. Never writes, and knows no page.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.shards import read_manifest
from refusal_lens.activations.store import load_hook_point
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.plots.parts import Parts, ways_to_split
from refusal_lens.plots.style import named
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.groups import find_groups
from refusal_lens.runs.compare import Run, open_runs
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.separation import Separation, validate

N_RESAMPLES = 20
"""The page shows no intervals, which is what more would be for."""

METHODS = (DIFFERENCE_OF_MEANS, "off_harmless_mean", "pca_centred", "pca_paired", "lda")
"""Ways to fit that take no more than seconds at all places of a run."""


SPLITS = ("class", "outcome")
"""What prompts can be told apart by; the latter where the run has answers."""


@dataclass(frozen=True, eq=False)
class Projected:
    """A method's projections of a run, and the scores of every place (one row each)."""

    projections: Projections
    scores: pd.DataFrame

    def numbers(
        self, hook_point: str, position: str, *, is_cosine: bool
    ) -> Float[Tensor, " n_prompts"]:
        """Return every prompt's projection, or cosine, at one place."""
        row, column = self.projections.place(hook_point, position)
        return self._grid(is_cosine)[:, row, column].double()

    def threshold(self, hook_point: str, position: str, *, is_cosine: bool) -> float:
        """Return where a place's threshold starts.

        For projections it is the mean of the thresholds of the folds. Those are of no use for
        cosines, whose threshold starts midway between the class means.
        """
        row, column = self.projections.place(hook_point, position)
        if not is_cosine:
            return self.projections.thresholds[row, column].item()
        cosines = self.numbers(hook_point, position, is_cosine=True)
        is_harmful = self.projections.is_harmful
        return (cosines[is_harmful].mean().item() + cosines[~is_harmful].mean().item()) / 2

    def scores_of(self, hook_point: str, position: str) -> dict[str, float]:
        """Return separation and accuracy of one place."""
        row, column = self.projections.place(hook_point, position)
        at = row * len(self.projections.positions) + column
        return {name: float(self.scores[name].iloc[at]) for name in ("separation", "accuracy")}

    def _grid(self, is_cosine: bool) -> Float[Tensor, "n_prompts n_hook_points n_positions"]:
        return self.projections.cosines if is_cosine else self.projections.values


class ExploredRun:
    """A run folder, read once. Projections of a method that the run has not are fitted when asked.

    Safe to share between the threads of a server. Its name is that on the page and in addresses.

    Raises:
        RefusalLensError: It holds neither projections nor activations.
    """

    def __init__(self, run: Run) -> None:
        self.name, self.folder = run.name, run.folder
        self.sentence = run.sentence
        self.prompts: tuple[Prompt, ...] = run.prompts.prompts
        self.is_harmful = torch.tensor(run.prompts.is_harmful)
        self.class_names = run.prompts.harmless.name, run.prompts.harmful.name
        relabelling, refusal = self.folder.relabelling(), self.folder.read_refusal()
        self.rows = slice(None) if relabelling is None else list(relabelling.rows)
        answers = () if refusal is None else refusal.answers
        if relabelling is not None:
            answers = [answers[row] for row in relabelling.rows]
        self.answers = tuple(answers)
        # Where the classes are what the model did, that splits them no further.
        is_split = refusal is not None and relabelling is None
        outcomes = [answer.outcome for answer in answers] if is_split else None
        ways = ways_to_split(self.is_harmful, outcomes, named(*self.class_names))
        self.splits: dict[str, Parts] = dict(zip(SPLITS, ways, strict=False))
        self._projected: dict[str, Projected] = {}
        self._lock = threading.Lock()
        self._is_fitted = all(
            (self.folder.path / name).is_file()
            for name in ("projections.safetensors", "separation.csv")
        )
        self.run_method = self.folder.read_directions().method if self._is_fitted else METHODS[0]
        first = self.projected(self.run_method).projections
        self.hook_points, self.positions = first.hook_points, first.positions

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that can be shown: only the run's own where there are no activations."""
        others = METHODS if self.folder.activations_path.is_dir() else ()
        return tuple(dict.fromkeys([self.run_method, *others]))

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """The sites, in the order collected."""
        return tuple(dict.fromkeys(site_of(name) for name in self.hook_points))

    def hook_points_of(self, site: str) -> tuple[str, ...]:
        """Return a site's hook points, layers ascending."""
        names = [name for name in self.hook_points if site_of(name) == site]
        return tuple(sorted(names, key=lambda name: layer_of(name) or 0))

    def nearest(self, site: str, layer: int | None) -> str | None:
        """Return a site's hook point nearest to a layer; None where it has no such site."""
        names = self.hook_points_of(site)
        return min(names, key=lambda n: abs((layer_of(n) or 0) - (layer or 0)), default=None)

    @cached_property
    def categories(self) -> tuple[str, ...]:
        """The categories of the prompts, sorted."""
        return tuple(sorted({prompt.category for prompt in self.prompts}))

    @cached_property
    def best(self) -> tuple[str, str]:
        """Hook point and position to start at: the run's best place, or the first without one."""
        n_folds = self.folder.read_config().validation.n_folds
        scores = self.projected(self.run_method).scores
        best = self.folder.best(Separation.from_frame(scores, n_folds))
        return (
            (best.hook_point, best.position) if best else (self.hook_points[0], self.positions[0])
        )

    def projected(self, method: str) -> Projected:
        """Return a method's projections: from memory, from the run folder, or fitted now."""
        with self._lock:
            if method not in self._projected:
                is_written = self._is_fitted and method == self.run_method
                self._projected[method] = self._read() if is_written else self._fit(method)
            return self._projected[method]

    def _read(self) -> Projected:
        scores = self.folder.read_separation()
        projections = self.folder.read_projections()
        if not torch.equal(projections.is_harmful, self.is_harmful):
            raise RefusalLensError(
                f"{self.folder.path} has projections of other prompts than prompts.json lists "
                f"({len(projections.is_harmful)} and {len(self.is_harmful)}, or in another order). "
                f"Fit it again: refusal-lens fit {self.folder.typed}."
            )
        return Projected(projections, scores)

    def _fit(self, method: str) -> Projected:
        """Fit hook point by hook point, so that only one is in memory at a time."""
        folder, config = self.folder.activations_path, self.folder.read_config()
        key = read_manifest(folder)["key"]
        names = self._read().projections.hook_points if self._is_fitted else key["hook_points"]
        prompts = replace(self.folder.read_prompts(), grouping=config.prompts.groups)
        groups = find_groups(prompts)  # held out as the run's own method was
        parts = []
        for name in names:
            values = load_hook_point(folder, name)[self.rows, None]
            activations = Activations(
                values, self.is_harmful, (name,), tuple(key["positions"]), {}, groups
            )
            separation, projections = validate(
                activations,
                clip_quantile=config.directions.clip_quantile,
                n_folds=config.validation.n_folds,
                n_repeats=1,
                n_resamples=N_RESAMPLES,
                seed=config.validation.seed,
                method=method,
                show_progress=False,
            )
            parts.append((projections, separation.to_frame()))
        projections = _join([each for each, _ in parts])
        return Projected(projections, pd.concat([each for _, each in parts], ignore_index=True))


def _join(parts: Sequence[Projections]) -> Projections:
    """Put projections of the same prompts at different hook points side by side."""
    by_prompt = {
        name: torch.cat([getattr(part, name) for part in parts], dim=1)
        for name in ("values", "cosines", "is_called_harmful")
    }
    return replace(
        parts[0],
        **by_prompt,
        thresholds=torch.cat([part.thresholds for part in parts]),
        hook_points=tuple(name for part in parts for name in part.hook_points),
    )


def explore_runs(paths: Sequence[str | Path]) -> dict[str, ExploredRun]:
    """Open runs by name, for the explorer."""
    return {run.name: ExploredRun(run) for run in open_runs(paths)}
