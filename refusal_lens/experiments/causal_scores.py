"""Does a direction cause refusal? Scores of every candidate, and a verdict in words.

Knows what is run for each candidate and what the scores mean. Does not know how directions are
fitted or how interventions are run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from jaxtyping import Int
from scipy.stats import mannwhitneyu
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, project
from refusal_lens.experiments.arms import ADDITION, Arm, removal_of, removals
from refusal_lens.experiments.candidates import (
    SELECT,
    Candidate,
    deal_parts,
    fit_candidates,
    take_prompts,
)
from refusal_lens.experiments.causal_choice import (
    CausalChoice,
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
from refusal_lens.experiments.refusal import ANSWER_BUDGET
from refusal_lens.experiments.verdicts import verdict
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.generation import generate_greedily
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.models.loading import Model, tokenizer_of
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet, Prompt
from refusal_lens.prompts.tokens import Tokens, tokenise
from refusal_lens.validation.frames import rows_where


@dataclass(frozen=True, eq=False)
class CausalScores:
    """One row a candidate and intervention that removes refusal, and the choice among them.

    `table` has the columns of `tables/causal_scores.csv`. `n_passes` is the cost: prompts run
    through the whole model, a pass over half of the layers counted as half.
    """

    table: pd.DataFrame
    choice: CausalChoice
    n_passes: float
    n_prompts: int

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table


def causal_scores(
    model: Model,
    activations: Activations,
    prompts: ContrastSet,
    *,
    refusal_ids: Sequence[int],
    has_refusal: bool,
    rule: CausalRule | None = None,
    intervention: str = "affine_ablate",
    n_answer_tokens: int = 8,
    clip_quantile: float | None = CLIP_QUANTILE,
    system_prompt: str | None = None,
    seed: int = 0,
    show_progress: bool | None = None,
) -> CausalScores:
    """Score every candidate by what it does to refusal, and choose one.

    Directions are fitted on one third of the prompts and scored on another; the last third is left
    for what is measured with the chosen one. All interventions that remove refusal stand side by
    side; `intervention` says which of them the choice goes by. Affine ablation is the default,
    because zero may be a place where the model never is.

    Args:
        model: The model the activations came from.
        activations: Of all prompts, in their order.
        prompts: The prompts.
        refusal_ids: Ids of the refusal tokens (`RefusalReport.refusal_ids`).
        has_refusal: Whether the model refuses at all (`RefusalReport.has_refusal`).
        rule: Thresholds; None takes the paper's.
        intervention: Name of one that removes refusal; its rows come first.
        n_answer_tokens: Answer tokens that the longer KL goes over.
        clip_quantile: As in `fit_directions`.
        system_prompt: What the system says before each prompt.
        seed: Of the split and of the random directions.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Raises:
        RefusalLensError: No intervention of this name removes refusal.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C; Marshall et al. 2024, arXiv 2411.09003.
    """
    removes = [each.name for each in removals(first=removal_of(intervention).name)]
    parts = deal_parts(activations, seed)
    candidates = fit_candidates(activations, parts, clip_quantile=clip_quantile, seed=seed)
    rows = take_prompts(prompts, parts, SELECT)
    labelled = [(prompts.prompts[i], prompts.is_harmful[i]) for i in rows]
    runs = _run_candidates(
        model,
        labelled,
        candidates,
        removes,
        refusal_ids,
        n_answer_tokens=n_answer_tokens,
        system_prompt=system_prompt,
        show_progress=show_progress,
    )
    aurocs = [held_out_auroc(candidate, activations, parts) for candidate in candidates]
    table = pd.DataFrame(
        _score_row(candidate, name, runs, index) | {"auroc": auroc, "auroc_p": p_value}
        for name in removes
        for index, (candidate, (auroc, p_value)) in enumerate(zip(candidates, aurocs, strict=True))
    )
    table, choice = judge_table(
        table, model.cfg.n_layers, rule or CausalRule(), intervention, has_refusal
    )
    n_passes = runs.harmful.effects.n_passes + runs.harmless.effects.n_passes
    return CausalScores(table, choice, n_passes, len(rows))


CONTROL = "control "
"""Before an intervention's name: with a random direction in place of the candidate's."""


@dataclass(frozen=True, eq=False)
class _Side:
    """Effects on one class of prompts: every kind of arm with every candidate."""

    effects: Effects
    kinds: tuple[str, ...]
    n_candidates: int

    def mean(self, what: str, kind: str, candidate: int) -> float:
        """Return a score's mean over the prompts; of the plain model where the kind is empty."""
        row = self.kinds.index(kind) * self.n_candidates + candidate
        return getattr(self.effects, what)[row].mean().item()


