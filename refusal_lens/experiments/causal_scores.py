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
    choose_causal,
)
from refusal_lens.experiments.effects import (
    Arm,
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


@dataclass(frozen=True, eq=False)
class CausalScores:
    """One row a candidate, and the choice among them.

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
    for what is measured with the chosen one. Plain ablation (to zero, at every residual write) and
    affine ablation (to the harmless mean, at the direction's own hook point) stand side by side;
    `intervention` says which of them the choice goes by; affine is the default, because zero may be
    a place where the model never is.

    Args:
        model: The model the activations came from.
        activations: Of all prompts, in their order.
        prompts: The prompts.
        refusal_ids: Ids of the refusal tokens (`RefusalReport.refusal_ids`).
        has_refusal: Whether the model refuses at all (`RefusalReport.has_refusal`).
        rule: Thresholds; None takes the paper's.
        intervention: `affine_ablate` or `ablate`.
        n_answer_tokens: Answer tokens that the longer KL goes over.
        clip_quantile: As in `fit_directions`.
        system_prompt: What the system says before each prompt.
        seed: Of the split and of the random directions.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, appendix C; Marshall et al. 2024, arXiv 2411.09003.
    """
    parts = deal_parts(activations, seed)
    candidates = fit_candidates(activations, parts, clip_quantile=clip_quantile, seed=seed)
    rows = take_prompts(prompts, parts, SELECT)
    labelled = [(prompts.prompts[i], prompts.is_harmful[i]) for i in rows]
    runs = _run_candidates(
        model,
        labelled,
        candidates,
        refusal_ids,
        n_answer_tokens=n_answer_tokens,
        system_prompt=system_prompt,
        show_progress=show_progress,
    )
    table = pd.DataFrame([_score_row(c, i, runs, activations, parts)
                          for i, c in enumerate(candidates)])  # fmt: skip
    table, choice = judge_table(
        table, model.cfg.n_layers, rule or CausalRule(), intervention, has_refusal
    )
    n_passes = runs.harmful.n_passes + runs.harmless.n_passes
    return CausalScores(table, choice, n_passes, len(rows))


HARMFUL_ARMS = ("ablate", "affine_ablate", "control_affine_ablate")
HARMLESS_ARMS = ("ablate", "affine_ablate", "add", "control_add")


@dataclass(frozen=True, eq=False)
class _Runs:
    """Effects of the arms of every candidate, arm kind by arm kind."""

    harmful: Effects
    harmless: Effects
    n_candidates: int

    def harmful_mean(self, what: str, arm: str, candidate: int) -> float:
        return self._mean(self.harmful, what, HARMFUL_ARMS.index(arm), candidate)

    def harmless_mean(self, what: str, arm: str, candidate: int) -> float:
        return self._mean(self.harmless, what, HARMLESS_ARMS.index(arm), candidate)

    def _mean(self, effects: Effects, what: str, kind: int, candidate: int) -> float:
        return getattr(effects, what)[kind * self.n_candidates + candidate].mean().item()


def _run_candidates(
    model: Model,
    labelled: Sequence[tuple[Prompt, bool]],
    candidates: Sequence[Candidate],
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
        "harmful": (continue_prompts(harmful, [()] * len(harmful), 1), HARMFUL_ARMS),
        "harmless": (answer_plainly(model, harmless, n_answer_tokens), HARMLESS_ARMS),
    }
    counts = {
        name: len(p.tokens) * len(arms) * len(candidates) for name, (p, arms) in sides.items()
    }
    effects = {}
    with ClassProgress("Intervening,", counts, show_progress) as progress:
        for name, (continued, kinds) in sides.items():
            arms = [_make_arm(c, kind) for kind in kinds for c in candidates]
            effects[name] = measure_effects(
                model,
                continued,
                arms,
                refusal_ids,
                advance=lambda n, name=name: progress.advance({name: n}),
            )
    return _Runs(effects["harmful"], effects["harmless"], len(candidates))


def _make_arm(candidate: Candidate, kind: str) -> Arm:
    is_control = kind.startswith("control_")
    make = candidate.control_arm if is_control else candidate.arm
    return make(kind.removeprefix("control_"))


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


def _score_row(
    candidate: Candidate,
    index: int,
    runs: _Runs,
    activations: Activations,
    parts: Int[Tensor, " n_prompts"],
) -> dict[str, Any]:
    auroc, p_value = held_out_auroc(candidate, activations, parts)
    return {
        "hook_point": candidate.hook_point,
        "site": site_of(candidate.hook_point),
        "layer": layer_of(candidate.hook_point),
        "position": candidate.position,
        "bypass": runs.harmful_mean("refusal_score", "ablate", index),
        "bypass_affine": runs.harmful_mean("refusal_score", "affine_ablate", index),
        "bypass_random": runs.harmful_mean("refusal_score", "control_affine_ablate", index),
        "induce": runs.harmless_mean("refusal_score", "add", index),
        "induce_random": runs.harmless_mean("refusal_score", "control_add", index),
        "kl": runs.harmless_mean("kl", "ablate", index),
        "kl_affine": runs.harmless_mean("kl", "affine_ablate", index),
        "kl_k": runs.harmless_mean("kl_answer", "ablate", index),
        "kl_k_affine": runs.harmless_mean("kl_answer", "affine_ablate", index),
        "baseline_harmful": runs.harmful.plain_score.mean().item(),
        "baseline_harmless": runs.harmless.plain_score.mean().item(),
        "harmful_projection": project(candidate.harmful_mean, candidate.unit).item(),
        "harmless_projection": project(candidate.mean, candidate.unit).item(),
        "auroc": auroc,
        "auroc_p": p_value,
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
        table: Scores, one row a candidate.
        n_layers: Of the model.
        rule: Thresholds.
        intervention: The ablation that the choice goes by.
        has_refusal: Whether the model refuses at all.

    Returns:
        The table with `is_eligible`, `is_eligible_affine`, `reasons`, `is_chosen` and `verdict`;
        and the choice.
    """
    suffix = "_affine" if intervention == "affine_ablate" else ""
    reasons = {
        s: [rule.reasons(entry, n_layers) for entry in causal_entries(table, s)]
        for s in ("", "_affine")
    }
    choice = choose_causal(causal_entries(table, suffix), n_layers, rule)
    place = (choice.chosen.hook_point, choice.chosen.position) if choice.chosen else None
    rows = table.to_dict("records")
    judged = table.assign(
        is_eligible=[not found for found in reasons[""]],
        is_eligible_affine=[not found for found in reasons["_affine"]],
        reasons=["; ".join(found) for found in reasons[suffix]],
        is_chosen=[(row["hook_point"], row["position"]) == place for row in rows],
        verdict=[verdict(row, suffix, rule.max_kl, has_refusal) for row in rows],
    )
    return judged, choice


def causal_entries(table: pd.DataFrame, suffix: str = "_affine") -> list[CausalEntry]:
    """Return what the rule reads, under ablation to zero (`""`) or affine (`"_affine"`)."""
    return [
        CausalEntry(
            row["hook_point"],
            str(row["position"]),
            None if pd.isna(row["layer"]) else int(row["layer"]),
            row[f"bypass{suffix}"],
            row["induce"],
            row[f"kl{suffix}"],
        )
        for row in table.to_dict("records")
    ]
