"""How much of an intervention does how much, and what directions that mean nothing do.

Knows which strengths, controls and scores are tried on the test part of the prompts, and how the
results are summed up. Does not know how interventions are run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.config import Outcome
from refusal_lens.directions.direction import CLIP_QUANTILE, fit_directions
from refusal_lens.experiments.answers import answer_arms, answer_ids, score_nothing, write_out
from refusal_lens.experiments.arms import INTERVENTIONS, Arm, intervention_of
from refusal_lens.experiments.candidates import FIT, Candidate, make_candidates
from refusal_lens.experiments.effects import (
    Effects,
    continue_prompts,
    join_effects,
    measure_effects,
)
from refusal_lens.experiments.first_tokens import FirstTokens
from refusal_lens.experiments.judges import Judge, decide
from refusal_lens.experiments.outcomes import count_judged, refusal_interval
from refusal_lens.experiments.resampling import mean_interval
from refusal_lens.experiments.verdicts import Evidence, full_strength
from refusal_lens.journal import Journal
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.hook_points import layer_of, site_of
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.prompts.tokens import Tokens, tokenise
from refusal_lens.validation.frames import rows_where
from refusal_lens.validation.shares import number_topics

N_DRAWN = 2
"""Controls of each kind that are tried at every strength."""


@dataclass(frozen=True)
class Plan:
    """What is tried: which interventions, how strongly, and beside how many controls.

    `first_tokens` decide outcomes under controls without their answers, where they decide; as they
    are by default every answer is read. Those under the fitted direction always are. An answer
    under controls ends after `n_settled_tokens`, and so does one that refuses by then though the
    fitted direction was removed. None reads all of them whole.
    """

    interventions: tuple[str, ...] = tuple(INTERVENTIONS)
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5)
    coefficients: tuple[float, ...] = (0.5, 1.0, 1.5)
    n_controls: int = 20
    n_new_tokens: int = 24
    n_settled_tokens: int | None = None
    seed: int = 0
    first_tokens: FirstTokens = FirstTokens()
    plain_answers: Mapping[str, str] | None = field(default=None, repr=False)

    def strengths_of(self, intervention: str) -> tuple[float, ...]:
        """Return how strongly an intervention is tried."""
        is_added = intervention_of(intervention).effect == "adds"
        return self.coefficients if is_added else self.strengths


@dataclass(frozen=True, eq=False)
class Trial:
    """One arm, and which kind of direction it has: `fitted`, `random` or `permuted`.

    `position` is where the fitted direction, whose place all of them take, was read. One that
    `is_ranked_only` is tried on the class that it acts on, to rank the fitted one among many.
    """

    arm: Arm
    position: str
    kind: str
    seed: int
    is_ranked_only: bool = False

    def is_tried_on(self, is_harmful: bool) -> bool:
        """Say whether it is tried on this class of prompts."""
        acts_on = intervention_of(self.arm.intervention).effect == "removes"
        return not self.is_ranked_only or acts_on == is_harmful

    def key(self, kind: str | None = None, strength: float | None = None) -> dict[str, Any]:
        """Return what identifies a row of the table."""
        arm = self.arm
        return {
            "intervention": arm.intervention,
            "direction": kind or self.kind,
            "seed": self.seed,
            "strength": arm.strength if strength is None else strength,
            "hook_point": arm.hook_point,
            "site": site_of(arm.hook_point),
            "layer": layer_of(arm.hook_point),
            "position": self.position,
        }


@dataclass(frozen=True)
class Completion:
    """A prompt's answers with and without an intervention.

    `direction` is `fitted` or `random`, the first of those; under the latter an answer that its
    first token decided was not written out, and is empty.
    """

    prompt_id: str
    category: str
    is_harmful: bool
    prompt: str
    intervention: str
    direction: str
    strength: float
    plain: str
    intervened: str
    outcome_plain: Outcome
    outcome: Outcome


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """Scores of every trial and class, and the answers under the fitted direction.

    `n_by_first_token` in the table counts the prompts whose outcome the first token decided; what
    was evaded or broken is a share of the others, and NaN where there are none.

    `table` has the columns of `tables/dose_response.csv`: one row for every trial and class, and
    the plain model's as strength 0 of the fitted direction. `by_prompt` has one row for every trial
    and prompt.
    """

    table: pd.DataFrame
    by_prompt: pd.DataFrame = field(repr=False)
    completions: tuple[Completion, ...] = field(default=(), repr=False)


def plan_trials(
    candidate: Candidate,
    activations: Activations,
    parts: Int[Tensor, " n_prompts"],
    plan: Plan,
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
) -> list[Trial]:
    """List what is tried: the direction and its controls, each at every strength.

    Controls are random directions as long as the class difference (what they do, any push of that
    size does) and differences of means under permuted labels, of their own length (what they do, a
    direction does that labels had no part in). Where activations vary mostly along the refusal
    direction, as in small models, the latter can point along it, and ablating them then works too:
    the verdict goes by the random ones. All of those are tried at full strength, on the class that
    the intervention acts on, and the first few at every strength.
    """
    fitting = activations.take(parts == FIT)
    directions = [("fitted", 0, candidate)]
    for seed in range(plan.n_controls):
        directions.append(("random", seed, candidate.random(plan.seed + seed)))
    for seed in range(min(plan.n_controls, N_DRAWN)):
        directions.append(
            ("permuted", seed, _permuted(candidate, fitting, plan.seed + seed, clip_quantile))
        )
    return [
        Trial(each.arm(intervention, strength), candidate.position, kind, seed, seed >= N_DRAWN)
        for intervention in plan.interventions
        for kind, seed, each in directions
        for strength in plan.strengths_of(intervention)
        if seed < N_DRAWN or strength == full_strength(plan.strengths_of(intervention))
    ]


def _permuted(
    candidate: Candidate, fitting: Activations, seed: int, clip_quantile: float | None
) -> Candidate:
    """Fit the difference of means under permuted labels; its length is left as it is.

    Half of each class gets the other's label. A shuffle that left the halves uneven would give the
    class difference back, only shorter: nothing varies as much as what tells the classes apart.
    """
    labels = fitting.is_harmful.clone()
    generator = torch.Generator().manual_seed(seed)
    for side in (True, False):
        members = (fitting.is_harmful == side).nonzero()[:, 0]
        order = members[torch.randperm(len(members), generator=generator)]
        labels[order[: len(order) // 2]] = not side
    relabelled = replace(
        fitting,
        values=fitting.at(candidate.hook_point, candidate.position)[:, None, None],
        is_harmful=labels,
        hook_points=(candidate.hook_point,),
        positions=(candidate.position,),
    )
    directions = fit_directions(relabelled, clip_quantile=clip_quantile)
    (shuffled,) = make_candidates(relabelled, directions)
    return replace(candidate, unit=shuffled.unit, vector=shuffled.vector)


def dose_response(
    model: Model,
    labelled: Sequence[tuple[Prompt, bool]],
    trials: Sequence[Trial],
    *,
    refusal_ids: Sequence[int],
    judge: Judge,
    plan: Plan,
    system_prompt: str | None = None,
    journal: Journal | None = None,
) -> DoseResponse:
    """Try every trial on prompts that played no part in fitting or choosing the direction.

    Args:
        model: Of either backend.
        labelled: Prompts of the test part, each with whether it is harmful.
        trials: What to try, as `plan_trials` lists it.
        refusal_ids: Ids of the refusal tokens.
        judge: Takes a prompt and its answer, and says what became of the request.
        plan: Lengths of answers, and the seed of the bootstrap.
        system_prompt: What the system says before each prompt.
        journal: Keeps answers as they come, and has those of an interrupted process.

    Returns:
        Refusal score with a 95 % bootstrap interval over topics, refusal rate with Wilson's by
        topic, KL of the first answer token, and next-token loss of the user's own text, by trial
        and class.
    """
    frames, completions, by_prompt = [], [], []
    for is_harmful in (True, False):
        prompts = [prompt for prompt, side in labelled if side is is_harmful]
        if not prompts:
            continue
        side = _Side(model, prompts, is_harmful, plan, judge, system_prompt, journal)
        tried = [trial for trial in trials if trial.is_tried_on(is_harmful)]
        effects = side.effects(tried, refusal_ids)
        answers = side.answers(tried, effects)
        frames.append(side.table(tried, effects, answers))
        by_prompt.append(side.by_prompt(tried, effects, answers))
        completions += side.completions(tried, answers)
    return DoseResponse(
        pd.concat(frames, ignore_index=True),
        pd.concat(by_prompt, ignore_index=True),
        tuple(completions),
    )


@dataclass(frozen=True)
class _Answered:
    """What became of each prompt, and its answer; None where the first token decided it."""

    texts: Sequence[str | None]
    outcomes: Sequence[Outcome]

    def rate(self, outcome: Outcome) -> float:
        """Share of an outcome that only whole answers show, of those; NaN where none was read."""
        judged: list[Outcome] = [
            o for o, text in zip(self.outcomes, self.texts, strict=True) if text is not None
        ]
        n, n_judged = count_judged(judged, outcome)
        return n / max(n_judged, 1) if judged else math.nan


@dataclass(frozen=True, eq=False)
class _Side:
    """One class of prompts, and everything tried on it."""

    model: Model
    prompts: Sequence[Prompt]
    is_harmful: bool
    plan: Plan
    judge: Judge
    system_prompt: str | None
    journal: Journal | None

    @property
    def name(self) -> str:
        return "harmful" if self.is_harmful else "harmless"

    @cached_property
    def tokens(self) -> Tokens:
        return tokenise(tokenizer_of(self.model), self.prompts, self.system_prompt)

    def plain_texts(self) -> list[str]:
        """Return the plain model's answers."""
        if self.plan.plain_answers is not None:
            return [self.plan.plain_answers[prompt.text] for prompt in self.prompts]
        with ClassProgress("Answering plainly,", {self.name: len(self.prompts)}) as progress:
            ids = answer_ids(
                self.model,
                self.tokens,
                self.plan.n_new_tokens,
                score_first=score_nothing,
                on_batch=lambda rows, _: progress.advance({self.name: len(rows)}),
                journal=self.journal,
            )
        return write_out(self.model, ids)

    def effects(self, trials: Sequence[Trial], refusal_ids: Sequence[int]) -> Effects:
        """Measure every trial; the loss of the user's text, a side effect, of the fitted alone."""
        prompts = continue_prompts(self.tokens, [()] * len(self.tokens), 1)
        counts = {self.name: len(self.prompts) * len(trials)}
        parts = []
        with ClassProgress("Intervening,", counts) as progress:
            for kinds in (("fitted",), ("random", "permuted")):
                rows = [i for i, trial in enumerate(trials) if trial.kind in kinds]
                effects = measure_effects(
                    self.model,
                    prompts,
                    [trials[i].arm for i in rows],
                    refusal_ids,
                    has_text_loss="fitted" in kinds,
                    advance=lambda n: progress.advance({self.name: n}),
                    journal=self.journal,
                )
                parts.append((rows, effects))
        return join_effects(parts)

    def answers(self, trials: Sequence[Trial], effects: Effects) -> list[_Answered]:
        """Return what the plain model answered, then what came under each trial."""
        decided = [
            self._decided(trial, scores)
            for trial, scores in zip(trials, effects.refusal_score.tolist(), strict=True)
        ]
        plain = self.plain_texts()
        texts = self._read(
            trials,
            [
                (index, row)
                for index, outcomes in enumerate(decided)
                for row, outcome in enumerate(outcomes)
                if outcome is None
            ],
        )
        rows = range(len(self.prompts))
        return [
            self._judged(plain, [None] * len(plain)),
            *(
                self._judged([texts.get((index, row)) for row in rows], outcomes)
                for index, outcomes in enumerate(decided)
            ),
        ]

    def _read(
        self, trials: Sequence[Trial], pairs: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], str]:
        """Answer prompts, each under a trial, as far as it takes to tell what became of them.

        Args:
            trials: What is tried.
            pairs: Which trial on which prompt.
        """
        whole = self.plan.n_new_tokens
        n_first = min(self.plan.n_settled_tokens or whole, whole)
        is_whole = [n_first == whole or self._is_read_whole(trials[i]) for i, _ in pairs]
        asked = [(trials[index].arm, row) for index, row in pairs]
        ids: dict[int, list[int]] = {}
        for wanted, n_tokens in ((True, whole), (False, n_first)):
            some = [i for i, each in enumerate(is_whole) if each is wanted]
            if some:
                arms = [asked[i] for i in some]
                found = self._answer("Answering,", self.tokens, arms, n_tokens)
                ids |= zip(some, found, strict=True)
        texts = dict(zip(ids, write_out(self.model, list(ids.values())), strict=True))

        def goes_on(i: int) -> bool:
            (index, row), has_ended = pairs[i], len(ids[i]) < n_first
            if is_whole[i] or has_ended or trials[index].kind != "fitted":
                return False
            return decide(self.judge, self.prompts[row].text, texts[i]) != "refused"

        left = [i for i in range(len(pairs)) if goes_on(i)]
        if left:
            begun = [ids[i] for i in left]
            tokens = self.tokens.select([pairs[i][1] for i in left])
            tokens = continue_prompts(tokens, begun, n_first + 1).tokens
            arms = [(asked[i][0], place) for place, i in enumerate(left)]
            rest = self._answer("Answering on,", tokens, arms, whole - n_first)
            joined = [[*first, *more] for first, more in zip(begun, rest, strict=True)]
            texts |= zip(left, write_out(self.model, joined), strict=True)
        return {pair: texts[i] for i, pair in enumerate(pairs)}

    def _is_read_whole(self, trial: Trial) -> bool:
        """Say so of fitted additions: what refuses under one may still turn out broken."""
        adds = intervention_of(trial.arm.intervention).effect == "adds"
        return adds and trial.kind == "fitted"

    def _answer(
        self, what: str, tokens: Tokens, asked: Sequence[tuple[Arm, int]], n_tokens: int
    ) -> list[list[int]]:
        with ClassProgress(what, {self.name: len(asked)}) as progress:
            return answer_arms(
                self.model,
                tokens,
                asked,
                n_tokens,
                lambda n: progress.advance({self.name: n}),
                self.journal,
            )

    def _decided(self, trial: Trial, scores: Sequence[float]) -> list[Outcome | None]:
        if trial.kind == "fitted":
            return [None] * len(scores)
        return self.plan.first_tokens.outcomes(scores)

    def _judged(self, texts: Sequence[str | None], decided: Sequence[Outcome | None]) -> _Answered:
        outcomes: list[Outcome] = [
            outcome or decide(self.judge, prompt.text, text or "")
            for prompt, text, outcome in zip(self.prompts, texts, decided, strict=True)
        ]
        return _Answered(texts, outcomes)

    def table(
        self, trials: Sequence[Trial], effects: Effects, answers: Sequence[_Answered]
    ) -> pd.DataFrame:
        rows = []
        unmoved = {"kl": torch.zeros(1), "text_loss": effects.plain_loss}
        plain = self._row(effects.plain_score, unmoved, answers[0])
        for trial in {trial.arm.intervention: trial for trial in trials}.values():
            rows.append(trial.key("fitted", 0.0) | {"seed": 0} | plain)
        for index, trial in enumerate(trials):
            scores = {"kl": effects.kl[index], "text_loss": effects.text_loss[index]}
            score, answered = effects.refusal_score[index], answers[index + 1]
            rows.append(trial.key() | self._row(score, scores, answered))
        return pd.DataFrame(rows)

    def _row(
        self, refusal_score: Tensor, scores: dict[str, Tensor], answered: _Answered
    ) -> dict[str, Any]:
        n_refused, n_judged = count_judged(answered.outcomes, "refused")
        topics = number_topics([prompt.topic for prompt in self.prompts])
        low, high = refusal_interval(answered.outcomes, topics)
        score_low, score_high = mean_interval(refusal_score.numpy(), topics, self.plan.seed)
        return {
            "is_harmful": self.is_harmful,
            "n_prompts": n_judged,
            "refusal_score": refusal_score.mean().item(),
            "refusal_score_low": score_low,
            "refusal_score_high": score_high,
            "refusal_rate": n_refused / max(n_judged, 1),
            "refusal_rate_low": low,
            "refusal_rate_high": high,
            "evaded_rate": answered.rate("evaded"),
            "broken_rate": answered.rate("broken"),
            "n_by_first_token": answered.texts.count(None),
            **{name: values.mean().item() for name, values in scores.items()},
        }

    def by_prompt(
        self, trials: Sequence[Trial], effects: Effects, answers: Sequence[_Answered]
    ) -> pd.DataFrame:
        """Return one row a trial and prompt; the plain model's have no intervention."""
        plain = {"intervention": "", "direction": "", "seed": 0, "strength": 0.0}
        parts = [pd.DataFrame({"outcome": answers[0].outcomes}).assign(**plain, kl=0.0)]
        for index, trial in enumerate(trials):
            part = pd.DataFrame(
                {
                    "outcome": answers[index + 1].outcomes,
                    "kl": effects.kl[index].numpy(),
                    "loss_rise": (effects.text_loss[index] - effects.plain_loss).numpy(),
                    "score_change": (effects.refusal_score[index] - effects.plain_score).numpy(),
                }
            )
            key = {name: trial.key()[name] for name in plain}
            parts.append(part.assign(**key))
        ids = [prompt.id for prompt in self.prompts]
        parts = [part.assign(prompt_id=ids, is_harmful=self.is_harmful) for part in parts]
        return pd.concat(parts, ignore_index=True)

    def completions(
        self, trials: Sequence[Trial], answers: Sequence[_Answered]
    ) -> list[Completion]:
        plain = answers[0]
        return [
            Completion(
                prompt.id,
                prompt.category,
                self.is_harmful,
                prompt.text,
                trial.arm.intervention,
                trial.kind,
                trial.arm.strength,
                plain.texts[row] or "",
                answered.texts[row] or "",
                plain.outcomes[row],
                answered.outcomes[row],
            )
            for trial, answered in zip(trials, answers[1:], strict=True)
            if trial.kind == "fitted" or (trial.kind, trial.seed) == ("random", 0)
            for row, prompt in enumerate(self.prompts)
        ]


