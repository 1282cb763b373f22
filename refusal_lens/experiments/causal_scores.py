"""Does a direction cause refusal? Scores of every candidate, and a verdict in words.

Knows what is run for each candidate and what the scores mean. Does not know how directions are
fitted or how interventions are run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from scipy.stats import mannwhitneyu
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, project
from refusal_lens.experiments.answers import answer_ids, score_nothing
from refusal_lens.experiments.arms import (
    ADDITION,
    Arm,
    intervention_of,
    removal_of,
    removals,
)
from refusal_lens.experiments.candidates import (
    SELECT,
    Candidate,
    deal_parts,
    fit_candidates,
    take_prompts,
)
from refusal_lens.experiments.causal_choice import (
    CausalChoice,
    CausalEntry,
    CausalRule,
    causal_entries,
    choose_causal,
)
from refusal_lens.experiments.effects import (
    Continued,
    Effects,
    continue_prompts,
    measure_effects,
)
from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.experiments.verdicts import (
    AFTER,
    INDUCED,
    LEFT,
    REMOVED,
    SEPARATES_AND_CAUSES,
    Evidence,
    Verdict,
    decide_cause,
    doubt_score,
    is_met_but_for_controls,
)
from refusal_lens.journal import Journal
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.prompts.tokens import Tokens, tokenise
from refusal_lens.validation.frames import rows_where

N_RANKED = 3
"""Most candidates that are ranked among random directions: each takes as long as so many of them.
"""


@dataclass(frozen=True)
class CausalPlan:
    """How candidates are scored and chosen among."""

    rule: CausalRule = CausalRule()
    """Thresholds."""
    intervention: str = "affine_ablate"
    """Name of one that removes refusal: the choice goes by it, and its rows come first. At zero
    (`ablate`) the model may never be."""
    n_answer_tokens: int = 8
    """Answer tokens that the longer KL goes over."""
    n_controls: int = 20
    """Random directions of each candidate's length that it is ranked among."""
    layers_every: int = 1
    """Score every so many layers first, and then those around the best; 1 scores all."""
    clip_quantile: float | None = CLIP_QUANTILE
    """As in `fit_directions`."""
    system_prompt: str | None = None
    """What the system says before each prompt."""
    seed: int = 0
    """Of the split, of the random directions and of the bootstrap."""


@dataclass(frozen=True, eq=False)
class CausalScores:
    """One row a candidate and intervention that removes refusal, and the choice among them.

    `table` has the columns of `tables/causal_scores.csv`. `n_passes` is the cost: prompts run
    through the whole model, a pass over half of the layers counted as half. Of `n_places` that have
    a direction, those are scored that the table has.
    """

    table: pd.DataFrame
    choice: CausalChoice
    n_passes: float
    n_prompts: int
    n_places: int

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table


