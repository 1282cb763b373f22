"""How far a direction can be believed: scores out of sample, with intervals.

Knows how prompts are held out and scored at every place. Does not draw, and does not choose.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import place_index, site_of
from refusal_lens.progress import track
from refusal_lens.validation.crossfit import (
    Projections,
    Splits,
    cross_folds,
    first_projections,
    fitting_splits,
    fitting_weights,
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
    interval,
    mean_scores,
    score,
    score_with_influence,
    stretched,
)
from refusal_lens.validation.thresholds import MIN_ACCURACY, MIN_SEPARATION
from refusal_lens.validation.units import (
    Units,
    draw_weights,
    frame_units,
    frames_differ,
    intraclass_correlation,
    pair_units,
    topic_units,
    unit_variance,
)

NEW_TOPICS = {"value": "_new_topics", "low": "_new_topics_low", "high": "_new_topics_high"}
"""Endings of the columns that hold scores with whole topics left out, by what they hold."""


@dataclass(frozen=True, eq=False)
class Separation:
    """Scores of every place: out of sample as the headline, in sample beside it.

    `scores` are named as in `validation.scores.SCORES`; each is also an attribute, such as
    `auroc` and `auroc_in_sample`. They are of new prompts of the same topics; `new_topics` holds
    those with whole topics left out, and is empty where there are none to leave out. `is_valid`
    wants separation and accuracy both. `intraclass_correlation` says how alike the projections of
    one topic are, and `n_effective` how many independent prompts they are worth for what is said of
    new topics; None where that was not computed. `n_units` are the pairs (or prompts) of the
    smaller class, `n_units_new_topics` its components: below `FEWEST_UNITS` there is no interval.
    """

    scores: Mapping[str, Score]
    hook_points: tuple[str, ...]
    positions: tuple[str, ...]
    n_folds: int
    new_topics: Mapping[str, Score] = field(default_factory=dict)
    intraclass_correlation: Float[Tensor, "n_hook_points n_positions"] | None = None
    n_effective: Float[Tensor, "n_hook_points n_positions"] | None = None
    n_units: int | None = None
    n_units_new_topics: int | None = None

    @property
    def headline(self) -> Mapping[str, Score]:
        """The scores that say most: on new topics where there are any, else on new prompts."""
        return self.new_topics or self.scores

    @property
    def gap(self) -> Float[Tensor, "n_hook_points n_positions"]:
        """How much higher the AUROC is on new prompts of the same topics than on new topics."""
        return self.auroc - self.headline["auroc"].value

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
        if not rows or position not in self.positions:
            there = "; ".join(f"{each} at {at}" for each, at in self.columns)
            raise RefusalLensError(
                f"These scores have nothing of site {site} at position {position}. They have: "
                f"{there}. Choose among these."
            )
        return self._take(rows, [self.positions.index(position)])

    def only_at(self, hook_point: str, position: str) -> "Separation":
        """Return the scores of one place, as a grid of one."""
        place = hook_point, position
        row, column = place_index(self.hook_points, self.positions, place, "these scores")
        return self._take([row], [column])

    def _take(self, rows: list[int], columns: list[int]) -> "Separation":
        """Return the scores at some hook points and positions."""
        grids = (self.intraclass_correlation, self.n_effective)
        icc, n_effective = (None if grid is None else grid[rows][:, columns] for grid in grids)
        return Separation(
            {name: one.take(rows, columns) for name, one in self.scores.items()},
            tuple(self.hook_points[row] for row in rows),
            tuple(self.positions[column] for column in columns),
            self.n_folds,
            {name: one.take(rows, columns) for name, one in self.new_topics.items()},
            icc,
            n_effective,
            self.n_units,
            self.n_units_new_topics,
        )

    @property
    def columns(self) -> tuple[tuple[str, str], ...]:
        """Every site and position, in the order collected."""
        sites = dict.fromkeys(site_of(name) for name in self.hook_points)
        return tuple((site, position) for site in sites for position in self.positions)

    def to_frame(self) -> pd.DataFrame:
        """Return one row a place, hook point by hook point.

        Each score has four columns: itself, `_low` and `_high` (95 % interval), `_in_sample`; and
        `_new_topics` with `_new_topics_low` and `_new_topics_high`, NaN without topics to leave
        out. `intraclass_correlation` and `n_effective` stand beside them.
        """
        frame = place_frame(self.hook_points, self.positions)
        for name, one in self.scores.items():
            for part in fields(Score):
                ending = "" if part.name == "value" else f"_{part.name}"
                frame[f"{name}{ending}"] = getattr(one, part.name).flatten().numpy()
        frame["is_valid"] = self.is_valid.flatten().numpy()
        for name, one in self.new_topics.items():
            for part, ending in NEW_TOPICS.items():
                frame[f"{name}{ending}"] = getattr(one, part).flatten().numpy()
        for name in ("intraclass_correlation", "n_effective"):
            if getattr(self, name) is not None:
                frame[name] = getattr(self, name).flatten().numpy()
        for name in ("n_units", "n_units_new_topics"):
            if getattr(self, name) is not None:
                frame[name] = getattr(self, name)
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
        new_topics = {
            name: replace(
                scores[name], **{part: grid(f"{name}{end}") for part, end in NEW_TOPICS.items()}
            )
            for name in scores
            if f"{name}_new_topics" in frame
        }
        icc, n_effective = (
            grid(name) if name in frame else None
            for name in ("intraclass_correlation", "n_effective")
        )
        counts = (
            int(frame[name].iloc[0]) if name in frame else None
            for name in ("n_units", "n_units_new_topics")
        )
        return cls(scores, hook_points, positions, n_folds, new_topics, icc, n_effective, *counts)


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

    Prompts depend on each other as `activations.groups` says. Twins and near-duplicates are never
    dealt apart: held out with them, the scores are those of *new prompts of the same topics*. With
    whole components held out (topics, with what twins join to them) they are those of *new topics*,
    where there are two or more in each class. Frames that cross the topics and differ by class are
    held out with them: no prompt is tested by a direction that saw its topic or its frame.

    An interval covers the score of the direction that is delivered, fitted to all prompts, on such
    new prompts. Its variance adds that of the units scored (pairs within their topics, or whole
    components; where frames cross the topics, both at once) and that of the directions when the
    units fitted to are weighted anew. There is none where a class has fewer than `FEWEST_UNITS`
    units, or a fold's direction is another one (`LEAST_LIKENESS`). Not covered: that the best of
    many places was chosen (`validation.nested_choice`), and prompts of another kind.

    Args:
        activations: Activations of both classes, and their groups.
        clip_quantile: As in `fit_directions`.
        n_folds: Stratified folds; fewer when a class has fewer units.
        n_repeats: How often prompts are dealt to folds anew.
        n_resamples: Weightings of the prompts fitted to, `REFITS` at most: only their variance
            is used.
        seed: Of the shuffles that deal prompts to folds, and of the weights.
        show_progress: Draw a bar; None draws it on a terminal and in notebooks only.
        method: How directions are fitted, see `methods.METHODS`. Other ways than the difference of
            means are too slow to fit so often: their intervals leave out that part.

    Returns:
        Scores of every place, and the held-out projections behind them.

    Raises:
        RefusalLensError: A class has fewer than two prompts that do not depend on each other.

    Source:
        Two factors at once: Cameron, Gelbach & Miller 2011, "Robust inference with multiway
        clustering", Journal of Business & Economic Statistics 29; weights of both multiplied: Owen
        2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1.
    """
    if not isinstance(activations, Activations):
        raise RefusalLensError(
            f"validate needs Activations, but {type(activations).__name__} came. rl.collect and "
            "rl.load_activations give them."
        )
    is_harmful, groups = activations.is_harmful, activations.groups
    topics = _Plan.of_topics(activations, n_folds, n_repeats, seed)
    plans = [_Plan.of_pairs(activations, n_folds, n_repeats, seed)]
    plans += [] if topics is None else [topics]
    whole = torch.ones(1, len(is_harmful), dtype=torch.float64)
    fitting = torch.cat([*(plan.fitting for plan in plans), whole])
    splits = project_splits(activations, fitting, clip_quantile, method)
    in_sample = _score_whole(splits, is_harmful)
    refits = (min(n_resamples, REFITS) if method == DIFFERENCE_OF_MEANS else 0, seed)
    results, first = [], 0
    for plan in plans:
        values, variances = _score_repeats(splits, plan, is_harmful, first)
        mine = slice(first, first + len(plan.fitting))
        lengths = splits.lengths[mine].mean(dim=0)
        turned = _refit_variances(activations, plan, clip_quantile, lengths, refits, show_progress)
        stretch = lengths / splits.lengths[-1]
        stretch = stretch if method == DIFFERENCE_OF_MEANS else None
        variances = {name: (part[0] + turned[name], part[1]) for name, part in variances.items()}
        scores = _with_intervals(values, variances, in_sample, plan.units, stretch)
        is_other = splits.likeness(mine) < LEAST_LIKENESS
        results.append({name: one.without_interval(is_other) for name, one in scores.items()})
        first = mine.stop
    projections = first_projections(activations, splits, plans[0].folds[0])
    correlation = n_effective = None
    if topics is not None:
        correlation, n_effective = intraclass_correlation(
            projections.values, is_harmful, groups.topic
        )
    separation = Separation(
        results[0],
        activations.hook_points,
        activations.positions,
        plans[0].n_folds,
        results[1] if topics is not None else {},
        correlation,
        n_effective,
        min(plans[0].units.n_per_class),
        None if topics is None else min(topics.units.n_per_class),
    )
    return separation, projections


