"""Experiments on a run that has been fitted: choose a direction by its effect, try it, talk to it.

Knows the order of the steps and what each leaves in the run folder.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from refusal_lens.activations.pooled import Activations
from refusal_lens.config import Config
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.answer_lengths import most_tokens
from refusal_lens.experiments.answers import answer_ids, write_out
from refusal_lens.experiments.arms import ADDITION, Arm, intervention_of, removal_of
from refusal_lens.experiments.candidates import (
    TEST,
    Candidate,
    deal_parts,
    fit_candidates,
    make_candidates,
    take_prompts,
)
from refusal_lens.experiments.causal_choice import CausalRule
from refusal_lens.experiments.causal_scores import CausalPlan, causal_scores, held_out_auroc
from refusal_lens.experiments.dose_response import (
    Plan,
    dose_response,
    evidence_of,
    plan_trials,
)
from refusal_lens.experiments.first_tokens import decisive_scores
from refusal_lens.experiments.judges import judge_of
from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.experiments.side_effects import relative_dose, side_effects
from refusal_lens.experiments.verdicts import Verdict, compare_removals, decide_cause, summarise
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.hook_points import resolve_hook_points
from refusal_lens.prompts.contrast import ContrastSet, PromptSet
from refusal_lens.prompts.positions import normalise_position
from refusal_lens.prompts.tokens import check_control_tokens, tokenise
from refusal_lens.runs.decision import best_by_default
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages import terminal
from refusal_lens.stages.study import measure_and_store
from refusal_lens.validation.frames import rows_where


@dataclass(frozen=True)
class Request:
    """What a command asks for; what is None is chosen here.

    `direction` is a hook point or selector of one, with `,position` behind it.
    """

    direction: str | None = None
    interventions: tuple[str, ...] | None = None
    coefficients: tuple[float, ...] | None = None


def read_request(
    direction: str | None, interventions: Sequence[str] | None, coefficients: Sequence[float] | None
) -> Request:
    """Check what was asked for on the command line: there may be no such intervention."""
    return Request(
        direction,
        tuple(intervention_of(name).name for name in interventions) if interventions else None,
        tuple(coefficients) if coefficients else None,
    )


def select_stage(config: Config, run_folder: RunFolder, console: Console) -> list[Path]:
    """Score every direction by what it does to refusal, choose one, and say why."""
    causal = config.causal
    removal_of(causal.intervention)
    prompts, activations, model = _open(config, run_folder, console)
    refusal = _refusal(config, run_folder, model, prompts)
    plan = CausalPlan(
        CausalRule.of(causal),
        causal.intervention,
        causal.n_answer_tokens,
        config.dose.n_controls,
        causal.layers_every,
        config.directions.clip_quantile,
        config.prompts.system_prompt,
        config.validation.seed,
    )
    terminal.show_causal_outlook(console, activations, model.cfg.n_layers, plan)
    with run_folder.unfinished("select") as journal:
        scores = causal_scores(model, activations, prompts, refusal, plan, journal=journal)
        terminal.show_causal(console, scores)
        terminal.show_causal_choice(console, scores.choice, compare_removals(scores.table))
        return [run_folder.write_table("causal_scores", scores.table)]


def ablate_stage(
    config: Config, run_folder: RunFolder, console: Console, request: Request
) -> list[Path]:
    """Try the direction and its controls on the test part, at several strengths."""
    prompts, activations, model = _open(config, run_folder, console)
    refusal = _refusal(config, run_folder, model, prompts)
    seed, clip_quantile = config.validation.seed, config.directions.clip_quantile
    parts = deal_parts(activations, seed)
    fitted = fit_candidates(activations, parts, clip_quantile=clip_quantile)
    candidate = _pick(fitted, _place(request.direction, run_folder, model, console))
    plan = _plan(config, request, refusal)
    trials = plan_trials(candidate, activations, parts, plan, clip_quantile=clip_quantile)
    labelled = [
        (prompts.prompts[i], prompts.is_harmful[i]) for i in take_prompts(prompts, parts, TEST)
    ]
    if not labelled:
        raise RefusalLensError(
            f"No prompts are left to try the direction on: the {len(prompts.harmful)} harmful and "
            f"{len(prompts.harmless)} harmless ones that depend on each other all went into "
            "fitting it. Give more pairs or topics; 30 prompts a side are few."
        )
    with run_folder.unfinished("ablate") as journal:
        answered = dose_response(
            model,
            labelled,
            trials,
            refusal_ids=refusal.refusal_ids,
            judge=judge_of(config.refusal),
            plan=plan,
            system_prompt=config.prompts.system_prompt,
            journal=journal,
        )
        summary = summarise(answered.table)
        keys = zip((p.id for p in prompts.prompts), prompts.is_harmful, strict=True)
        units = dict(zip(keys, activations.groups.pair.tolist(), strict=True))
        evidence = evidence_of(
            answered.by_prompt, units, *held_out_auroc(candidate, activations, parts, TEST)
        )
        verdict = None if evidence is None else decide_cause(evidence, config.causal.max_kl, seed)
        terminal.show_interventions(console, summary, verdict)
        if verdict is not None:
            run_folder.write_table("verdict", _at(candidate, verdict))
        return [
            run_folder.write_table("interventions", summary),
            run_folder.write_table("dose_response", answered.table),
            run_folder.write_table(
                "side_effects",
                side_effects(answered.by_prompt, _doses(candidate, activations, plan)),
            ),
            run_folder.write_completions(answered.completions),
        ]


def chat_stage(config: Config, run_folder: RunFolder, console: Console, request: Request) -> None:
    """Answer typed prompts with and without an intervention, until the input ends."""
    _, activations, model = _open(config, run_folder, console)
    directions = fit_directions(activations, clip_quantile=config.directions.clip_quantile)
    place = _place(request.direction, run_folder, model, console)
    candidate = _pick(make_candidates(activations, directions), place)
    intervention = (request.interventions or (config.causal.intervention,))[0]
    arm = candidate.arm(intervention, (request.coefficients or (1.0,))[0])
    console.print(
        f"{intervention} at {candidate.hook_point}, {candidate.position}, strength "
        f"{arm.strength:g}. One prompt a line; Ctrl-D ends.",
        soft_wrap=True,
    )
    n_new_tokens = _n_new_tokens(config, run_folder.read_refusal())
    for text in _typed(console):
        try:
            plain, intervened = _answer_typed(config, model, text, arm, n_new_tokens)
        except RefusalLensError as error:
            # One prompt that cannot be read ends no conversation.
            terminal.show_fault(console, error)
        else:
            terminal.show_answers(console, plain, intervened)


def _answer_typed(
    config: Config, model: Model, text: str, arm: Arm, n_new_tokens: int
) -> tuple[str, str]:
    """Answer one prompt plainly and under the intervention."""
    prompts = PromptSet.from_texts("typed", [text]).prompts
    tokens = tokenise(tokenizer_of(model), prompts, config.prompts.system_prompt)
    check_control_tokens(tokenizer_of(model), prompts, tokens)
    plain, intervened = (
        write_out(model, answer_ids(model, tokens, n_new_tokens, each))[0] for each in ((), arm)
    )
    return plain, intervened


def _typed(console: Console) -> Iterator[str]:
    """Read prompts line by line, from a person or from a pipe; blank lines are passed over."""
    while True:
        try:
            line = console.input("you> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line.strip()


def _open(
    config: Config, run_folder: RunFolder, console: Console
) -> tuple[ContrastSet, Activations, Model]:
    """Read what the run holds and load its model."""
    prompts = run_folder.read_prompts()
    terminal.show_labels_of(console, prompts)
    activations = run_folder.read_activations(config.directions.hook_points)
    with console.status(f"Loading {config.model.name}"):
        model = run_folder.model()
    return prompts, activations, model


def _refusal(
    config: Config, run_folder: RunFolder, model: Model, prompts: ContrastSet
) -> RefusalReport:
    """Read what the run measured of refusal; measure it where it has not."""
    measured = run_folder.read_refusal()
    if measured is not None and measured.refusal_ids:
        return measured
    return measure_and_store(config, run_folder, model, prompts)


def _place(
    asked: str | None, run_folder: RunFolder, model: Model, console: Console
) -> tuple[str, str]:
    """Return the hook point and position asked for, else chosen by effect, else by separation."""
    if asked is not None:
        selector, _, position = asked.partition(",")
        names = resolve_hook_points(model, selector.strip())
        if len(names) != 1:
            raise RefusalLensError(
                f"--direction needs one hook point, and {selector!r} names {len(names)}. Give its "
                f"layer too, such as {selector}:{len(names) // 2}."
            )
        return names[0], normalise_position(position.strip() or "last")
    table: Any = run_folder.read_table("causal_scores")
    if table is not None and table["is_chosen"].any():
        row = table[table["is_chosen"]].iloc[0]
        return row["hook_point"], row["position"]
    best = best_by_default(run_folder)
    removal = run_folder.read_config().causal.intervention
    why = _why_best_place(table, removal)
    console.print(f"{why} Taking the best place of the run.", markup=False)
    return best.hook_point, best.position


def _why_best_place(table: pd.DataFrame | None, removal: str) -> str:
    """Say why no direction was chosen by its effect: nothing was tried, or nothing passed.

    `removal` is the intervention that the choice goes by; the table has others too.
    """
    if table is None:
        return "No direction was chosen by its effect yet: refusal-lens select does that."
    table = rows_where(table, intervention=removal)
    counts = Counter(
        reason for each in table["reasons"].fillna("") for reason in each.split("; ") if reason
    )
    why = ", ".join(f"{reason} ({n})" for reason, n in counts.most_common(3))
    return f"refusal-lens select chose none of {len(table)} directions by its effect: {why}."


def _at(candidate: Candidate, verdict: Verdict) -> pd.DataFrame:
    """Put the place before each condition of its verdict."""
    place = {"hook_point": candidate.hook_point, "position": candidate.position}
    table = verdict.to_frame().assign(**place)
    return pd.DataFrame(table[[*place, *(name for name in table if name not in place)]])


def _pick(candidates: Sequence[Candidate], place: tuple[str, str]) -> Candidate:
    for candidate in candidates:
        if (candidate.hook_point, candidate.position) == place:
            return candidate
    known = "; ".join(f"{each.hook_point},{each.position}" for each in candidates)
    raise RefusalLensError(
        f"There is no direction at {place[0]},{place[1]}. The run has: {known}. Give one of them "
        "as --direction."
    )


def _doses(candidate: Candidate, activations: Activations, plan: Plan) -> list[tuple[Arm, float]]:
    """Return how far each intervention moves the activations that it acts on, by strength."""
    values = activations.at(candidate.hook_point, candidate.position)
    doses = []
    for intervention in plan.interventions:
        removes = intervention_of(intervention).effect == "removes"
        for strength in plan.strengths_of(intervention):
            arm = candidate.arm(intervention, strength)
            doses.append((arm, relative_dose(arm, values[activations.is_harmful == removes])))
    return doses


def _n_new_tokens(config: Config, refusal: RefusalReport | None) -> int:
    """Return how long answers are; where that was left to be found, as it was found."""
    asked = config.refusal.n_new_tokens
    if asked == "auto" and refusal is not None and refusal.lengths:
        return refusal.lengths[-1]
    return most_tokens(asked)


def _plain_answers(refusal: RefusalReport, n_new_tokens: int) -> dict[str, str] | None:
    """Return what the model answered, by prompt; None where answers were of another length."""
    if not refusal.lengths or refusal.lengths[-1] != n_new_tokens:
        return None
    return {answer.prompt: answer.answer for answer in refusal.answers}


def _plan(config: Config, request: Request, refusal: RefusalReport) -> Plan:
    n_new_tokens = _n_new_tokens(config, refusal)
    plan = Plan(
        interventions=request.interventions
        or (removal_of(config.causal.intervention).name, ADDITION),
        strengths=tuple(config.dose.strengths),
        coefficients=tuple(config.dose.coefficients),
        n_controls=config.dose.n_controls,
        n_new_tokens=n_new_tokens,
        n_settled_tokens=min(refusal.settled_at or n_new_tokens, n_new_tokens),
        seed=config.validation.seed,
        first_tokens=decisive_scores(refusal),
        plain_answers=_plain_answers(refusal, n_new_tokens),
    )
    asked = request.coefficients
    return plan if asked is None else replace(plan, strengths=asked, coefficients=asked)