def causal_scores(
    model: Model,
    activations: Activations,
    prompts: ContrastSet,
    refusal: RefusalReport,
    plan: CausalPlan | None = None,
    *,
    journal: Journal | None = None,
    show_progress: bool | None = None,
) -> CausalScores:
    """Score every candidate by what it does to refusal, and choose one.

    Directions are fitted on one third of the prompts and scored on another; the last third is left
    for what is measured with the chosen one. All interventions that remove refusal stand side by
    side; `plan.intervention` says which of them the choice goes by.

    The verdict counts a prompt as refused where its refusal score reaches the threshold that
    follows the judge best (`RefusalReport.score_threshold`); where none does, it cannot tell.
    Of the candidates that meet all else, those that the rule may choose, the lowest bypass first,
    are ranked among random directions, until one ranks before them or `N_RANKED` have been tried.
    Of the others it cannot tell.

    With `plan.layers_every`, a grid of layers is scored first, and then the layers between its best
    one and the next of the grid; a better place elsewhere would be missed.

    Args:
        model: The model the activations came from.
        activations: Of all prompts, in their order.
        prompts: The prompts.
        refusal: What `measure_refusal` found: the refusal tokens, and what the judge said.
        plan: What is tried, and the limits of the choice.
        journal: Keeps scores as they come, and has those of an interrupted process.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Raises:
        RefusalLensError: No intervention of this name removes refusal.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C; Marshall et al. 2024, arXiv 2411.09003.
    """
    plan = plan or CausalPlan()
    removes = tuple(each.name for each in removals(first=removal_of(plan.intervention).name))
    parts = deal_parts(activations, plan.seed)
    candidates = fit_candidates(activations, parts, clip_quantile=plan.clip_quantile)
    rows = take_prompts(prompts, parts, SELECT)
    runner = _Runner.of(model, prompts, rows, refusal, plan, journal, show_progress)
    units = [_units(activations, rows, side) for side in (True, False)]

    def score(some: Sequence[Candidate]) -> list[_Scored]:
        runs = runner.run(some, removes)
        aurocs = [held_out_auroc(each, activations, parts) for each in some]
        return [
            _Scored(each, name, runs.seen(i, name), refusal, plan, *aurocs[i], *units)
            for name in removes
            for i, each in enumerate(some)
        ]

    every, n_layers = plan.layers_every, model.cfg.n_layers
    names = [each.hook_point for each in candidates]
    grid = on_grid(names, every)
    coarse = score([each for each in candidates if each.hook_point in grid])
    scored_on = dict.fromkeys(grid, EVERY_LAYER if every == 1 else f"grid of {every} layers")
    if every > 1:
        _, choice = judge_table(_table(coarse), n_layers, plan.rule, plan.intervention)
        best = choice.chosen or choice.near_misses[0][0]
        around = {name for name in names if name not in grid and _is_near(name, best, every)}
        coarse += score([each for each in candidates if each.hook_point in around])
        scored_on |= dict.fromkeys(around, "around the best of the grid")
        order = {id(each): i for i, each in enumerate(candidates)}
        coarse.sort(key=lambda each: (removes.index(each.removal), order[id(each.candidate)]))
    table = _table(runner.rank(coarse, plan))
    table = table.assign(scored_on=[scored_on[name] for name in table["hook_point"]])
    table, choice = judge_table(table, n_layers, plan.rule, plan.intervention)
    return CausalScores(table, choice, runner.n_passes, len(rows), len(candidates))


EVERY_LAYER = "every layer"
"""How a candidate came to be scored, where no grid was laid over the layers."""


def on_grid(hook_points: Sequence[str], every: int) -> set[str]:
    """Return the hook points in every so-manieth of the layers that have one, the first included.

    Example:
        >>> sorted(on_grid([f"blocks.{layer}.hook_mlp_out" for layer in (2, 3, 4)], 2))
        ['blocks.2.hook_mlp_out', 'blocks.4.hook_mlp_out']
    """
    layers = sorted({layer for name in hook_points if (layer := layer_of(name)) is not None})
    kept = {None, *layers[::every]}
    return {name for name in hook_points if layer_of(name) in kept}


def _is_near(hook_point: str, best: CausalEntry, every: int) -> bool:
    """Say whether a place lies between the best of the grid and the next ones of the grid."""
    layer, middle = layer_of(hook_point), layer_of(best.hook_point)
    return layer is not None and middle is not None and abs(layer - middle) < every


def _table(scored: Sequence["_Scored"]) -> pd.DataFrame:
    return pd.DataFrame([each.row() for each in scored])


