"""Do the intervals cover and the p-values keep their word?  Planted prompts with known truth.

    python tests/benchmarks/coverage.py --into results.jsonl          # all; goes on if stopped
    python tests/benchmarks/coverage.py --replicates 40 --case pairs  # a few, printed

Each replicate draws activations anew, validates the direction as a run does, and compares with the
truth: the direction delivered (fitted to all prompts), scored on thousands of fresh prompts of the
same topics and of new ones. Replicates of a batch share their groups and stand beside each other
as places of one collection; p-values are drawn one by one. `--write` puts the table into
`refusal_lens/validation/README.md`.
"""

import argparse
import json
import math
import os
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from rich.console import Console
from scipy.stats import kstest

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import fit_directions
from refusal_lens.prompts.groups import Groups
from refusal_lens.validation.nulls import draw_nulls
from refusal_lens.validation.scores import score
from refusal_lens.validation.separation import validate

README = Path(__file__).parents[2] / "refusal_lens" / "validation" / "README.md"
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"
SCORED = ("auroc", "accuracy", "cohens_d", "separation")
N_FRESH = 2000
N_BATCH = 20
"""Replicates that share their groups."""


@dataclass(frozen=True)
class Case:
    """How prompts are planted: topics of each class, prompts of each, and what they share.

    `effect` is the distance of the classes, `topic`, `pair` and `frame` the deviations (per
    coordinate) of what topics, twins and frames share; noise has one.
    """

    n_topics: tuple[int, int]
    n_each: int
    d_model: int = 64
    effect: float = 1.5
    topic: float = 0.0
    pair: float = 0.0
    frame: float = 0.0
    n_frames: int = 0
    copies: int = 1
    freedom: float = math.inf
    atypical: float = 0.0
    massive: float = 0.0


def _single(n: int, **options: float) -> Case:
    return Case((n, n), 1, **options)  # type: ignore[arg-type]


CASES = {
    "independent, 8 a side": _single(8, effect=3.0),
    "independent, 30 a side": _single(30),
    "independent, 30 a side, d 896": _single(30, d_model=896, effect=4.0),
    "independent, 30 a side, d 4096": _single(30, d_model=4096, effect=6.0),
    "independent, 100 a side, d 896": _single(100, d_model=896, effect=3.0),
    "independent, 320 a side": _single(320, effect=1.0),
    "independent, nearly perfect": _single(50, effect=5.0),
    "independent, perfect, 2 % atypical": _single(50, effect=8.0, atypical=0.02),
    "unequal classes, 30 and 150": Case((30, 150), 1),
    "heavy tails (t with 3)": _single(50, effect=3.0, freedom=3.0),
    "one massive coordinate": _single(50, effect=2.0, massive=30.0),
    "pairs, 30": _single(30, pair=2.0),
    "pairs, 160, d 896": _single(160, pair=1.0, d_model=896, effect=2.0),
    "near-duplicates, 15 of 4": Case((15, 15), 4, copies=4),
    "topics, 8 a side of 12": Case((8, 8), 12, topic=0.5, effect=2.0),
    "topics, 16 a side of 12": Case((16, 16), 12, topic=0.5, effect=2.0),
    "topics, 6 and 20 of 8": Case((6, 20), 8, topic=0.5, effect=2.0),
    "twins in topics, 8 of 12": Case((8, 8), 12, topic=0.6, pair=0.8),
    "twins in topics, 16 of 12": Case((16, 16), 12, topic=0.6, pair=0.8),
    "twins in topics, 16 of 12, no topic effect": Case((16, 16), 12, pair=0.8),
    "twins in topics, 16 of 2": Case((16, 16), 2, topic=0.6, pair=0.8),
    "twins in topics, 16 of 12, d 896": Case(
        (16, 16), 12, topic=0.4, pair=0.5, d_model=896, effect=4.0
    ),
    "topics x frames that differ by class": Case(
        (16, 16), 12, topic=0.4, frame=0.4, n_frames=12, effect=2.5
    ),
}


