"""What the scores would be if there were nothing to find.

Knows four kinds of nothing and the p-values against them. Does not judge.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import expit, logit
from scipy.stats import norm
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE
from refusal_lens.directions.methods import fit_grid
from refusal_lens.errors import RefusalLensError
from refusal_lens.progress import track
from refusal_lens.validation.crossfit import assign_folds, sort_by_fold
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.many_fits import (
    DrawnScores,
    Place,
    clip_rows,
    score_directions,
    score_mixtures,
    score_refits,
)
from refusal_lens.validation.scores import percentiles
from refusal_lens.validation.separation import TOPIC_FOLDS, Separation
from refusal_lens.validation.thresholds import SIGNIFICANT
from refusal_lens.validation.units import (
    Units,
    frames_differ,
    pair_units,
    shuffle_labels,
    topic_units,
)

KINDS = ("permutation", "permutation_same_topics", "random", "covariance", "harmless_split")
"""Labels of topics exchanged (of pairs or prompts, where topics cannot be left out); labels of
pairs exchanged within the same topics; random directions, uniform or with the activations'
covariance; no class."""

NULL_SCORES = ("separation", "accuracy", "auroc")

FEWEST = 4
"""Harmless prompts that can be split in two, with two of each half."""

Draws = Mapping[str, Float[Tensor, "n_draws n_hook_points n_positions"]]


@dataclass(frozen=True, eq=False)
class Nulls:
    """Scores of every place where there is nothing to find, beside those that were observed.

    `observed` are scores of the first dealing to folds, which is what the permutation repeats, and
    `observed_same_topics` those of the dealing behind `permutation_same_topics`. `draws` go by
    kind, then by score. NaN where there is no direction. `shuffled` says what the permutation
    exchanged; `least_p_value` is the share of labellings that are the true one, or that one with
    the classes exchanged throughout, which scores the same: no p-value can be lower. Where
    `frames_differ` by class and cross the topics, no labelling is as likely as the true one, and
    there is no p-value.
    """

    observed: Mapping[str, Float[Tensor, "n_hook_points n_positions"]]
    draws: Mapping[str, Draws]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    observed_same_topics: Mapping[str, Float[Tensor, "n_hook_points n_positions"]]
    shuffled: str
    least_p_value: float
    frames_differ: bool = False

    def to_frame(self) -> pd.DataFrame:
        """Return one row a kind, score and place: a band, the number of draws and p-values.

        `low`, `median` and `high` are the 2.5th, 50th and 97.5th percentiles.
        """
        tables = []
        for kind, scores in self.draws.items():
            for name, draws in scores.items():
                table = place_frame(self.hook_points, self.positions)
                table.insert(0, "kind", kind)
                table.insert(1, "score", name)
                for column, values in zip(
                    ("low", "median", "high"), percentiles(draws, (0.025, 0.5, 0.975)), strict=True
                ):
                    table[column] = values.flatten().numpy()
                table["n_draws"] = len(draws)
                observed = self._observed(kind)[name]
                table["p_value"] = p_value(observed, draws).flatten().numpy()
                corrected = (
                    p_value_corrected(observed, draws)
                    if kind.startswith("permutation")
                    else torch.full_like(observed, torch.nan)
                )
                table["p_value_corrected"] = corrected.flatten().numpy()
                tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def p_values(self) -> pd.DataFrame:
        """Return the permutation p-values of the AUROC, one row a place.

        Of the three scores it is the one whose null has the same spread at every layer, so that
        the maximum over layers is not the business of one of them. `p_value_same_topics` and its
        correction ask whether these very topics differ at all; they are those of `p_value` where
        topics were not left out.
        """
        table = place_frame(self.hook_points, self.positions).drop(columns=["site", "layer"])
        observed, draws = self._observed("permutation")["auroc"], self.draws["permutation"]["auroc"]
        table["p_value"] = p_value(observed, draws).flatten().numpy()
        table["p_value_corrected"] = p_value_corrected(observed, draws).flatten().numpy()
        if "permutation_same_topics" in self.draws:
            observed = self.observed_same_topics["auroc"]
            draws = self.draws["permutation_same_topics"]["auroc"]
        corrected = p_value_corrected(observed, draws).flatten().numpy()
        table["p_value_same_topics"] = p_value(observed, draws).flatten().numpy()
        table["p_value_corrected_same_topics"] = corrected
        return table

    def _observed(self, kind: str) -> Mapping[str, Float[Tensor, "n_hook_points n_positions"]]:
        """Return the scores that a kind is compared with; NaN where that would tell nothing."""
        if kind == "permutation_same_topics":
            return self.observed_same_topics
        if kind == "permutation" and self.frames_differ:
            return {name: torch.full_like(one, torch.nan) for name, one in self.observed.items()}
        return self.observed

    def highest(self, share: float) -> float:
        """Return the AUROC that the best of all places stays below in a share of the labellings."""
        draws = self.draws.get("permutation", {}).get("auroc")
        if draws is None:
            return math.nan
        return float(percentiles(_highest(draws), (share,))[0])


def detectable_auroc(nulls: Nulls, separation: Separation, share: float = 0.8) -> float:
    """Return the least AUROC that would be found in this share of samples like this one.

    Found means above what the best of all places reaches in all but 5 % of the labellings. An AUROC
    estimate is taken as normal on the logit scale, with the median width of the intervals.

    Args:
        nulls: Drawn for these prompts.
        separation: Their scores.
        share: The power asked for.

    Returns:
        An AUROC; NaN where there are too few prompts or labellings to say.
    """
    score = separation.headline["auroc"]
    inside = (score.low > 0) & (score.high < 1)
    critical = nulls.highest(0.95)
    if not bool(inside.any()) or nulls.least_p_value > SIGNIFICANT or not critical < 1:
        return math.nan
    width = torch.special.logit(score.high[inside]) - torch.special.logit(score.low[inside])
    error = float(width.median()) / (2 * 1.96)
    return float(expit(logit(critical) + norm.ppf(share) * error))


def power_table(nulls: Nulls, separation: Separation) -> pd.DataFrame:
    """Return one row: what was exchanged, the least p-value that it allows, and the power."""
    return pd.DataFrame(
        [
            {
                "shuffled": nulls.shuffled,
                "least_p_value": nulls.least_p_value,
                "detectable_auroc": detectable_auroc(nulls, separation),
                "frames_differ": nulls.frames_differ,
            }
        ]
    )


def p_value(
    observed: Float[Tensor, "*grid"], draws: Float[Tensor, " n_draws *grid"]
) -> Float[Tensor, "*grid"]:
    """Return the share of draws, the observed one among them, that reach the observed score.

    Args:
        observed: The score as it is.
        draws: Scores under the null.

    Returns:
        (1 + b) / (1 + n) for b of n draws, in (0, 1]: never zero, and uniform or larger under the
        null, whatever the number of draws. NaN where there is no score.

    Source:
        Phipson & Smyth 2010, "Permutation p-values should never be zero", eq. 2.
    """
    n_reached = (draws >= observed).sum(dim=0).double()
    p = (1 + n_reached) / (1 + len(draws))
    return p.masked_fill(observed.isnan() | draws.isnan().any(dim=0), torch.nan)


def p_value_corrected(
    observed: Float[Tensor, "*grid"], draws: Float[Tensor, " n_draws *grid"]
) -> Float[Tensor, "*grid"]:
    """Return p-values that allow for having looked at all places.

    Each score is compared with the highest of all places in each draw: the chance that nothing
    anywhere would have scored as high. Every draw must have permuted all places alike.

    Source:
        Westfall & Young 1993, "Resampling-Based Multiple Testing", single-step max-T.
    """
    highest = _highest(draws)
    spread = highest.reshape(-1, *[1] * observed.ndim).expand_as(draws)
    return p_value(observed, spread)


def _highest(draws: Float[Tensor, " n_draws *grid"]) -> Float[Tensor, " n_draws"]:
    return draws.nan_to_num(nan=-torch.inf).flatten(1).max(dim=1).values


def draw_nulls(
    activations: Activations,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_folds: int = 5,
    n_permutations: int = 1000,
    seed: int = 0,
    show_progress: bool | None = None,
) -> Nulls:
    """Score what there would be with nothing to find, in four ways.

    - `permutation`: labels exchanged, direction, clip and threshold fitted anew to the other folds.
      What is exchanged goes by `activations.groups`. Where whole topics can be left out: the
      classes of each component (a harmful and a harmless topic whose prompts are twins), or of
      whole topics within a fold; the p-value is exact for "the topics of one class differ in
      nothing from those of the other". Else the classes of twins within their pair, or of single
      prompts within a fold: exact for "the prompts' classes differ in nothing". Folds do not
      depend on what is exchanged, so that every such labelling was as likely as the true one.
    - `permutation_same_topics`, where topics are left out: twins or prompts exchanged, for "these
      very topics differ in nothing".
    - `random`: directions uniform on the sphere, which no activations have shaped.
    - `covariance`: random directions with the activations' covariance within the classes: what any
      direction along which activations vary would score. Both are clipped like the fitted
      direction and turned so that harmful prompts lie higher, which favours the null a little.
    - `harmless_split`: harmless prompts against harmless prompts, in two random halves, which
      leaves half as many prompts to a fit. Left out below four harmless prompts.

    Args:
        activations: Activations of both classes.
        clip_quantile: As in `fit_directions`.
        n_folds: As in `validate`.
        n_permutations: Draws of each kind.
        seed: Of folds and draws; with the same one the folds are the first of `validate`'s.
        show_progress: Draw a bar; None draws it on a terminal and in notebooks only.

    Returns:
        Draws of separation, accuracy and AUROC at every place.

    Raises:
        RefusalLensError: A class has fewer than two prompts, or nowhere another mean.
    """
    d_model = activations.values.shape[-1]
    plan = _plan(activations, d_model, n_folds, n_permutations, seed)
    _, is_kept = fit_grid(activations.values, activations.is_harmful)
    results = {
        (row, column): _draw_place(activations.values[:, row, column], plan, clip_quantile)
        for row, column in track(is_kept.nonzero().tolist(), "Drawing nulls", show_progress)
    }
    return _gather(results, is_kept, activations, plan)


@dataclass(frozen=True, eq=False)
class _Deal:
    """Prompts sorted by fold, and their labels: as they are in row 0, permuted in the others."""

    order: Int[Tensor, " n_prompts"]
    folds: Sequence[slice]
    labels: Float[Tensor, "n_draws n_prompts"]

    @property
    def least_p_value(self) -> float:
        """Return the share of draws, the labels as they are among them, that are bound to tie."""
        is_exchanged = self.labels != self.labels[0]
        return (is_exchanged.all(dim=1) | ~is_exchanged.any(dim=1)).double().mean().item()


@dataclass(frozen=True, eq=False)
class _Plan:
    """All random numbers of the nulls, the same at every place.

    `whole` exchanges what `shuffled` says, `same_topics` what stays within topics (None where that
    is the same). `harmless` are the prompts that `halves` deals out; None where they are too few.
    `sphere` are directions, `mixing` weights of the prompts in the order of `whole`.
    """

    whole: _Deal
    same_topics: _Deal | None
    shuffled: str
    harmless: Int[Tensor, " n_harmless"]
    halves: _Deal | None
    sphere: Float[Tensor, "n_draws d_model"]
    mixing: Float[Tensor, "n_draws n_prompts"]


def _plan(activations: Activations, d_model: int, n_folds: int, n_draws: int, seed: int) -> _Plan:
    is_harmful, groups = activations.is_harmful, activations.groups
    generator = np.random.default_rng(seed)
    pairs, topics = pair_units(is_harmful, groups), topic_units(is_harmful, groups)
    same_topics = _deal(is_harmful, pairs, n_folds, n_draws, seed, generator)
    whole, shuffled = same_topics, "prompts" if pairs.are_single else "pairs"
    if topics is not None:
        n_topic_folds = max(n_folds, TOPIC_FOLDS)
        whole = _deal(is_harmful, topics, n_topic_folds, n_draws, seed, generator)
        shuffled = "topics"
    harmless = (~is_harmful).nonzero().flatten()
    halves = _halves(activations.take(harmless), n_folds, n_draws, seed, generator)
    sphere, mixing = (
        torch.from_numpy(generator.standard_normal((n_draws, width), np.float32))
        for width in (d_model, len(is_harmful))
    )
    beside = same_topics if topics is not None else None
    return _Plan(whole, beside, shuffled, harmless, halves, sphere, mixing)


def _halves(
    harmless: Activations,
    n_folds: int,
    n_draws: int,
    seed: int,
    generator: np.random.Generator,
) -> _Deal | None:
    """Deal harmless prompts to two halves, topic by topic where there are enough; None for few."""
    n_prompts, groups = len(harmless.is_harmful), harmless.groups
    for labels in (groups.topic, groups.pair, torch.arange(n_prompts)):
        of_prompt = labels.unique(return_inverse=True)[1]
        n_units = int(of_prompt.max()) + 1 if n_prompts else 0
        if n_units >= FEWEST:
            is_first = (torch.arange(n_units) % 2 == 0)[of_prompt]
            units = Units.of(is_first, of_prompt)
            return _deal(is_first, units, n_folds, n_draws, seed, generator)
    return None


def _draw_place(
    values: Float[Tensor, "n_prompts d_model"], plan: _Plan, clip_quantile: float | None
) -> dict[str, DrawnScores]:
    """Draw every null at one place."""
    whole, halves = plan.whole, plan.halves
    place, labels = Place.of(values[whole.order]), whole.labels[0]
    sphere = clip_rows(plan.sphere, clip_quantile)
    drawn = {
        "permutation": score_refits(place, whole.labels, whole.folds, clip_quantile),
        "random": score_directions(place, sphere, labels),
        "covariance": score_mixtures(place, plan.mixing, labels, whole.folds, clip_quantile),
    }
    if plan.same_topics is not None:
        same = plan.same_topics
        again = Place.of(values[same.order])
        drawn["permutation_same_topics"] = score_refits(
            again, same.labels, same.folds, clip_quantile
        )
    if halves is not None:
        half = Place.of(values[plan.harmless[halves.order]])
        # The first row is the halves as they were dealt, not a random draw of its own.
        drawn["harmless_split"] = score_refits(half, halves.labels[1:], halves.folds, clip_quantile)
    return drawn


def _deal(
    is_harmful: Bool[Tensor, " n_prompts"],
    units: Units,
    n_folds: int,
    n_draws: int,
    seed: int,
    generator: np.random.Generator,
) -> _Deal:
    dealt = assign_folds(is_harmful, n_folds, seed, units)
    order, folds = sort_by_fold(dealt)
    drawn = shuffle_labels(is_harmful, units, dealt, n_draws, generator)
    labels = torch.cat([is_harmful[None], torch.from_numpy(drawn)])[:, order].float()
    return _Deal(order, folds, labels)


def _gather(
    results: Mapping[tuple[int, int], Mapping[str, DrawnScores]],
    is_kept: Bool[Tensor, "n_hook_points n_positions"],
    activations: Activations,
    plan: _Plan,
) -> Nulls:
    """Lay the draws of every place into grids, NaN where there is no direction."""
    if not results:
        raise RefusalLensError(
            f"There is no direction at any of the {is_kept.numel()} places: both classes have the "
            "same mean there. Activations that are all zero or constant come from a broken "
            "checkpoint; otherwise read another position, and make sure that the two prompt files "
            "differ."
        )
    kinds = next(iter(results.values()))
    draws: dict[str, dict[str, Tensor]] = {}
    for kind, one in kinds.items():
        empty = torch.full((len(one["auroc"]), *is_kept.shape), torch.nan)
        draws[kind] = {name: empty.clone() for name in NULL_SCORES}
        for (row, column), drawn in results.items():
            for name in NULL_SCORES:
                draws[kind][name][:, row, column] = drawn[kind][name]
    # Row 0 are the labels as they are, scored like every permutation: ties are exact so.
    observed = {}
    for kind in KINDS[:2]:
        if kind in draws:
            observed[kind] = {name: values[0] for name, values in draws[kind].items()}
            draws[kind] = {name: values[1:] for name, values in draws[kind].items()}
    whole = observed.get(KINDS[0], {})
    return Nulls(
        whole,
        draws,
        activations.hook_points,
        activations.positions,
        observed.get(KINDS[1], whole),
        plan.shuffled,
        plan.whole.least_p_value,
        plan.same_topics is not None and frames_differ(activations.is_harmful, activations.groups),
    )
