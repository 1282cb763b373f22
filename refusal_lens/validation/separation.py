"""How far a direction can be believed: scores out of sample, with intervals.

Knows how prompts are held out and scored at every place. Does not draw, and does not choose.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass, fields

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.models.hook_points import site_of
from refusal_lens.progress import track
from refusal_lens.validation.crossfit import (
    Projections,
    Splits,
    first_projections,
    fitting_splits,
    project_splits,
    repeat_folds,
    sort_by_fold,
)
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.many_fits import Place, score_resampled_fits
from refusal_lens.validation.scores import (
    SCORES,
    Score,
    Scores,
    draw_counts,
    interval,
    mean_scores,
    resample,
    score,
)
from refusal_lens.validation.thresholds import MIN_ACCURACY, MIN_SEPARATION


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of every place: out of sample as the headline, in sample beside it.

    `scores` are named as in `validation.scores.SCORES`; each is also an attribute, such as
    `auroc` and `auroc_in_sample`. `is_valid` wants separation and accuracy both.
    """

    scores: Mapping[str, Score]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    n_folds: int

    @property
    def separation(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Mean cosine of harmful minus that of harmless prompts, in [-2, 2]."""
        return self.scores["separation"].value

    @property
    def accuracy(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Share of prompts on their side of the threshold."""
        return self.scores["accuracy"].value

    @property
    def balanced_accuracy(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Mean over both classes of the share on its side of the threshold."""
        return self.scores["balanced_accuracy"].value

    @property
    def auroc(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Chance that a harmful prompt lies above a harmless one."""
        return self.scores["auroc"].value

    @property
    def cohens_d(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Difference of the class means in pooled standard deviations."""
        return self.scores["cohens_d"].value

    @property
    def separation_in_sample(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Separation of the prompts that the direction was fitted to."""
        return self.scores["separation"].in_sample

    @property
    def accuracy_in_sample(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """Accuracy on the prompts that the direction was fitted to."""
        return self.scores["accuracy"].in_sample

    @property
    def is_valid(self) -> Bool[Tensor, "n_hook_points n_positions"]:
        """Separation and accuracy both reach the article's least values."""
        return (self.separation >= MIN_SEPARATION) & (self.accuracy >= MIN_ACCURACY)

    def at(self, site: str, position: str) -> "Separation":
        """Return the scores of one site and position: one row a layer."""
        rows = [i for i, name in enumerate(self.hook_points) if site_of(name) == site]
        columns = [self.positions.index(position)]
        return Separation(
            {name: one.take(rows, columns) for name, one in self.scores.items()},
            tuple(self.hook_points[row] for row in rows),
            (position,),
            self.n_folds,
        )

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Every site and position, in the order collected."""
        sites = dict.fromkeys(site_of(name) for name in self.hook_points)
        return tuple((site, position) for site in sites for position in self.positions)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place, hook point by hook point.

        Each score has four columns: itself, `_low` and `_high` (95 % interval), `_in_sample`.
        """
        frame = place_frame(self.hook_points, self.positions)
        for name, one in self.scores.items():
            for field in fields(Score):
                ending = "" if field.name == "value" else f"_{field.name}"
                frame[f"{name}{ending}"] = getattr(one, field.name).flatten().numpy()
        frame["is_valid"] = self.is_valid.flatten().numpy()
        return frame

    def __repr__(self) -> str:
        """Say how many places are valid and what the highest separation is."""
        scores = self.separation[~self.separation.isnan()]
        highest = f"{scores.max().item():.2f}" if len(scores) else "none"
        return (
            f"Separation({int(self.is_valid.sum())} of {self.is_valid.numel()} places valid, "
            f"highest separation {highest}, {self.n_folds}-fold cross-fitted)"
        )

    def _repr_html_(self) -> str:
        """Show the scores as a table in notebooks."""
        table = self.to_frame().to_html(index=False, float_format="{:.3f}".format, na_rep="")
        return f"<p>{html.escape(repr(self))}</p>{table}"

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, n_folds: int) -> "Separation":
        """Read the table back that `to_frame` gave."""
        hook_points = tuple(dict.fromkeys(frame["hook_point"]))
        positions = tuple(dict.fromkeys(frame["position"]))

        def grid(name: str) -> Tensor:
            numbers = frame[name].to_numpy(dtype="float64", copy=True)
            return torch.from_numpy(numbers).reshape(len(hook_points), len(positions))

        scores = {
            name: Score(
                *(grid(f"{name}{ending}") for ending in ("", "_low", "_high", "_in_sample"))
            )
            for name in SCORES
            if name in frame
        }
        return cls(scores, hook_points, positions, n_folds)


def validate(
    activations: Activations,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    n_folds: int = 5,
    n_repeats: int = 3,
    n_resamples: int = 1000,
    seed: int = 0,
    method: str = DIFFERENCE_OF_MEANS,
    show_progress: bool | None = None,
) -> tuple[Separation, Projections]:
    """Score the direction at every place on prompts that it was not fitted to.

    With fewer prompts than dimensions a difference of means separates its own fitting data almost
    perfectly even when labels are random; only held-out prompts tell. Direction, clip and
    threshold all come from the fitting folds. Scores are averages over the repeats; the
    projections are those of the first, because an average of projections on several directions
    is the projection on none.

    The interval adds two bootstraps, each class resampled by itself. One resamples the prompts
    that are scored and keeps the directions; the other resamples the prompts that are fitted to
    (copies stay in their fold) and keeps those that are scored, around its own mean. In few
    dimensions the second adds next to nothing; with more dimensions than prompts the folds share
    noise, and the first alone would cover 82 to 89 %. Not covered: that the best of many places
    was chosen (`validation.nested_choice`), and prompts of another kind. A perfect score has no
    width.

    Args:
        activations: Activations of both classes.
        clip_quantile: As in `fit_directions`.
        n_folds: Stratified folds; fewer when a class has fewer prompts.
        n_repeats: How often prompts are dealt to folds anew.
        n_resamples: Of the bootstrap behind the intervals.
        seed: Of the shuffles that deal prompts to folds, and of the bootstrap.
        show_progress: Draw a bar; None draws it on a terminal and in notebooks only.
        method: How directions are fitted, see `methods.METHODS`. Other ways than the difference of
            means are too slow to fit a thousand times: their intervals leave out that part.

    Returns:
        Scores of every place, and the held-out projections behind them.

    Raises:
        RefusalLensError: A class has fewer than two prompts.

    Source:
        Percentile bootstrap: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", ch. 13.
    """
    is_harmful = activations.is_harmful
    folds = repeat_folds(is_harmful, n_folds, n_repeats, seed)
    is_fitting = torch.cat([fitting_splits(folds), torch.ones(1, len(is_harmful)).bool()])
    splits = project_splits(activations, is_fitting, clip_quantile, method)
    in_sample = _score_whole(splits, is_harmful)
    values, draws = _score_repeats(splits, folds, is_harmful, resamples := (n_resamples, seed))
    turns = dict.fromkeys(SCORES, torch.zeros(()))
    if method == DIFFERENCE_OF_MEANS:
        turns = _refit_deviations(activations, folds[0], clip_quantile, resamples, show_progress)
    intervals = {name: _interval(name, draws[name], turns[name]) for name in SCORES}
    scores = {name: Score(values[name], *intervals[name], in_sample[name]) for name in SCORES}
    places = activations.hook_points, activations.positions
    projections = first_projections(activations, splits, folds[0])
    return Separation(scores, *places, int(folds.max()) + 1), projections


def _score_whole(splits: Splits, is_harmful: Bool[Tensor, " n_prompts"]) -> Scores:
    """Score the last of the splits, which is fitted to all prompts."""
    whole = splits.values[-1]
    return score(whole / splits.norms, whole - splits.thresholds[-1], is_harmful)


def held_out_scores(
    activations: Activations,
    folds: Int[Tensor, " n_prompts"],
    clip_quantile: float | None,
    method: str = DIFFERENCE_OF_MEANS,
) -> Scores:
    """Score every place on the prompts that its directions were not fitted to; no intervals."""
    splits = project_splits(activations, fitting_splits(folds[None]), clip_quantile, method)
    values, thresholds = splits.held_out(folds)
    return score(values / splits.norms, values - thresholds, activations.is_harmful)


def _score_repeats(
    splits: Splits,
    folds: Int[Tensor, "n_repeats n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    resamples: tuple[int, int],
) -> tuple[Scores, Scores]:
    """Return scores and their resamples (number, seed), both averaged over the repeats."""
    # All repeats see the same resample: they score the same prompts.
    counts = draw_counts(is_harmful, *resamples)
    n_folds = int(folds.max()) + 1
    values, draws = [], []
    for repeat, dealt in enumerate(folds):
        projected, thresholds = splits.held_out(dealt, first=repeat * n_folds)
        cosines, margins = projected / splits.norms, projected - thresholds
        values.append(score(cosines, margins, is_harmful))
        draws.append(resample(cosines, margins, is_harmful, counts))
    return mean_scores(values), mean_scores(draws)


def _refit_deviations(
    activations: Activations,
    folds: Int[Tensor, " n_prompts"],
    clip_quantile: float | None,
    resamples: tuple[int, int],
    show_progress: bool | None,
) -> Scores:
    """Return how scores move around their mean when the prompts fitted to are resampled.

    `resamples` are their number and their seed.
    """
    n_resamples, seed = resamples
    order, places = sort_by_fold(folds)
    labels = activations.is_harmful[order]
    # Other draws than those of the scored prompts: the two parts are independent.
    counts = draw_counts(labels, n_resamples, [seed, 1]).float()
    grid = activations.values.shape[1:3]
    results = {name: torch.zeros(n_resamples, *grid, dtype=torch.float64) for name in SCORES}
    steps = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for row, column in track(steps, "Scoring resamples", show_progress):
        place = Place.of(activations.values[order, row, column])
        drawn = score_resampled_fits(place, counts, labels.float(), places, clip_quantile)
        for name in SCORES:
            moved = drawn[name].double() - drawn[name].double().nanmean()
            results[name][:, row, column] = moved.nan_to_num()
    return results


def _interval(
    name: str,
    draws: Float[Tensor, " n_resamples n_hook_points n_positions"],
    turns: Float[Tensor, " *n_resamples_and_grid"],
) -> tuple[Tensor, Tensor]:
    """Return the ends of the interval from both bootstraps, within the range of the score."""
    low, high = interval(draws + turns)
    if name in ("separation", "cohens_d"):
        return low, high
    return low.clamp(0, 1), high.clamp(0, 1)


# --- what a histogram shows -------------------------------------------------------------------
