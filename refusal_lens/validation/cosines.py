"""Directions beside each other: methods, layers, sites, positions, categories, prompt sets, models.

Knows cosines, their noise ceilings and transfer. Does not know run folders, and does not draw.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, Directions, clip, normalise
from refusal_lens.directions.methods import fit_grid
from refusal_lens.directions.subspaces import fit_categories
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.learning_curve import draw_disjoint
from refusal_lens.validation.many_fits import Place, clip_rows
from refusal_lens.validation.scores import auroc
from refusal_lens.validation.separation import held_out_scores
from refusal_lens.validation.stability import spearman_brown
from refusal_lens.validation.units import Units, widest_units

COSINE_COLUMNS = ("kind", "hook_point", "position", "a", "b", "cosine", "ceiling")


# --- methods ----------------------------------------------------------------------------------


def compare_methods(
    activations: Activations,
    folds: Int[Tensor, " n_prompts"],
    methods: Sequence[str],
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
) -> pd.DataFrame:
    """Score several ways to fit at every place, out of sample, on the same folds.

    Each method is scored clipped at this quantile, and as it is; None scores only the latter. Give
    few places where methods are slow.

    Returns:
        One row a method, clip and place: the scores, and `cosine_to_difference_of_means` of the
        unit directions fitted to all prompts, clipped alike.
    """
    means, _ = fit_grid(activations.values, activations.is_harmful)
    clips = [None] if clip_quantile is None else [clip_quantile, None]
    tables = []
    for method in methods:
        vectors, is_kept = fit_grid(activations.values, activations.is_harmful, method)
        for quantile in clips:
            units = [normalise(clip(each.nan_to_num(), quantile)) for each in (vectors, means)]
            columns = held_out_scores(activations, folds, quantile, method) | {
                "cosine_to_difference_of_means": (units[0] * units[1]).sum(dim=-1)
            }
            table = place_frame(activations.hook_points, activations.positions)
            table = table.assign(**{name: one.flatten().numpy() for name, one in columns.items()})
            table.insert(0, "method", method)
            table.insert(1, "is_clipped", quantile is not None)
            tables.append(table[is_kept.flatten().numpy()])
    return pd.concat(tables, ignore_index=True)


# --- cosines ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NamedDirections:
    """Unit directions to be compared, with how reliable each is.

    `reliability` is the cosine to expect between the direction and one fitted to as many other
    prompts, in [0, 1]; NaN where it is not known.
    """

    names: tuple[str, ...]
    units: Float[Tensor, "n d_model"]
    reliability: Float[Tensor, " n"]


def cosine_table(
    kind: str, directions: NamedDirections, *, hook_point: str = "", position: str = ""
) -> pd.DataFrame:
    """Return the cosine between every two directions, both ways round, and the most to expect.

    `kind` says what differs between them: layers, sites, positions, methods, ...; `hook_point` and
    `position` where all of them stand, if they do.

    Returns:
        Long form: `kind`, `hook_point`, `position`, `a`, `b`, `cosine`, and `ceiling`, the cosine
        that the same two directions would have if nothing but noise told them apart.

    Source:
        Spearman 1904, attenuation by unreliability: ceiling = sqrt(reliability_a reliability_b).
    """
    cosines = (directions.units @ directions.units.T).clamp(-1, 1)
    ceilings = (directions.reliability[:, None] * directions.reliability).sqrt()
    # A direction agrees with itself, noise and all.
    ceilings.diagonal()[~directions.reliability.isnan()] = 1.0
    rows = [
        (kind, hook_point, position, a, b, cosines[i, j].item(), ceilings[i, j].item())
        for i, a in enumerate(directions.names)
        for j, b in enumerate(directions.names)
    ]
    return pd.DataFrame(rows, columns=list(COSINE_COLUMNS))


def reliabilities(
    activations: Activations, *, clip_quantile: float | None, seed: int = 0
) -> Float[Tensor, "n_hook_points n_positions"]:
    """Return how far each direction would agree with one from as many other prompts, in [0, 1].

    Measured on directions clipped as the ones that are compared: `HALVES` times the prompts are
    halved, by topics where there are some to leave out, else by pairs, and the mean cosine of the
    halves' directions foretells that of all prompts.

    Source:
        Spearman-Brown, see `stability.spearman_brown`.
    """
    is_harmful = activations.is_harmful
    units = widest_units(is_harmful, activations.groups)
    if min(units.n_per_class) < 2:
        return torch.zeros(activations.values.shape[1:3], dtype=torch.float64)
    generator = np.random.default_rng(seed)
    halves = draw_disjoint(is_harmful, units, None, HALVES, generator)
    found = torch.zeros(activations.values.shape[1:3], dtype=torch.float64)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            centred = Place.of(activations.values[:, row, column]).centred
            found[row, column] = _mean_cosine(centred, halves, clip_quantile)
    return spearman_brown(found)


HALVES = 40
"""Halvings behind a reliability."""


def _mean_cosine(
    centred: Float[Tensor, "n_prompts d_model"],
    halves: tuple[Tensor, Tensor],
    clip_quantile: float | None,
) -> float:
    """Return the mean cosine between the clipped directions of halves, given by their weights."""
    first, second = (normalise(clip_rows(half @ centred, clip_quantile)) for half in halves)
    return float((first * second).sum(dim=-1).mean())


def place_cosines(
    directions: Directions, reliability: Float[Tensor, "n_hook_points n_positions"]
) -> pd.DataFrame:
    """Compare the directions of one run: layers of a site, sites of a layer, positions.

    Returns what `cosine_table` does; `a` and `b` are hook points, for kind `positions` positions.
    """
    hook_points, positions = directions.hook_points, directions.positions
    tables = []
    for column, position in enumerate(positions):
        for kind, key in (("layers", site_of), ("sites", layer_of)):
            groups: dict[object, list[int]] = {}
            for row, hook_point in enumerate(hook_points):
                if directions.is_kept[row, column]:
                    groups.setdefault(key(hook_point), []).append(row)
            for rows in (rows for rows in groups.values() if len(rows) > 1):
                named = _named(directions, reliability, [(row, column) for row in rows], 0)
                tables.append(cosine_table(kind, named, position=position))
    for row, hook_point in enumerate(hook_points):
        columns = directions.is_kept[row].nonzero().flatten().tolist()
        if len(columns) > 1:
            named = _named(directions, reliability, [(row, column) for column in columns], 1)
            tables.append(cosine_table("positions", named, hook_point=hook_point))
    return pd.concat(tables, ignore_index=True) if tables else empty_cosines()


def _named(
    directions: Directions,
    reliability: Float[Tensor, "n_hook_points n_positions"],
    places: Sequence[tuple[int, int]],
    naming: int,
) -> NamedDirections:
    """Take directions out of the grid, named by their hook point (0) or position (1)."""
    labels = (directions.hook_points, directions.positions)
    rows, columns = (torch.tensor(axis) for axis in zip(*places, strict=True))
    return NamedDirections(
        tuple(labels[naming][place[naming]] for place in places),
        normalise(clip(directions.vectors[rows, columns], directions.clip_quantile)),
        reliability[rows, columns],
    )


def method_cosines(
    activations: Activations, methods: Sequence[str], *, clip_quantile: float | None
) -> pd.DataFrame:
    """Compare the directions that several methods give at one place."""
    vectors, names = [], []
    for method in methods:
        fitted, is_kept = fit_grid(activations.values, activations.is_harmful, method)
        if is_kept[0, 0]:
            vectors.append(normalise(clip(fitted[0, 0], clip_quantile)))
            names.append(method)
    if not names:
        return empty_cosines()
    unknown = torch.full((len(names),), torch.nan, dtype=torch.float64)
    named = NamedDirections(tuple(names), torch.stack(vectors), unknown)
    place = {"hook_point": activations.hook_points[0], "position": activations.positions[0]}
    return cosine_table("methods", named, **place)


def category_cosines(
    activations: Activations, prompts: Sequence[Prompt], *, clip_quantile: float | None
) -> pd.DataFrame:
    """Compare the directions of the categories of harm at one place.

    Categories have few prompts, and share the harmless ones: their ceiling takes the noise of
    their own prompts alone, since that of the others is the same in all of them.
    """
    values, labels = activations.values[:, 0, 0].double(), activations.is_harmful
    fitted = fit_categories(values, labels, prompts)
    if len(fitted.categories) < 2:
        return empty_cosines()
    names = [prompt.category for prompt in prompts]
    harmless, generator = values[~labels].mean(dim=0), np.random.default_rng(0)
    found = []
    for category in fitted.categories:
        rows = (torch.tensor([name == category for name in names]) & labels).nonzero().flatten()
        pairs = Units.of(labels[rows], activations.groups.pair[rows])
        halves = draw_disjoint(labels[rows], pairs, None, HALVES, generator)
        centred = (values[rows] - harmless).float()
        is_halved = pairs.n_units > 1
        found.append(_mean_cosine(centred, halves, clip_quantile) if is_halved else 0.0)
    reliability = spearman_brown(torch.tensor(found, dtype=torch.float64))
    named = NamedDirections(
        fitted.categories,
        normalise(clip(fitted.vectors, clip_quantile)),
        reliability,
    )
    place = {"hook_point": activations.hook_points[0], "position": activations.positions[0]}
    return cosine_table("categories", named, **place)


def square_cosines(
    table: pd.DataFrame,
) -> tuple[list[str], Float[Tensor, "n n"], Float[Tensor, "n n"]]:
    """Turn a long table of cosines into names, cosines and ceilings."""
    names = list(dict.fromkeys(table["a"]))

    def grid(column: str) -> Tensor:
        wide = table.pivot_table(index="a", columns="b", values=column, dropna=False)
        return torch.from_numpy(
            wide.reindex(index=names, columns=names).to_numpy(dtype="float64", copy=True)
        )

    return names, grid("cosine"), grid("ceiling")


def empty_cosines() -> pd.DataFrame:
    """Return the table of cosines without a row."""
    return pd.DataFrame(columns=list(COSINE_COLUMNS))


# --- from one prompt set to another -----------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Sample:
    """Activations of one set of prompts at one place, and the scores held out within it."""

    values: Float[Tensor, "n_prompts d_model"]
    is_harmful: Bool[Tensor, " n_prompts"]
    texts: tuple[str, ...]
    unit: Float[Tensor, " d_model"]
    held_out: dict[str, float]


def transfer_between(samples: Mapping[str, Sample], place: tuple[str, str]) -> pd.DataFrame:
    """Test the direction of each prompt set on every other, at one place of one model.

    Prompts that helped to fit a direction do not test it: texts that both sets hold are left out,
    and on the diagonal stand the cross-fitted scores.

    Returns:
        One row a pair: `kind` (prompt_set), `fit_on`, `test_on`, the place, `n_tested`, `auroc`,
        `separation`; NaN where fewer than two prompts of a class are left.
    """
    rows = []
    for fit_on, test_on in itertools.product(samples, samples):
        scores = (
            samples[fit_on].held_out | {"n_tested": len(samples[fit_on].texts)}
            if fit_on == test_on
            else _test(samples[fit_on], samples[test_on])
        )
        rows.append(
            {"kind": "prompt_set", "fit_on": fit_on, "test_on": test_on}
            | {"hook_point": place[0], "position": place[1]}
            | {name: scores[name] for name in ("n_tested", "auroc", "separation")}
        )
    return pd.DataFrame(rows)


def _test(fitted: Sample, tested: Sample) -> dict[str, float | int]:
    known = set(fitted.texts)
    is_new = torch.tensor([text not in known for text in tested.texts])
    labels = tested.is_harmful[is_new]
    if min(int(labels.sum()), int((~labels).sum())) < 2:
        return {"n_tested": int(is_new.sum()), "auroc": torch.nan, "separation": torch.nan}
    values = tested.values[is_new].double()
    projected = values @ fitted.unit.double()
    cosines = projected / values.norm(dim=-1)
    return {
        "n_tested": len(labels),
        "auroc": auroc(projected, labels).item(),
        "separation": (cosines[labels].mean() - cosines[~labels].mean()).item(),
    }