TOPIC_FOLDS = 8
"""Least folds that topics are dealt to, where there are as many: leaving out a fifth of few topics
would score directions much worse than the one that is delivered."""

REFITS = 200
"""Weightings behind the variance of directions: its standard error is 10 % of it, and that of an
interval's width a few per cent, as directions are the smaller part."""


LEAST_LIKENESS = 0.5
"""Where the direction of some fold orders the prompts less like that of all prompts (Spearman's
correlation), held-out scores are those of other directions than the one delivered, and there is no
interval. With noise in 64 dimensions or more it is 0.55 at the least, with an effect or without,
but for a few draws of heavy tails without one; where one coordinate outweighs the rest its sign
turns from fold to fold, and it is -0.9 in more than half of the draws."""

FRAME_FOLDS = 4
"""Folds that frames are dealt to where they are held out beside topics: what shares neither with a
block is 0.66 of the prompts, with 8 folds of topics."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is held out together, how it is dealt, and what crosses it (None for nothing).

    `folds` number what is held out at once, and `fitting` weights what each is tested by.
    """

    units: Units
    folds: Int[Tensor, "n_repeats n_prompts"]
    fitting: Float[Tensor, "n_splits n_prompts"]
    frames: Units | None = None

    @classmethod
    def of_pairs(cls, activations: Activations, n_folds: int, n_repeats: int, seed: int) -> "_Plan":
        """Hold out pairs, within their topics."""
        is_harmful = activations.is_harmful
        units = pair_units(is_harmful, activations.groups)
        folds = repeat_folds(is_harmful, n_folds, n_repeats, seed, units)
        return cls(units, folds, fitting_weights(folds, is_harmful, units))

    @classmethod
    def of_topics(
        cls, activations: Activations, n_folds: int, n_repeats: int, seed: int
    ) -> "_Plan | None":
        """Hold out components, with frames that differ by class; None without topics."""
        is_harmful, groups = activations.is_harmful, activations.groups
        units, frames = topic_units(is_harmful, groups), frame_units(is_harmful, groups)
        if units is None:
            return None
        folds = repeat_folds(is_harmful, max(n_folds, TOPIC_FOLDS), n_repeats, seed, units)
        if frames is None or not frames_differ(is_harmful, groups):
            return cls(units, folds, fitting_weights(folds, is_harmful, units), frames)
        of_frames = repeat_folds(is_harmful, FRAME_FOLDS, n_repeats, seed, frames)
        return cls(units, *cross_folds(folds, of_frames), frames)

    @property
    def n_folds(self) -> int:
        return len(self.fitting) // len(self.folds)


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