def evidence_of(
    by_prompt: pd.DataFrame, units: Mapping[tuple[str, bool], int], auroc: float, auroc_p: float
) -> Evidence | None:
    """Gather what the verdict goes by: the first removal and the first addition, at full strength.

    Prompts with the same number in `units`, which are by prompt id and whether it is harmful,
    depend on each other. `auroc` is the held-out one of the fitted direction, with its p-value.
    None where removal or addition was not tried: then nothing can be said of causes.
    """
    tried = [intervention_of(name) for name in dict.fromkeys(by_prompt["intervention"]) if name]
    first = {each.effect: each.name for each in reversed(tried)}
    if len(first) < 2:
        return None
    plain = {
        side: rows_where(by_prompt, intervention="", is_harmful=side) for side in (True, False)
    }

    def full(intervention: str, direction: str, is_harmful: bool) -> pd.DataFrame:
        rows = rows_where(
            by_prompt, intervention=intervention, direction=direction, is_harmful=is_harmful
        )
        return rows_where(rows, strength=full_strength(rows["strength"]))

    def left(direction: str) -> Float[np.ndarray, "n_seeds n_harmful"]:
        rows = full(first["removes"], direction, True)
        return _are(rows, *NOT_COMPLYING).reshape(-1, len(plain[True]))

    def induced(direction: str) -> Float[np.ndarray, "n_seeds n_harmless"]:
        rows = full(first["adds"], direction, False)
        return _are(rows, "refused").reshape(-1, len(plain[False]))

    kept = full(first["removes"], "fitted", False)
    return Evidence(
        harmful=_are(plain[True], "refused"),
        left=left("fitted")[0],
        harmless=_are(plain[False], "refused"),
        induced=induced("fitted")[0],
        kl=kept["kl"].to_numpy(dtype=float),
        loss_rise=kept["loss_rise"].to_numpy(dtype=float),
        random_left=left("random"),
        random_induced=induced("random"),
        harmful_units=[units[str(name), True] for name in plain[True]["prompt_id"]],
        harmless_units=[units[str(name), False] for name in plain[False]["prompt_id"]],
        auroc=auroc,
        auroc_p=auroc_p,
    )


NOT_COMPLYING = ("refused", "broken", "unjudged")
"""What counts as still refused under removal: a model that breaks does not comply."""


def _are(rows: pd.DataFrame, *wanted: str) -> Float[np.ndarray, " n_rows"]:
    """Say of which rows the outcome is one of these."""
    return rows["outcome"].isin(wanted).to_numpy(dtype=float)