def passes_to_score(
    hook_points: Sequence[str], n_positions: int, n_prompts: int, n_layers: int, plan: CausalPlan
) -> float:
    """Say how many prompts will go through the whole model, random directions included, at most.

    Args:
        hook_points: Of the candidates.
        n_positions: At each of them.
        n_prompts: Of the selection part, of each class.
        n_layers: Of the model.
        plan: What is tried.
    """
    grid = on_grid(hook_points, plan.layers_every)
    # The best of the grid is not known yet; in the middle as many layers lie around it as can.
    layers = sorted({layer_of(name) or 0 for name in hook_points})
    near = layers[len(layers) // 2 :][: 2 * (plan.layers_every - 1)]
    scored = [name for name in hook_points if name in grid or layer_of(name) in near]

    def share(name: str, hook_point: str) -> float:
        none = torch.empty(0)
        return 1 - Arm(name, hook_point, none, none, none).first_layer / n_layers

    # A removal is tried on both classes, the addition on one.
    shares = [
        (2 if each.effect == "removes" else 1) * share(each.name, name)
        for each in (*removals(), intervention_of(ADDITION))
        for name in scored
    ]
    mean_share = sum(share(ADDITION, name) for name in scored) / len(scored)
    ranked = N_RANKED * plan.n_controls * 2 * mean_share
    return n_prompts * (n_positions * sum(shares) + ranked)


def _units(activations: Activations, rows: Sequence[int], is_harmful: bool) -> list[int]:
    """Number the prompts of one class so that twins and near-duplicates share a number."""
    return [
        int(activations.groups.pair[i])
        for i in rows
        if bool(activations.is_harmful[i]) is is_harmful
    ]


@dataclass(frozen=True, eq=False)
class _Seen:
    """Scores, prompt by prompt, with one candidate and one removal; of chance, `[n, n_prompts]`."""

    plain_harmful: np.ndarray
    left: np.ndarray
    plain_harmless: np.ndarray
    induced: np.ndarray
    kl: np.ndarray
    kl_answer: np.ndarray
    random_left: np.ndarray
    random_induced: np.ndarray


@dataclass(frozen=True, eq=False)
class _Runs:
    """Effects of every kind of arm with every candidate, kind after kind."""

    harmful: Effects
    harmless: Effects
    kept: Effects
    removes: tuple[str, ...]
    n_candidates: int

    def seen(self, candidate: int, removal: str) -> _Seen:
        row = self.removes.index(removal) * self.n_candidates + candidate
        none = np.empty((0, 0))
        return _Seen(
            self.harmful.plain_score.numpy(),
            self.harmful.refusal_score[row].numpy(),
            self.harmless.plain_score.numpy(),
            self.harmless.refusal_score[candidate].numpy(),
            self.kept.kl[row].numpy(),
            self.kept.kl_answer[row].numpy(),
            none,
            none,
        )


@dataclass(frozen=True, eq=False)
class _Scored:
    """What was seen of one candidate under one removal, and the verdict on it."""

    candidate: Candidate
    removal: str
    seen: _Seen
    refusal: RefusalReport
    plan: CausalPlan
    auroc: float
    auroc_p: float
    harmful_units: list[int]
    harmless_units: list[int]

    @property
    def entry(self) -> CausalEntry:
        """What the rule reads."""
        place, seen = self.candidate, self.seen
        means = (float(each.mean()) for each in (seen.left, seen.induced, seen.kl))
        return CausalEntry(place.hook_point, place.position, *means)

    @cached_property
    def verdict(self) -> Verdict:
        """Weigh what was seen; where the score does not follow the judge, it proves nothing."""
        threshold, index = self.refusal.score_threshold
        seen = self.seen

        def refused(scores: np.ndarray) -> np.ndarray:
            return (scores >= threshold).astype(float)

        evidence = Evidence(
            refused(seen.plain_harmful),
            refused(seen.left),
            refused(seen.plain_harmless),
            refused(seen.induced),
            seen.kl,
            np.empty(0),
            refused(seen.random_left).reshape(-1, len(seen.left)),
            refused(seen.random_induced).reshape(-1, len(seen.induced)),
            self.harmful_units,
            self.harmless_units,
            self.auroc,
            self.auroc_p,
        )
        verdict = decide_cause(evidence, self.plan.rule.max_kl, self.plan.seed)
        refuses_some = len({answer.is_refused for answer in self.refusal.answers}) > 1
        return doubt_score(verdict, index) if refuses_some else verdict

    def row(self) -> dict[str, Any]:
        """Return the row of the table."""
        seen, entry, verdict = self.seen, self.entry, self.verdict
        checks = {check.name: check for check in verdict.checks}
        shares = {
            f"{name}{end}": getattr(checks[check], field)
            for name, check in (("removed_share", REMOVED), ("induced_share", INDUCED))
            for end, field in (("", "estimate"), ("_low", "low"), ("_high", "high"))
        }
        return {
            "hook_point": entry.hook_point,
            "site": site_of(entry.hook_point),
            "layer": layer_of(entry.hook_point),
            "position": entry.position,
            "intervention": self.removal,
            "bypass": entry.bypass,
            "bypass_random": seen.random_left.mean() if seen.random_left.size else math.nan,
            "induce": entry.induce,
            "induce_random": seen.random_induced.mean() if seen.random_induced.size else math.nan,
            "kl": entry.kl,
            "kl_k": seen.kl_answer.mean(),
            "baseline_harmful": seen.plain_harmful.mean(),
            "baseline_harmless": seen.plain_harmless.mean(),
            **shares,
            "left_rate": checks[LEFT].estimate,
            "induced_rate": checks[AFTER].estimate,
            "harmful_projection": project(self.candidate.harmful_mean, self.candidate.unit).item(),
            "harmless_projection": project(self.candidate.mean, self.candidate.unit).item(),
            "auroc": self.auroc,
            "auroc_p": self.auroc_p,
            "verdict": verdict.word,
            "because": ", ".join(verdict.reasons),
        }


@dataclass(eq=False)
class _Runner:
    """The prompts of the selection part, run with one list of arms after the other."""

    model: Model
    refusal_ids: Sequence[int]
    harmful: Continued
    harmless: Continued
    answered: Continued
    journal: Journal | None
    show_progress: bool | None
    n_passes: float = 0.0

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: ContrastSet,
        rows: Sequence[int],
        refusal: RefusalReport,
        plan: CausalPlan,
        journal: Journal | None,
        show_progress: bool | None,
    ) -> "_Runner":
        harmful, harmless = (
            tokenise(
                tokenizer_of(model),
                [prompts.prompts[i] for i in rows if prompts.is_harmful[i] is side],
                plan.system_prompt,
            )
            for side in (True, False)
        )
        # Whether a prompt is refused shows in the first token; what a removal leaves of harmless
        # answers, in more of them.
        to_refuse, to_answer = (
            continue_prompts(tokens, [()] * len(tokens), 1) for tokens in (harmful, harmless)
        )
        answered = answer_plainly(model, harmless, plan.n_answer_tokens, journal)
        ids = refusal.refusal_ids
        return cls(model, ids, to_refuse, to_answer, answered, journal, show_progress)

    def run(self, candidates: Sequence[Candidate], removes: tuple[str, ...]) -> _Runs:
        """Run every candidate under every removal, and under addition."""
        removed = [candidate.arm(name) for name in removes for candidate in candidates]
        added = [candidate.arm(ADDITION) for candidate in candidates]
        effects = self._effects("Intervening,", removed, added, kept=removed)
        return _Runs(*effects, removes, len(candidates))

    def rank(self, scored: Sequence[_Scored], plan: CausalPlan) -> list[_Scored]:
        """Try random directions in place of the best candidates, until they do less than one."""
        found = list(scored)
        if not plan.n_controls:
            return found

        def order(i: int) -> tuple[bool, bool, float]:
            each = scored[i]
            is_dropped = bool(plan.rule.reasons(each.entry, self.model.cfg.n_layers))
            return is_dropped, each.removal != plan.intervention, each.entry.bypass

        met = [i for i, each in enumerate(scored) if is_met_but_for_controls(each.verdict)]
        for i in sorted(met, key=order)[:N_RANKED]:
            found[i] = self._rank_one(scored[i], plan)
            if found[i].verdict.word == SEPARATES_AND_CAUSES:
                break
        return found

    def _rank_one(self, scored: _Scored, plan: CausalPlan) -> _Scored:
        by_chance = [scored.candidate.random(plan.seed + n) for n in range(plan.n_controls)]
        removed = [each.arm(scored.removal) for each in by_chance]
        added = [each.arm(ADDITION) for each in by_chance]
        harmful, harmless, _ = self._effects("Ranking,", removed, added)
        seen = replace(
            scored.seen,
            random_left=harmful.refusal_score.numpy(),
            random_induced=harmless.refusal_score.numpy(),
        )
        return replace(scored, seen=seen)

    def _effects(
        self, what: str, removed: Sequence[Arm], added: Sequence[Arm], kept: Sequence[Arm] = ()
    ) -> tuple[Effects, Effects, Effects]:
        """Try removals on harmful prompts, additions on harmless ones, and what these keep."""
        sides = (
            ("harmful", self.harmful, removed),
            ("harmless", self.harmless, added),
            ("harmless", self.answered, kept),
        )
        counts = {"harmful": 0, "harmless": 0}
        for name, prompts, arms in sides:
            counts[name] += len(prompts.tokens) * len(arms)
        found = []
        with ClassProgress(what, counts, self.show_progress) as progress:
            for name, prompts, arms in sides:
                effects = measure_effects(
                    self.model,
                    prompts,
                    arms,
                    self.refusal_ids,
                    advance=lambda n, name=name: progress.advance({name: n}),
                    journal=self.journal,
                )
                self.n_passes += effects.n_passes
                found.append(effects)
        return found[0], found[1], found[2]