Variances = dict[str, tuple[Tensor, Tensor]]
"""Variance and degrees of freedom of each score."""


def _score_repeats(
    splits: Splits, plan: _Plan, is_harmful: Bool[Tensor, " n_prompts"], first: int
) -> tuple[Scores, Variances]:
    """Return scores and their variance over units, both from the mean over the repeats."""
    values, influences = [], []
    for repeat, dealt in enumerate(plan.folds):
        projected, thresholds = splits.held_out(dealt, first=first + repeat * plan.n_folds)
        cosines, margins = projected / splits.norms, projected - thresholds
        scores, influence = score_with_influence(cosines, margins, is_harmful)
        values.append(scores)
        influences.append(influence)
    influence = mean_scores(influences)
    return mean_scores(values), {name: _variance(influence[name], plan) for name in SCORES}


def _variance(influence: Float[Tensor, " n_prompts *grid"], plan: _Plan) -> tuple[Tensor, Tensor]:
    """Return the variance over units, or over units and the frames that cross them."""
    variance, freedom = unit_variance(influence, plan.units)
    if plan.frames is None:
        return variance, freedom
    units, frames = plan.units, plan.frames
    both = units.of_prompt * frames.n_units + frames.of_prompt
    across, _ = unit_variance(influence, frames)
    within, _ = unit_variance(influence, Units(**_cells(both)))
    return torch.maximum(variance, variance + across - within), freedom