class World:
    """One population: its direction, and topics and frames that can be drawn from again."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.rng = case, np.random.default_rng(seed)
        # Which prompt has which frame is the same in all replicates of a batch.
        self.layout = np.random.default_rng(seed // N_BATCH)
        self.unit = self.rng.normal(size=case.d_model)
        self.unit /= np.linalg.norm(self.unit)
        self.offset = self.rng.normal(size=case.d_model) * 2
        self.spread = np.ones(case.d_model)
        self.spread[0] += case.massive
        self.topics = [self._draw(n, case.topic) for n in case.n_topics]
        self.frames = self._frames()

    def _draw(self, n: int, deviation: float) -> np.ndarray:
        return (
            deviation * self.rng.normal(size=(n, self.case.d_model))
            if deviation
            else (np.zeros((n, self.case.d_model)))
        )

    def _frames(self) -> list[np.ndarray]:
        n = max(1, self.case.n_frames)
        return [self._draw(n, self.case.frame) for _ in (0, 1)]

    def prompts(
        self,
        side: int,
        topic: np.ndarray,
        frame: np.ndarray,
        shared: np.ndarray,
        topics: np.ndarray,
        frames: np.ndarray,
    ) -> np.ndarray:
        """Draw one prompt of each topic and frame named; `shared` is what twins have in common."""
        n, d = len(topic), self.case.d_model
        noise = self.rng.normal(size=(n, d))
        if math.isfinite(self.case.freedom):
            chi = self.rng.chisquare(self.case.freedom, size=(n, 1)) / self.case.freedom
            noise /= np.sqrt(chi)
        sign = np.full(n, 1.0 if side == 0 else -1.0)
        sign[self.rng.random(n) < self.case.atypical] *= -1
        effect = self.case.effect / 2 * sign[:, None] * self.unit
        return self.offset + effect + topics[topic] + frames[frame] + shared + noise * self.spread

    def sample(self) -> Activations:
        """Draw the prompts of a run, with their groups."""
        case, parts, labels, groups = self.case, [], [], []
        n_pairs = min(case.n_topics) * case.n_each
        shared = self._draw(n_pairs, case.pair)
        for side in (0, 1):
            topic = np.repeat(np.arange(case.n_topics[side]), case.n_each // case.copies)
            n = len(topic)
            frame = self.layout.integers(0, max(1, case.n_frames), n)
            twin = shared[:n] if case.pair else np.zeros((n, case.d_model))
            values = self.prompts(side, topic, frame, twin, self.topics[side], self.frames[side])
            pair = np.arange(n) + (0 if case.pair else side * 10**6)
            values, topic, frame, pair = (
                np.repeat(each, case.copies, axis=0) for each in (values, topic, frame, pair)
            )
            if case.copies > 1:
                values = values + 0.05 * self.rng.normal(size=values.shape)
            parts.append(values)
            labels += [side == 0] * len(values)
            groups.append((pair, topic + side * 10**6, frame + side * 10**6))
        return _activations(np.concatenate(parts), labels, groups, self.case)

    def fresh(self, unit: np.ndarray, is_new: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Project fresh prompts: projections, cosines and labels."""
        case, values = self.case, []
        for side in (0, 1):
            if is_new:
                topics, topic = self._draw(N_FRESH, case.topic), np.arange(N_FRESH)
                frames = self._draw(max(1, case.n_frames) * 200, case.frame)
            else:
                topics, frames = self.topics[side], self.frames[side]
                topic = self.rng.integers(0, len(topics), N_FRESH)
            frame = self.rng.integers(0, len(frames), N_FRESH)
            # A fresh twin differs from the other one by what the pair shares, drawn anew.
            shared = self._draw(N_FRESH, case.pair)
            values.append(self.prompts(side, topic, frame, shared, topics, frames))
        every = np.concatenate(values)
        projected = every @ unit
        return projected, projected / np.linalg.norm(every, axis=1), np.arange(len(every)) < N_FRESH


