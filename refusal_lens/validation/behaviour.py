"""Harmful is not refused: a direction of each, from what the prompts are and what the model did.

Knows labels, activations and projections. Does not know how an answer is judged.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import normalise
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet, PromptSet
from refusal_lens.prompts.positions import INSTRUCTION_LAST
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.scores import auroc
from refusal_lens.validation.units import pair_units

MIN_CELL = 5
"""A class tells refused from answered when it has at least so many of each."""

MIN_LABELLED = 10
"""Refused prompts, and answered ones, that a direction of behaviour is fitted to at least."""

N_HALVES = 20
N_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Behaviour:
    """What prompts are, and what the model did with them.

    `is_known` is false of prompts that were neither refused nor answered: they are in no fit.
    """

    is_harmful: Bool[Tensor, " n_prompts"]
    is_refused: Bool[Tensor, " n_prompts"]
    is_known: Bool[Tensor, " n_prompts"]

    @classmethod
    def of(cls, is_harmful: Bool[Tensor, " n_prompts"], outcomes: Sequence[str]) -> "Behaviour":
        """Read behaviour off judged answers, in the order of the prompts."""
        refused, answered = (
            torch.tensor([outcome == wanted for outcome in outcomes])
            for wanted in ("refused", "answered")
        )
        return cls(is_harmful, refused, refused | answered)

    def count(self, is_harmful: bool, is_refused: bool) -> int:
        """Count one cell of the two by two."""
        of_class = self.is_known & (self.is_harmful == is_harmful)
        return int((of_class & (self.is_refused == is_refused)).sum())

    @property
    def can_be_told_apart(self) -> bool:
        """Whether harm can be seen apart from refusal: a class and a behaviour hold both labels."""
        n = {(h, r): self.count(h, r) for h in (True, False) for r in (True, False)}
        in_a_class = any(min(n[h, True], n[h, False]) >= MIN_CELL for h in (True, False))
        in_a_behaviour = any(min(n[True, r], n[False, r]) >= MIN_CELL for r in (True, False))
        return in_a_class and in_a_behaviour

    def to_frame(self) -> pd.DataFrame:
        """Return the two by two, and beside it how many prompts of a class are in neither."""
        return pd.DataFrame(
            {
                "is_harmful": is_harmful,
                "refused": self.count(is_harmful, True),
                "answered": self.count(is_harmful, False),
                "neither": int((~self.is_known & (self.is_harmful == is_harmful)).sum()),
            }
            for is_harmful in (True, False)
        )

    def contrast(
        self, of_harm: bool, is_in: Bool[Tensor, " n_prompts"] | None = None
    ) -> Float[Tensor, " n_prompts"]:
        """Return the weights whose sum of activations is one label's difference, the other fixed.

        Harmful less harmless prompts among those that were refused alike, or refused less answered
        ones within a class, so that one label does not stand in for the other. Fitted to the
        prompts that are in, None being all; zeros where no stratum holds both.

        Source:
            The coefficients of both labels in a least-squares fit of every coordinate: strata
            weigh `n1 n0 / (n1 + n0)`, Angrist 1998, Econometrica 66, 249-288, eq. 12.
        """
        label, stratum = self.is_harmful, self.is_refused
        if not of_harm:
            label, stratum = stratum, label
        kept = self.is_known if is_in is None else self.is_known & is_in
        weights = torch.zeros(len(label), dtype=torch.float64)
        total = 0.0
        for side in (True, False):
            first, second = (
                kept & (stratum == side) & (label == of_label) for of_label in (True, False)
            )
            n_first, n_second = int(first.sum()), int(second.sum())
            if not n_first or not n_second:
                continue
            weight = n_first * n_second / (n_first + n_second)
            weights += weight * (first.double() / n_first - second.double() / n_second)
            total += weight
        return weights / total if total else weights


@dataclass(frozen=True)
class Relabelling:
    """Refused prompts in the place of harmful ones and answered ones in that of harmless ones.

    `rows` are those of the prompts kept, refused first; what was neither is left out.
    """

    rows: tuple[int, ...]
    n_refused: int

    @classmethod
    def of(cls, outcomes: Sequence[str]) -> "Relabelling":
        """Sort prompts by what the model did with them.

        Raises:
            RefusalLensError: Too few were refused, or too few answered.
        """
        refused, answered = (
            [row for row, outcome in enumerate(outcomes) if outcome == wanted]
            for wanted in ("refused", "answered")
        )
        for name, rows in (("refused", refused), ("answered", answered)):
            if len(rows) < MIN_LABELLED:
                raise RefusalLensError(
                    f"directions.labels is behaviour, which needs at least {MIN_LABELLED} refused "
                    f"and {MIN_LABELLED} answered prompts, but of {len(outcomes)} only "
                    f"{len(rows)} were {name}. Use prompts of which the model refuses a part, or "
                    "set directions.labels to harm."
                )
        return cls((*refused, *answered), len(refused))

    def of_prompts(self, prompts: ContrastSet) -> ContrastSet:
        """Return the prompts kept, by what the model did.

        Raises:
            RefusalLensError: Prompts of both files bear one id and come to lie in one class.
        """
        kept = [prompts.prompts[row] for row in self.rows]
        sides = kept[: self.n_refused], kept[self.n_refused :]
        for side in sides:
            twice = [name for name, n in Counter(prompt.id for prompt in side).items() if n > 1]
            if twice:
                raise RefusalLensError(
                    "directions.labels is behaviour, which puts prompts of both files into one "
                    f"class, but the id {twice[0]!r} is in both. Give every prompt its own id."
                )
        refused, answered = (
            PromptSet(name, tuple(side))
            for name, side in zip(("refused", "answered"), sides, strict=True)
        )
        return replace(prompts, harmful=refused, harmless=answered)

    def of_activations(self, activations: Activations) -> Activations:
        """Return the activations of the prompts kept, labelled by what the model did.

        Pairs, topics and frames stay what they were: prompts that depend on each other are dealt
        together whichever class they are in now.
        """
        kept = activations.take(list(self.rows))
        return replace(kept, is_harmful=torch.arange(len(self.rows)) < self.n_refused)


@dataclass(frozen=True, eq=False)
class TwoDirections:
    """A direction of harm and one of refusal at every place, and every prompt along both.

    Projections are held out: on directions fitted without the prompt's fold; 0 lies midway between
    the two labels' means.
    """

    behaviour: Behaviour
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    units: Float[Tensor, "2 n_hook_points n_positions d_model"]
    """Harm, then refusal, fitted to all."""
    middles: Float[Tensor, "2 n_hook_points n_positions"]
    projections: Float[Tensor, "2 n_prompts n_hook_points n_positions"]
    cosines: Float[Tensor, "n_hook_points n_positions"]
    ceilings: Float[Tensor, "n_hook_points n_positions"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place.

        `cosine` is of the two directions of disjoint halves of the prompts, and `ceiling` the most
        that noise would leave of one and the same direction. `harm_auroc` and `refusal_auroc` are
        each direction's for its own label with the other fixed; `harm_tells_refusal` and
        `refusal_tells_harm` for the other's.
        """
        frame = place_frame(self.hook_points, self.positions)
        harm, refusal = self.projections
        scores = {
            "cosine": self.cosines,
            "ceiling": self.ceilings,
            "harm_auroc": self._auroc(harm, of_harm=True),
            "harm_tells_refusal": self._auroc(harm, of_harm=False),
            "refusal_auroc": self._auroc(refusal, of_harm=False),
            "refusal_tells_harm": self._auroc(refusal, of_harm=True),
        }
        return frame.assign(**{name: values.flatten().tolist() for name, values in scores.items()})

    def _auroc(
        self, values: Float[Tensor, "n_prompts n_hook_points n_positions"], *, of_harm: bool
    ) -> Float[Tensor, "n_hook_points n_positions"]:
        """Average a label's AUROC over the strata of the other, by their pairs of prompts."""
        both = self.behaviour
        label, stratum = both.is_harmful, both.is_refused
        if not of_harm:
            label, stratum = stratum, label
        total, n_pairs = torch.zeros(values.shape[1:], dtype=torch.float64), 0
        for side in (True, False):
            rows = both.is_known & (stratum == side)
            n_first = int(label[rows].sum())
            pairs = n_first * (int(rows.sum()) - n_first)
            if pairs:
                total, n_pairs = total + pairs * auroc(values[rows], label[rows]), n_pairs + pairs
        return total / n_pairs

    def best(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Choose where harm is read, and where refusal is, by their AUROC.

        Harm at the last token of the request and refusal at the last of all, where these were
        collected; anywhere else where not.
        """
        table = self.to_frame()
        places = []
        for name, wanted in (("harm_auroc", INSTRUCTION_LAST), ("refusal_auroc", "last")):
            scores = torch.tensor(table[name].to_numpy()).reshape(self.cosines.shape)
            if wanted in self.positions:
                others = [i for i, each in enumerate(self.positions) if each != wanted]
                scores[:, others] = -1
            row, column = divmod(int(scores.nan_to_num(-1).argmax()), len(self.positions))
            places.append((row, column))
        return places[0], places[1]


def two_directions(
    activations: Activations, behaviour: Behaviour, seed: int = 0
) -> TwoDirections | None:
    """Fit a direction of harm and one of refusal, each with the other label held fixed.

    None where the labels are too much alike to be told apart: every class and every behaviour
    needs both labels somewhere, `MIN_CELL` times.
    """
    if not behaviour.can_be_told_apart:
        return None
    units = pair_units(behaviour.is_harmful, activations.groups)
    folds = assign_folds(behaviour.is_harmful, N_FOLDS, seed, units)
    numbers = range(int(folds.max()) + 1)
    fits = [torch.ones(len(folds), dtype=torch.bool), *(folds != fold for fold in numbers)]
    weights = torch.stack(
        [
            behaviour.contrast(of_harm, is_in)
            for of_harm in (True, False)
            for is_in in (*fits, *_halves(units.of_prompt, seed))
        ]
    )
    grid = activations.values.shape[1:]
    values = activations.values.flatten(1).double()
    vectors = (weights @ values).unflatten(1, grid).unflatten(0, (2, -1))
    fitted = normalise(vectors[:, : len(fits)])
    projected = torch.einsum("nhpd,kshpd->ksnhp", activations.values.double(), fitted)
    middles = torch.stack(
        [_middles(behaviour, projected[number], fits, number == 0) for number in (0, 1)]
    )
    rows = torch.arange(len(folds))
    centred = projected - middles[:, :, None]
    halves = normalise(vectors[:, len(fits) :]).unflatten(1, (-1, 2))
    return TwoDirections(
        behaviour,
        activations.hook_points,
        activations.positions,
        fitted[:, 0],
        middles[:, 0],
        centred[:, folds + 1, rows],
        *_compare(halves),
    )


def _halves(unit: Int[Tensor, " n_prompts"], seed: int) -> list[Bool[Tensor, " n_prompts"]]:
    """Cut the prompts in half at random, again and again; units stay whole."""
    generator = np.random.default_rng(seed)
    n_units = int(unit.max()) + 1
    halves = []
    for _ in range(N_HALVES):
        chosen = torch.zeros(n_units, dtype=torch.bool)
        chosen[torch.from_numpy(generator.permutation(n_units)[: n_units // 2])] = True
        halves += [chosen[unit], ~chosen[unit]]
    return halves


def _middles(
    behaviour: Behaviour,
    projected: Float[Tensor, "n_fits n_prompts n_hook_points n_positions"],
    fits: Sequence[Bool[Tensor, " n_prompts"]],
    of_harm: bool,
) -> Float[Tensor, "n_fits n_hook_points n_positions"]:
    """Return what lies midway between a label's means, over the prompts that each fit saw."""
    label = behaviour.is_harmful if of_harm else behaviour.is_refused
    return torch.stack(
        [
            sum(
                values[fit & behaviour.is_known & (label == side)].mean(dim=0) / 2
                for side in (True, False)
            )
            for values, fit in zip(projected, fits, strict=True)
        ]  # type: ignore[arg-type]
    )


def _compare(
    halves: Float[Tensor, "2 n_draws 2 n_hook_points n_positions d_model"],
) -> tuple[Float[Tensor, "n_hook_points n_positions"], Float[Tensor, "n_hook_points n_positions"]]:
    """Return the cosine of harm in one half with refusal in the other, and its ceiling.

    Both directions of the same prompts would share their noise. The ceiling is the geometric mean
    of how alike each one's halves are. NaN where no half could be fitted.
    """

    def cosine(first: Tensor, second: Tensor) -> Tensor:
        return (first * second).sum(dim=-1).nanmean(dim=0)

    harm, refusal = halves
    across = (cosine(harm[:, 0], refusal[:, 1]) + cosine(harm[:, 1], refusal[:, 0])) / 2
    alike = [cosine(each[:, 0], each[:, 1]).clamp(min=0) for each in (harm, refusal)]
    return across, (alike[0] * alike[1]).sqrt()


def project_others(
    found: TwoDirections, activations: Activations
) -> Float[Tensor, "2 n_others n_hook_points n_positions"]:
    """Project prompts that were in no fit, such as borderline ones, on both directions.

    Raises:
        RefusalLensError: They were read at other places than the directions.
    """
    places, wanted = (
        [
            f"{hook_point}, {position}"
            for hook_point in each.hook_points
            for position in each.positions
        ]
        for each in (activations, found)
    )
    if places != wanted:
        raise RefusalLensError(
            f"Borderline prompts were read at {'; '.join(places)}, but directions are of "
            f"{'; '.join(wanted)}. Remove the run's folder borderline and measure refusal again, "
            "with the settings of collect that the run was collected with: refusal-lens "
            "refusal-rate RUN."
        )
    values = torch.einsum("nhpd,khpd->knhp", activations.values.double(), found.units)
    return values - found.middles[:, None]


def quadrants(
    found: TwoDirections,
    prompt_ids: Sequence[str],
    outcomes: Sequence[str],
    others: tuple[Activations, Sequence[str], Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Return where every prompt lies along both directions, one row each.

    `others` are activations, ids and outcomes of borderline prompts.

    Returns:
        `prompt_id`, `class`, `outcome`, `harm` and `refusal` (projections), and the places:
        `harm_hook_point`, `harm_position`, `refusal_hook_point`, `refusal_position`.
    """
    harm_at, refusal_at = found.best()
    names = ["harmful" if side else "harmless" for side in found.behaviour.is_harmful.tolist()]
    parts = [(found.projections, prompt_ids, outcomes, names)]
    if others is not None:
        activations, ids, what = others
        parts.append((project_others(found, activations), ids, what, ["borderline"] * len(ids)))
    frames = [
        pd.DataFrame(
            {
                "prompt_id": list(ids),
                "class": classes,
                "outcome": list(what),
                "harm": values[0][:, *harm_at].tolist(),
                "refusal": values[1][:, *refusal_at].tolist(),
            }
        )
        for values, ids, what, classes in parts
    ]
    places = {
        f"{name}_{part}": value
        for name, (row, column) in (("harm", harm_at), ("refusal", refusal_at))
        for part, value in (
            ("hook_point", found.hook_points[row]),
            ("position", found.positions[column]),
        )
    }
    return pd.concat(frames, ignore_index=True).assign(**places)