def _cells(labels: Int[Tensor, " n_prompts"]) -> dict[str, Tensor]:
    """Number the cells of two crossed factors, as units of one stratum."""
    numbers, of_prompt = labels.unique(return_inverse=True)
    zeros = torch.zeros(len(numbers), dtype=torch.int64)
    return {"of_prompt": of_prompt, "kind": zeros, "stratum": zeros}


def _refit_variances(
    activations: Activations,
    plan: _Plan,
    clip_quantile: float | None,
    lengths: Float[Tensor, "*grid"],
    refits: tuple[int, int],
    show_progress: bool | None,
) -> Scores:
    """Return how scores vary when the units fitted to are weighted anew (number, seed).

    Uneven weights make longer directions, whose scores vary less: they are stretched to the
    `lengths` of those fitted to the prompts as they are.
    """
    n_draws, seed = refits
    grid = activations.values.shape[1:3]
    results = {name: torch.zeros(grid, dtype=torch.float64) for name in SCORES}
    if n_draws == 0:
        return results
    is_harmful = activations.is_harmful
    generator = np.random.default_rng([seed, 1])
    weights = draw_weights(is_harmful, plan.units, n_draws, generator)
    if plan.frames is not None:
        weights = weights * draw_weights(is_harmful, plan.frames, n_draws, generator)
    order, places = sort_by_fold(plan.folds[0])
    labels, weights = is_harmful[order].float(), weights[:, order].float()
    fitting = plan.fitting[: plan.n_folds, order].float()
    steps = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for row, column in track(steps, "Scoring other directions", show_progress):
        place = Place.of(activations.values[order, row, column])
        drawn, longer = score_resampled_fits(place, weights, labels, places, fitting, clip_quantile)
        ratio = (longer.mean() / lengths[row, column]).item()
        for name in SCORES:
            scores = stretched(name, drawn[name].double().numpy(), ratio)
            with np.errstate(invalid="ignore"):  # d' is infinite where a class is constant
                results[name][row, column] = scores.var(ddof=1)
    return {name: variance.nan_to_num() for name, variance in results.items()}


def _with_intervals(
    values: Scores,
    variances: Variances,
    in_sample: Scores,
    units: Units,
    stretch: Float[Tensor, "*grid"] | None,
) -> dict[str, Score]:
    """Put the interval beside each score."""
    scores = {}
    for name in SCORES:
        n_units = min(units.n_per_class)
        ends = interval(name, values[name], *variances[name], n_units, stretch)
        scores[name] = Score(values[name], *ends, in_sample[name])
    return scores