def answer_plainly(
    model: Model, tokens: Tokens, n_answer_tokens: int, journal: Journal | None = None
) -> Continued:
    """Answer prompts greedily and put the answers behind them, for the KL of later tokens."""
    answers = answer_ids(model, tokens, n_answer_tokens, score_first=score_nothing, journal=journal)
    return continue_prompts(tokens, answers, n_answer_tokens)


# --- the table ----------------------------------------------------------------------------------


def held_out_auroc(
    candidate: Candidate,
    activations: Activations,
    parts: Int[Tensor, " n_prompts"],
    part: int = SELECT,
) -> tuple[float, float]:
    """Return the AUROC on a part of the prompts and its one-sided Mann-Whitney p-value."""
    values = activations.at(candidate.hook_point, candidate.position)[parts == part]
    projections = project(values, candidate.unit)
    labels = activations.is_harmful[parts == part]
    harmful, harmless = projections[labels].numpy(), projections[~labels].numpy()
    test = mannwhitneyu(harmful, harmless, alternative="greater")
    return float(test.statistic) / (len(harmful) * len(harmless)), float(test.pvalue)


def judge_table(
    table: pd.DataFrame, n_layers: int, rule: CausalRule, intervention: str
) -> tuple[pd.DataFrame, CausalChoice]:
    """Add to the scores what the rule makes of them.

    Args:
        table: Scores, one row a candidate and intervention.
        n_layers: Of the model.
        rule: Thresholds.
        intervention: The one that the choice goes by.

    Returns:
        The table with `is_eligible`, `reasons` and `is_chosen`; and the choice.
    """
    choice = choose_causal(rows_where(table, intervention=intervention), n_layers, rule)
    chosen = choice.chosen
    place = (chosen.hook_point, chosen.position, intervention) if chosen else None
    parts = []
    for name in dict.fromkeys(table["intervention"]):
        part = rows_where(table, intervention=name)
        reasons = [rule.reasons(entry, n_layers) for entry in causal_entries(part)]
        rows = part.to_dict("records")
        judged = part.assign(
            is_eligible=[not found for found in reasons],
            reasons=["; ".join(found) for found in reasons],
            is_chosen=[(row["hook_point"], row["position"], name) == place for row in rows],
        )
        parts.append(judged)
    return pd.concat(parts, ignore_index=True), choice