@dataclass(frozen=True, eq=False)
class _Runs:
    harmful: _Side
    harmless: _Side


def _run_candidates(
    model: Model,
    labelled: Sequence[tuple[Prompt, bool]],
    candidates: Sequence[Candidate],
    removes: Sequence[str],
    refusal_ids: Sequence[int],
    *,
    n_answer_tokens: int,
    system_prompt: str | None,
    show_progress: bool | None,
) -> _Runs:
    tokenizer = tokenizer_of(model)
    harmful, harmless = (
        tokenise(tokenizer, [p for p, is_harmful in labelled if is_harmful is side], system_prompt)
        for side in (True, False)
    )
    sides = {
        # Nothing but the first token of answers to harmful prompts is scored.
        "harmful": (
            continue_prompts(harmful, [()] * len(harmful), 1),
            (*removes, *(CONTROL + name for name in removes)),
        ),
        "harmless": (
            answer_plainly(model, harmless, n_answer_tokens),
            (*removes, ADDITION, CONTROL + ADDITION),
        ),
    }
    counts = {
        name: len(p.tokens) * len(arms) * len(candidates) for name, (p, arms) in sides.items()
    }
    ran = {}
    with ClassProgress("Intervening,", counts, show_progress) as progress:
        for name, (continued, kinds) in sides.items():
            arms = [_make_arm(c, kind) for kind in kinds for c in candidates]
            effects = measure_effects(
                model,
                continued,
                arms,
                refusal_ids,
                advance=lambda n, name=name: progress.advance({name: n}),
            )
            ran[name] = _Side(effects, kinds, len(candidates))
    return _Runs(ran["harmful"], ran["harmless"])


def _make_arm(candidate: Candidate, kind: str) -> Arm:
    make = candidate.control_arm if kind.startswith(CONTROL) else candidate.arm
    return make(kind.removeprefix(CONTROL))


def answer_plainly(model: Model, tokens: Tokens, n_answer_tokens: int) -> Continued:
    """Answer prompts greedily and put the answers behind them, for the KL of later tokens."""
    answers: list[list[int]] = [[]] * len(tokens)

    def answer(rows: list[int]) -> None:
        generated, _ = generate_greedily(model, tokens.select(rows), n_answer_tokens)
        for row, ids in zip(rows, generated, strict=True):
            answers[row] = ids

    run_in_batches(
        [length + n_answer_tokens for length in tokens.lengths],
        answer,
        token_budget=ANSWER_BUDGET,
        device=str(model.cfg.device),
    )
    return continue_prompts(tokens, answers, n_answer_tokens)


# --- the table ----------------------------------------------------------------------------------


def _score_row(candidate: Candidate, name: str, runs: _Runs, index: int) -> dict[str, Any]:
    harmful, harmless = runs.harmful, runs.harmless
    return {
        "hook_point": candidate.hook_point,
        "site": site_of(candidate.hook_point),
        "layer": layer_of(candidate.hook_point),
        "position": candidate.position,
        "intervention": name,
        "bypass": harmful.mean("refusal_score", name, index),
        "bypass_random": harmful.mean("refusal_score", CONTROL + name, index),
        "induce": harmless.mean("refusal_score", ADDITION, index),
        "induce_random": harmless.mean("refusal_score", CONTROL + ADDITION, index),
        "kl": harmless.mean("kl", name, index),
        "kl_k": harmless.mean("kl_answer", name, index),
        "baseline_harmful": harmful.effects.plain_score.mean().item(),
        "baseline_harmless": harmless.effects.plain_score.mean().item(),
        "harmful_projection": project(candidate.harmful_mean, candidate.unit).item(),
        "harmless_projection": project(candidate.mean, candidate.unit).item(),
    }


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
    table: pd.DataFrame, n_layers: int, rule: CausalRule, intervention: str, has_refusal: bool
) -> tuple[pd.DataFrame, CausalChoice]:
    """Add to the scores what the rule and the verdict make of them.

    Args:
        table: Scores, one row a candidate and intervention.
        n_layers: Of the model.
        rule: Thresholds.
        intervention: The one that the choice goes by.
        has_refusal: Whether the model refuses at all.

    Returns:
        The table with `is_eligible`, `reasons`, `is_chosen` and `verdict`; and the choice.
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
            verdict=[verdict(row, rule.max_kl, has_refusal) for row in rows],
        )
        parts.append(judged)
    return pd.concat(parts, ignore_index=True), choice
