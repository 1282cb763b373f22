"""Differences of means fitted again and again: thousands of directions by matrix products.

Knows how to make, clip and project many directions at one place, in float32 around the place's
mean. Does not know why they are wanted.

Everywhere a draw is a row, labels are 1 for harmful and 0 for harmless prompts, and prompts stand
in the order of the folds, each of which is a slice of them.

Tested in tests/validation/test_nulls.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**20
"""Numbers in one block of directions, 4 MiB: a few of them stay in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Place:
    """The activations of one hook point and position, ready for many refits.

    Centred in float64 before they become float32: what all prompts share, usually by far the
    largest part of an activation, would eat the digits of every difference.
    """

    centred: Float[Tensor, "n_prompts d_model"]
    centre: Float[Tensor, " d_model"]
    norms: Float[Tensor, " n_prompts"]

    @classmethod
    def of(cls, values: Float[Tensor, "n_prompts d_model"]) -> "Place":
        """Centre the activations of one place."""
        exact = values.double()
        centre = exact.mean(dim=0)
        return cls((exact - centre).float(), centre.float(), exact.norm(dim=-1).float())


DrawnScores = dict[str, Tensor]
"""The scores of `refusal_lens.validation.scores`, one number a draw, at one place."""


def blocks_of(n_rows: int, d_model: int) -> Iterator[slice]:
    """Cut many directions into blocks that bound the memory."""
    step = max(1, BLOCK // d_model)
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def clip_rows(
    vectors: Float[Tensor, "n_rows d_model"], quantile: float | None
) -> Float[Tensor, "n_rows d_model"]:
    """Clip as `directions.clip` does, from the largest components only: no row is sorted whole."""
    if quantile is None:
        return vectors
    d_model = vectors.shape[1]
    place = quantile * (d_model - 1)
    below = int(place)
    largest = vectors.abs().topk(d_model - below, dim=1).values
    threshold = largest[:, -1]
    if place > below:
        threshold = threshold + (place - below) * (largest[:, -2] - threshold)
    return torch.clamp(vectors, -threshold[:, None], threshold[:, None])


def score_refits(
    place: Place,
    labels: Float[Tensor, "n_draws n_prompts"],
    folds: Sequence[slice],
    clip_quantile: float | None,
) -> DrawnScores:
    """Cross-fit one direction a draw and fold, and score the held-out prompts.

    The sum of a draw's harmful prompts in each fold is one matrix product; all but one of these
    sums make a fold's fitting set, so that each prompt is added up once and not once a fold.
    """
    parts = []
    for block in blocks_of(len(labels), place.centred.shape[1]):
        cosines, margins = _cross_fit(place, labels[block], folds, clip_quantile)
        parts.append(score_draws(cosines, margins, labels[block]))
    return _join(parts)


def score_directions(
    place: Place,
    vectors: Float[Tensor, "n_draws d_model"],
    labels: Float[Tensor, " n_prompts"],
) -> DrawnScores:
    """Score directions that were not fitted, each turned so that harmful prompts lie higher.

    Sign and threshold (midway between the class means) are taken from the scored prompts: with
    nothing else fitted that is next to no advantage, and what there is favours the null.
    """
    length = vectors.norm(dim=1, keepdim=True)
    projected = vectors @ place.centred.T / length
    offset = (vectors @ place.centre)[:, None] / length
    return _score_turned(place, projected, projected + offset, labels)


def score_mixtures(
    place: Place,
    mixing: Float[Tensor, "n_draws n_prompts"],
    labels: Float[Tensor, " n_prompts"],
    folds: Sequence[slice],
    clip_quantile: float | None,
) -> DrawnScores:
    """Score random directions that have the activations' covariance within the classes.

    A mixture of the prompts' deviations from their class means, with independent standard normal
    weights (`mixing`), has the covariance of these deviations. Each prompt is projected on the
    mixture of the other folds, around their class means: its own share, in the sum or in a mean,
    would drown the rest where dimensions outnumber prompts.
    """
    membership = torch.stack([labels, 1 - labels], dim=1)
    parts = []
    for block in blocks_of(len(mixing), place.centred.shape[1]):
        weights = mixing[block]
        sums = [weights[:, fold] @ place.centred[fold] for fold in folds]
        everything = reduce(torch.add, sums)
        projected, raw = torch.empty_like(weights), torch.empty_like(weights)
        for fold, held_out in zip(folds, sums, strict=True):
            members = membership.clone()
            members[fold] = 0
            means = (members / members.sum(dim=0)).T @ place.centred
            vectors = everything - held_out - (weights @ members) @ means
            clipped = clip_rows(vectors, clip_quantile)
            length = clipped.norm(dim=1, keepdim=True)
            projected[:, fold] = clipped @ place.centred[fold].T / length
            raw[:, fold] = projected[:, fold] + (clipped @ place.centre)[:, None] / length
        parts.append(_score_turned(place, projected, raw, labels))
    return _join(parts)


def score_resampled_fits(
    place: Place,
    weights: Float[Tensor, "n_draws n_prompts"],
    labels: Float[Tensor, " n_prompts"],
    folds: Sequence[slice],
    fitting: Float[Tensor, "n_folds n_prompts"],
    clip_quantile: float | None,
) -> tuple[DrawnScores, Float[Tensor, " n_draws"]]:
    """Cross-fit to resampled prompts, and score the held-out prompts as they are.

    `weights` say how much each prompt counts in a draw, `fitting` (from `fitting_weights`) how much
    it counts in the fit to all folds but one. Each draw's mean length of directions comes with the
    scores.
    """
    # Without strata all prompts count alike: those of a fold are added up once, not once a fold.
    is_even = torch.allclose(fitting, (fitting > 0).float(), atol=1e-6)
    parts, lengths = [], torch.zeros(len(weights))
    for block in blocks_of(len(weights), place.centred.shape[1]):
        sides = [weights[block] * labels, weights[block] * (1 - labels)]
        means = _held_out_means if is_even else _weighted_means
        cosines, margins = torch.empty_like(sides[0]), torch.empty_like(sides[0])
        fitted = zip(*(means(place, side, folds, fitting) for side in sides), strict=True)
        for fold, (harmful, harmless) in zip(folds, fitted, strict=True):
            clipped = clip_rows(harmful - harmless, clip_quantile)
            middle = ((harmful + harmless) * clipped).sum(dim=1, keepdim=True) / 2
            cosines[:, fold], margins[:, fold] = _hold_out(place, fold, clipped, middle)
            lengths[block] += clipped.norm(dim=1) / len(folds)
        parts.append(score_draws(cosines, margins, labels[None]))
    return _join(parts), lengths


Means = Iterator[Float[Tensor, "n_draws d_model"]]


def _held_out_means(
    place: Place,
    weights: Float[Tensor, "n_draws n_prompts"],
    folds: Sequence[slice],
    _: Float[Tensor, "n_folds n_prompts"],
) -> Means:
    """Yield the weighted mean of all folds but one, from the sums of the folds."""
    sums = [weights[:, fold] @ place.centred[fold] for fold in folds]
    total, size = reduce(torch.add, sums), weights.sum(dim=1)
    for fold, held_out in zip(folds, sums, strict=True):
        yield (total - held_out) / (size - weights[:, fold].sum(dim=1))[:, None]


def _weighted_means(
    place: Place,
    weights: Float[Tensor, "n_draws n_prompts"],
    folds: Sequence[slice],
    fitting: Float[Tensor, "n_folds n_prompts"],
) -> Means:
    """Yield the mean by weights that differ from fold to fold."""
    for row in fitting[: len(folds)]:  # the last blocks may hold no prompt
        counted = weights * row
        yield counted @ place.centred / counted.sum(dim=1, keepdim=True)


def score_draws(
    cosines: Float[Tensor, "n_draws n_prompts"],
    margins: Float[Tensor, "n_draws n_prompts"],
    labels: Float[Tensor, "n_labellings n_prompts"],
) -> DrawnScores:
    """Score one set of projections a draw, with labels of its own or shared (one row)."""
    n_prompts = labels.shape[1]
    n_harmful = labels.sum(dim=1)
    sizes = (n_harmful, n_prompts - n_harmful)

    def sides(values: Tensor) -> tuple[Tensor, Tensor]:
        harmful = (values * labels).sum(dim=1)
        return harmful / sizes[0], (values.sum(dim=1) - harmful) / sizes[1]

    shares = sides(((margins > 0) == (labels > 0)).float())
    (above, below), squares = sides(margins), sides(margins**2)
    deviations = zip(sizes, squares, (above, below), strict=True)
    variance = sum(n * (square - mean**2) for n, square, mean in deviations) / (n_prompts - 2)
    harmful, harmless = sides(cosines)
    return {
        "separation": harmful - harmless,
        "accuracy": (sizes[0] * shares[0] + sizes[1] * shares[1]) / n_prompts,
        "balanced_accuracy": (shares[0] + shares[1]) / 2,
        "auroc": auroc_rows(margins, labels.expand_as(margins)),
        "cohens_d": (above - below) / torch.as_tensor(variance).sqrt(),
    }


def auroc_rows(
    margins: Float[Tensor, "n_draws n_prompts"], labels: Float[Tensor, "n_draws n_prompts"]
) -> Float[Tensor, " n_draws"]:
    """Return the AUROC of every row, from ranks.

    The label rides in the last bit of each number, so that numbers alone are sorted, which is ten
    times as quick as sorting places. Between equal numbers the label then decides; rows that have
    some are sorted again with the labels the other way round, so that ties count one half.
    """
    is_harmful = labels.numpy() > 0
    bits = margins.contiguous().numpy().view(np.int32) & ~1
    ordered = np.sort((bits | is_harmful).view(np.float32), axis=1).view(np.int32)
    wins = _wins(ordered & 1, 1)
    is_tied = ((ordered[:, 1:] ^ ordered[:, :-1]) == 1).any(axis=1)
    if is_tied.any():
        again = (bits[is_tied] | ~is_harmful[is_tied]).view(np.float32)
        other = _wins(np.sort(again, axis=1).view(np.int32) & 1, 0)
        wins[is_tied] = (wins[is_tied] + other) / 2
    n_harmful = is_harmful.sum(axis=1)
    aurocs = torch.from_numpy(wins / (n_harmful * (is_harmful.shape[1] - n_harmful))).float()
    return aurocs.masked_fill(margins.isnan().any(dim=1), torch.nan)


def _wins(ordered: np.ndarray, harmful: int) -> np.ndarray:
    """Count the pairs in which the harmful prompt lies above, from the labels in their order."""
    is_harmful = (ordered == harmful).astype(np.float64)
    n_harmful = is_harmful.sum(axis=1)
    return is_harmful @ np.arange(1, ordered.shape[1] + 1) - n_harmful * (n_harmful + 1) / 2


def _cross_fit(
    place: Place,
    labels: Float[Tensor, "n_draws n_prompts"],
    folds: Sequence[slice],
    clip_quantile: float | None,
) -> tuple[Float[Tensor, "n_draws n_prompts"], Float[Tensor, "n_draws n_prompts"]]:
    """Return held-out cosines and margins of every draw."""
    sums = [labels[:, fold] @ place.centred[fold] for fold in folds]
    harmful = reduce(torch.add, sums)
    everything = place.centred.sum(dim=0)
    cosines, margins = torch.empty_like(labels), torch.empty_like(labels)
    n_all = labels.sum(dim=1, keepdim=True)
    for fold, held_out in zip(folds, sums, strict=True):
        n_harmful = n_all - labels[:, fold].sum(dim=1, keepdim=True)
        n_harmless = labels.shape[1] - (fold.stop - fold.start) - n_harmful
        both = everything - place.centred[fold].sum(dim=0)
        fitted = harmful - held_out
        # Harmful mean minus harmless mean, where the harmless sum is what is left of `both`.
        vectors = torch.addcmul(fitted * (1 / n_harmful + 1 / n_harmless), both, -1 / n_harmless)
        clipped = clip_rows(vectors, clip_quantile)
        middle = (clipped @ both)[:, None] / n_harmless
        if not torch.equal(n_harmful, n_harmless):
            uneven = (fitted * clipped).sum(dim=1, keepdim=True)
            middle = middle + (1 / n_harmful - 1 / n_harmless) * uneven
        cosines[:, fold], margins[:, fold] = _hold_out(place, fold, clipped, middle / 2)
    return cosines, margins


def _hold_out(
    place: Place,
    fold: slice,
    vectors: Float[Tensor, "n_draws d_model"],
    middle: Float[Tensor, "n_draws 1"],
) -> tuple[Float[Tensor, "n_draws n_held_out"], Float[Tensor, "n_draws n_held_out"]]:
    """Return cosines and margins of a fold on directions of any length, `middle` in that length."""
    length = vectors.norm(dim=1, keepdim=True)
    projected = vectors @ place.centred[fold].T
    raw = projected + (vectors @ place.centre)[:, None]
    return raw / (length * place.norms[fold]), (projected - middle) / length


def _score_turned(
    place: Place,
    projected: Float[Tensor, "n_draws n_prompts"],
    raw: Float[Tensor, "n_draws n_prompts"],
    labels: Float[Tensor, " n_prompts"],
) -> DrawnScores:
    """Turn each draw so that harmful prompts lie higher, and score it."""
    above = projected @ (labels / labels.sum())
    below = projected @ ((1 - labels) / (1 - labels).sum())
    sign = (above - below).sign()[:, None]
    margins = projected - ((above + below) / 2)[:, None]
    return score_draws(raw * sign / place.norms, margins * sign, labels[None])


def _join(parts: list[DrawnScores]) -> DrawnScores:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
