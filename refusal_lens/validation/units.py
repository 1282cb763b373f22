"""Prompts that are dealt, resampled and shuffled as one: a unit is a pair, a topic, a component.

Knows labels and units. Does not know activations, and reads no texts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.prompts.groups import Groups, join, n_groups

MIXED, HARMFUL_ONLY, HARMLESS_ONLY = 0, 1, 2

FEWEST_UNITS = 5
"""Fewer units of a class give no interval: their spread would be a guess."""

FRAMES_DIFFER = 0.5
"""From this share of the prompts in frames on, that are in frames of one class alone, the classes
are said to differ in their frames."""


LEAST_SHAPE = 0.25
"""Of the gamma variables that weights are drawn by, in strata of two units."""


@dataclass(frozen=True, eq=False)
class Units:
    """Which prompts are one unit, numbered from 0, and what each unit holds.

    `of_prompt` numbers the unit of each prompt; `kind` says of each unit whether it holds both
    classes (twins, or topics that twins join) or one. `stratum` of a unit: what is compared with
    what when their spread is measured: units of one kind, within a topic where topics stay.
    """

    of_prompt: Int[Tensor, " n_prompts"]
    kind: Int[Tensor, " n_units"]
    stratum: Int[Tensor, " n_units"]

    @classmethod
    def of(
        cls,
        is_harmful: Bool[Tensor, " n_prompts"],
        labels: Int[Tensor, " n_prompts"] | None = None,
        within: Int[Tensor, " n_prompts"] | None = None,
    ) -> "Units":
        """Number the units and say what they hold.

        Prompts with the same label are one unit; None makes each a unit. `within` numbers larger
        groups that stay as they are, each of which holds whole units.
        """
        if labels is None:
            labels = torch.arange(len(is_harmful))
        _, of_prompt = labels.unique(return_inverse=True)
        n_units = int(of_prompt.max()) + 1 if len(of_prompt) else 0
        counts = torch.zeros(2, n_units, dtype=torch.int64)
        for row, is_member in enumerate((is_harmful, ~is_harmful)):
            counts[row] = of_prompt[is_member].bincount(minlength=n_units)
        kind = torch.full((n_units,), MIXED)
        kind[counts[1] == 0] = HARMFUL_ONLY
        kind[counts[0] == 0] = HARMLESS_ONLY
        stratum = kind
        if within is not None:
            around = torch.zeros(n_units, dtype=torch.int64)
            around[of_prompt] = within
            stratum = _merge_single(around * 3 + kind, kind)
        return cls(of_prompt, kind, stratum.unique(return_inverse=True)[1])

    @property
    def n_units(self) -> int:
        """How many units there are."""
        return len(self.kind)

    @property
    def n_strata(self) -> int:
        """How many strata there are."""
        return int(self.stratum.max()) + 1

    @property
    def has_strata(self) -> bool:
        """Whether units are told apart by more than what they hold."""
        return self.n_strata > len(self.kind.unique())

    @property
    def are_single(self) -> bool:
        """Whether each prompt is a unit of its own."""
        return self.n_units == len(self.of_prompt)

    @property
    def n_per_class(self) -> tuple[int, int]:
        """How many units hold harmful prompts, and how many hold harmless ones."""
        n_mixed = int((self.kind == MIXED).sum())
        return tuple(
            n_mixed + int((self.kind == kind).sum()) for kind in (HARMFUL_ONLY, HARMLESS_ONLY)
        )  # type: ignore[return-value]

    def sum(self, values: Float[Tensor, " n_prompts *grid"]) -> Float[Tensor, " n_units *grid"]:
        """Add up what the prompts of each unit have."""
        total = torch.zeros(self.n_units, *values.shape[1:], dtype=values.dtype)
        return total.index_add_(0, self.of_prompt, values)


def _merge_single(stratum: Tensor, kind: Tensor) -> Tensor:
    """Put units that are alone in their stratum together with others of their kind."""
    numbers, place, counts = stratum.unique(return_inverse=True, return_counts=True)
    return torch.where(counts[place] > 1, place, len(numbers) + kind)


def pair_units(is_harmful: Bool[Tensor, " n_prompts"], groups: Groups) -> Units:
    """Return the units of "new prompts of the same topics": twins, near-duplicates, the rest."""
    component = groups.component
    has_topics = n_groups(component) < n_groups(groups.pair)
    return Units.of(is_harmful, groups.pair, component if has_topics else None)


def topic_units(is_harmful: Bool[Tensor, " n_prompts"], groups: Groups) -> Units | None:
    """Return the units of "new topics", components; None where topics cannot be left out.

    That is where no topic holds more than one pair, or a class has a single topic.
    """
    component = groups.component
    if n_groups(component) == n_groups(groups.pair):
        return None
    units = Units.of(is_harmful, component)
    return units if min(units.n_per_class) > 1 else None


def widest_units(is_harmful: Bool[Tensor, " n_prompts"], groups: Groups) -> Units:
    """Return the units that new topics would bring, and where there are none new prompts."""
    return topic_units(is_harmful, groups) or pair_units(is_harmful, groups)


def frame_units(is_harmful: Bool[Tensor, " n_prompts"], groups: Groups) -> Units | None:
    """Return frames as units where they cross the topics; None where there is nothing to cross."""
    n_frames, n_prompts = n_groups(groups.frame), len(is_harmful)
    crossed = n_groups(join(groups.frame, groups.topic))
    if n_frames in (1, n_prompts) or crossed == n_groups(groups.topic):
        return None
    return Units.of(is_harmful, groups.frame)


def frames_differ(is_harmful: Bool[Tensor, " n_prompts"], groups: Groups) -> bool:
    """Return whether frames cross the topics and most of them are of one class.

    Then the classes differ in their wording as well as in their topics, and no exchange of labels
    tells harm from the two: whole topics exchanged leave every frame to the class it had.
    """
    frames = frame_units(is_harmful, groups)
    if frames is None or min(frames.n_per_class) < 2:
        return False
    is_shared = (frames.of_prompt.bincount(minlength=frames.n_units) > 1)[frames.of_prompt]
    is_pure = (frames.kind != MIXED)[frames.of_prompt]
    return bool((is_shared & is_pure).sum() > FRAMES_DIFFER * is_shared.sum())


# --- shuffled ---------------------------------------------------------------------------------


def shuffle_labels(
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units,
    folds: Int[Tensor, " n_prompts"],
    n_draws: int,
    generator: np.random.Generator,
) -> Bool[np.ndarray, "n_draws n_prompts"]:
    """Draw labellings that would have been as likely if the classes differed in nothing.

    A unit that holds both classes exchanges them or does not. Units of one class exchange their
    labels within their fold, whole; no unit lies in two folds.
    """
    fold_of_unit = torch.zeros(units.n_units, dtype=torch.int64)
    fold_of_unit[units.of_prompt] = folds
    kind, fold_of_unit = units.kind.numpy(), fold_of_unit.numpy()
    is_mixed = kind == MIXED
    # What a unit of one class tells of its prompts' class, and whether one of both is turned round.
    drawn = np.tile(kind == HARMFUL_ONLY, (n_draws, 1))
    for fold in range(int(fold_of_unit.max()) + 1):
        columns = np.flatnonzero((fold_of_unit == fold) & ~is_mixed)
        drawn[:, columns] = generator.permuted(drawn[:, columns], axis=1)
    drawn[:, is_mixed] = generator.random((n_draws, int(is_mixed.sum()))) < 0.5
    of_prompt = units.of_prompt.numpy()
    labels = is_harmful.numpy()[None]
    return np.where(is_mixed[of_prompt][None], labels ^ drawn[:, of_prompt], drawn[:, of_prompt])


# --- resampled --------------------------------------------------------------------------------


def draw_weights(
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units,
    n_draws: int,
    generator: np.random.Generator,
) -> Float[Tensor, "n_draws n_prompts"]:
    """Draw weights of the prompts, those of a unit alike; each stratum and class keeps its size.

    Weights are those of the Bayesian bootstrap, a little more uneven: a weighted mean over the n
    units of a stratum varies by s^2 / n, where weights of one exponential each give s^2 / (n + 1).
    They are never zero, so that no fold is left without a class.

    Source:
        Rubin 1981, "The Bayesian bootstrap", Annals of Statistics 9. Gamma variables of shape a
        make Dirichlet weights, whose variance is (1 - 1/n) / (n (n a + 1)): a = 1 - 2/n.
    """
    sizes = units.stratum.bincount()[units.stratum].numpy()
    shapes = np.maximum(1 - 2 / sizes, LEAST_SHAPE)
    drawn = torch.from_numpy(generator.standard_gamma(shapes, (n_draws, units.n_units)))
    weights = drawn[:, units.of_prompt]
    stratum = units.stratum[units.of_prompt] * 2 + is_harmful.long()
    numbers, place, counts = stratum.unique(return_inverse=True, return_counts=True)
    totals = torch.zeros(n_draws, len(numbers), dtype=weights.dtype).index_add_(1, place, weights)
    return weights * (counts / totals)[:, place]


def unit_variance(
    influence: Float[Tensor, " n_prompts *grid"], units: Units
) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    """Return the variance of a score from what each prompt adds to it, and degrees of freedom.

    The influences of a class's prompts sum to nothing.

    Source:
        The ultimate-cluster variance of survey statistics, for the AUROC as in Obuchowski 1997,
        "Nonparametric analysis of clustered ROC curve data", Biometrics 53; with units of one
        prompt it is DeLong's. Degrees of freedom: Satterthwaite 1946, Biometrics Bulletin 2.
    """
    total = units.sum(influence)
    variance = torch.zeros(influence.shape[1:], dtype=influence.dtype)
    spread = variance.clone()
    for stratum in range(int(units.stratum.max()) + 1):
        part = total[units.stratum == stratum]
        if len(part) < 2:
            continue
        one = (part - part.mean(dim=0)).square().sum(dim=0) * len(part) / (len(part) - 1)
        variance, spread = variance + one, spread + one**2 / (len(part) - 1)
    least = torch.as_tensor(float(max(1, units.n_units - int(units.stratum.max()) - 1)))
    freedom = torch.where(spread > 0, variance**2 / spread.clamp(min=1e-300), least)
    return variance, freedom


def intraclass_correlation(
    values: Float[Tensor, " n_prompts *grid"],
    is_harmful: Bool[Tensor, " n_prompts"],
    topics: Int[Tensor, " n_prompts"],
) -> tuple[Float[Tensor, "*grid"], Float[Tensor, "*grid"]]:
    """Return how alike projections of one topic are, and how many independent prompts they equal.

    That is the intraclass correlation within each class, in [0, 1], and the effective number.

    Source:
        One-way analysis of variance, Donner 1986, International Statistical Review 54; design
        effect 1 + (m - 1) icc, Kish 1965, "Survey Sampling", sec. 8.2.
    """
    _, cell = (topics * 2 + is_harmful.long()).unique(return_inverse=True)
    sizes = cell.bincount().double()
    side = torch.zeros(len(sizes), dtype=torch.int64)
    side[cell] = is_harmful.long()
    means = torch.zeros(len(sizes), *values.shape[1:], dtype=torch.float64)
    means = means.index_add_(0, cell, values.double())
    shape = (-1, *[1] * (values.ndim - 1))
    means = means / sizes.reshape(shape)
    within = (values - means[cell]).square().sum(dim=0)
    freedom_within = len(values) - len(sizes)
    between, freedom, typical = torch.zeros_like(within), 0, 0.0
    for number in range(2):
        mine = side == number
        n, m = sizes[mine].sum(), sizes[mine].reshape(shape)
        centre = (means[mine] * m).sum(dim=0) / n
        between = between + ((means[mine] - centre).square() * m).sum(dim=0)
        freedom += int(mine.sum()) - 1
        typical += float(n - sizes[mine].square().sum() / n)
    if min(freedom, freedom_within) < 1:
        missing = torch.full_like(within, torch.nan)
        return missing, missing
    typical /= freedom
    mean_within = within / freedom_within
    extra = ((between / freedom - mean_within) / typical).clamp(min=0)
    correlation = extra / (extra + mean_within)
    effect = 1 + (sizes.square().sum() / sizes.sum() - 1) * correlation
    return correlation, len(values) / effect