def _activations(values: np.ndarray, labels: list[bool], groups: list, case: Case) -> Activations:
    sides = zip(*groups, strict=True)
    pair, topic, frame = (torch.from_numpy(np.concatenate(each)) for each in sides)
    alone = torch.arange(len(values))
    has_topics = case.n_each > case.copies
    found = Groups(
        pair,
        topic if has_topics else pair,
        frame if case.n_frames else alone,
        dict.fromkeys(("pair", "topic", "frame"), "given"),
    )
    tensor = torch.from_numpy(values).float()[:, None, None]
    return Activations(
        tensor, torch.tensor(labels), ("blocks.0.hook_resid_post",), ("last",), {}, found
    )


def stack(worlds: list[World]) -> Activations:
    """Draw a sample of each world, as the places of one collection."""
    samples = [world.sample() for world in worlds]
    names = tuple(f"blocks.{number}.hook_resid_post" for number in range(len(worlds)))
    values = torch.cat([sample.values for sample in samples], dim=1)
    return replace(samples[0], values=values, hook_points=names)


def truths(
    world: World, values: torch.Tensor, is_harmful: torch.Tensor, unit: np.ndarray, kind: str
) -> dict[str, float]:
    """Score the direction delivered on fresh prompts, in the sample's shares of the classes."""
    means = [(values[side].double().numpy() @ unit).mean() for side in (is_harmful, ~is_harmful)]
    projected, cosines, labels = world.fresh(unit, kind == "new")
    margins = torch.from_numpy(projected - np.mean(means))
    harmful = torch.from_numpy(labels)
    scores = score(torch.from_numpy(cosines), margins, harmful)
    right = (margins > 0) == harmful
    share = is_harmful.double().mean()
    accuracy = share * right[harmful].double().mean() + (1 - share) * (
        right[~harmful].double().mean()
    )
    return {name: scores[name].item() for name in SCORED} | {"accuracy": accuracy.item()}


def measure(case: Case, seed: int) -> list[dict[str, float]]:
    """Draw a batch; return values, truths and ends of intervals of each replicate."""
    worlds = [World(case, seed + number) for number in range(N_BATCH)]
    activations = stack(worlds)
    separation, _ = validate(activations, seed=seed, show_progress=False)
    directions = fit_directions(activations)
    rows: list[dict[str, float]] = [{} for _ in worlds]
    for kind, scores in (("same", separation.scores), ("new", separation.new_topics)):
        if not scores:
            continue
        for number, (world, row) in enumerate(zip(worlds, rows, strict=True)):
            unit = directions[activations.hook_points[number], "last"].unit.double().numpy()
            values = activations.values[:, number, 0]
            true = truths(world, values, activations.is_harmful, unit, kind)
            for name in SCORED:
                one, key = scores[name], f"{kind} {name}"
                value, low, high = (
                    getattr(one, part)[number, 0].item() for part in ("value", "low", "high")
                )
                row |= {f"{key} value": value, f"{key} truth": true[name]}
                row |= {
                    f"{key} width": high - low,
                    f"{key} covers": float(low <= true[name] <= high),
                }
    return rows


def p_values(case: Case, seed: int) -> list[float]:
    """Draw a batch and return its p-values, each against folds and labellings of its own.

    Places of one collection share them, so that their p-values rise and fall together and are no
    sample of independent ones.
    """
    return [
        draw_nulls(World(case, each).sample(), n_permutations=199, seed=each, show_progress=False)
        .p_values()["p_value"]
        .item()
        for each in range(seed, seed + N_BATCH)
    ]


def run_batch(name: str, batch: int) -> dict[str, list]:
    """Measure one batch of a case, with its effect and without."""
    case, seed = CASES[name], (zlib.crc32(name.encode()) % 10**6 + batch) * N_BATCH
    without = replace(case, effect=0.0, atypical=0.0)
    return {
        "rows": measure(case, seed),
        "p with effect": p_values(case, seed),
        "p without": p_values(without, seed),
    }


def run(names: list[str], n_batches: int, into: Path | None, seconds: float) -> dict[str, list]:
    """Run what `into` does not hold yet, until the time is over; return batches by case."""
    done: dict[str, list] = {name: [] for name in names}
    if into is not None and into.is_file():
        for line in into.read_text(encoding="utf-8").splitlines():
            kept = json.loads(line)
            if kept["case"] in done:
                done[kept["case"]].append(kept)
    start = time.monotonic()
    for batch in range(n_batches):
        for name in names:
            if len(done[name]) > batch or time.monotonic() - start > seconds:
                continue
            result = {"case": name, **run_batch(name, batch)}
            done[name].append(result)
            if into is not None:
                with into.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
    return done


def gather(batches: list) -> dict[str, np.ndarray]:
    """Join the batches of a case into one array a number."""
    rows = [row for batch in batches for row in batch["rows"]]
    joined = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    for key in ("p with effect", "p without"):
        joined[key] = np.array([p for batch in batches for p in batch[key]])
    return joined


def table(done: dict[str, list]) -> list[str]:
    """Return the lines of two Markdown tables."""
    results = {name: gather(batches) for name, batches in done.items() if batches}
    return [*_coverage_lines(results), "", *_error_lines(results)]


def _coverage_lines(results: dict) -> list[str]:
    lines = [
        "| prompts | held out | AUROC true / ours | given | covered | width | accuracy | d' | "
        "separation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in results:
        for kind, said in (("same", "prompts"), ("new", "topics")):
            one = results[name]
            if f"{kind} auroc value" not in one:
                continue
            is_given = ~np.isnan(one[f"{kind} auroc width"])
            cells = [
                f"{one[f'{kind} {score} covers'][is_given].mean():.3f}"
                if is_given.any()
                else "none"
                for score in SCORED
            ]
            width = np.nanmean(one[f"{kind} auroc width"]) if is_given.any() else np.nan
            lines.append(
                f"| {name} | {said} | {one[f'{kind} auroc truth'].mean():.3f} / "
                f"{one[f'{kind} auroc value'].mean():.3f} | {is_given.mean():.2f} | {cells[0]} | "
                f"{width:.3f} | {' | '.join(cells[1:])} |"
            )
    return lines


def _error_lines(results: dict) -> list[str]:
    lines = [
        "| prompts | p <= .05 without effect | Kolmogorov-Smirnov | with effect (power) |",
        "|---|---|---|---|",
    ]
    for name, one in results.items():
        null, real = one["p without"], one["p with effect"]
        if np.isnan(null).all():
            lines.append(f"| {name} | no p-value is given | | |")
            continue
        # p is a multiple of 1 / 200: a uniform number within each step makes it continuous.
        smooth = null - np.random.default_rng(0).random(len(null)) / 200
        fit = kstest(smooth, "uniform").pvalue
        shares = (null <= 0.05).mean(), (real <= 0.05).mean()
        lines.append(f"| {name} | {shares[0]:.3f} | {fit:.2f} | {shares[1]:.2f} |")
    return lines


def main() -> None:
    """Print the tables, and write them where they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--case", default="")
    parser.add_argument("--into", type=Path, help="where batches are kept, to go on from")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no batch after them")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in CASES if options.case in name]
    done = run(names, options.replicates // N_BATCH, options.into, options.seconds)
    lines = table(done)
    n_least = N_BATCH * min(len(batches) for batches in done.values())
    error = 1.96 * math.sqrt(0.05 * 0.95 / max(1, n_least))
    lines.insert(
        0,
        f"{n_least} replicates a line or more; Monte-Carlo error of a share near .95 or .05: "
        f"{error:.3f} (95 %).\n",
    )
    Console(width=200).print("\n".join(lines), markup=False, highlight=False)
    if options.write:
        before, rest = README.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        README.write_text(f"{before}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
