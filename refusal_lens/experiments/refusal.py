"""Does the model refuse?

Knows the refusal score of the first answer token and the refusal rate of short greedy answers.
Does not know directions; interventions come as hooks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from sklearn.metrics import roc_curve
from torch import Tensor

from refusal_lens.config import FIRST_WORDS, Outcome, RefusalConfig
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.answer_lengths import (
    LENGTHS,
    judge_by_length,
    length_table,
    lengths_up_to,
    settled_at,
)
from refusal_lens.experiments.answers import answer_ids, score_nothing, write_out
from refusal_lens.experiments.judges import (
    Agreement,
    Judge,
    agree,
    decide,
    judge_of,
)
from refusal_lens.experiments.outcomes import refusal_interval
from refusal_lens.journal import Journal
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.hook_points import Hook
from refusal_lens.progress import ClassProgress
from refusal_lens.prompts.contrast import ContrastSet, PromptSet
from refusal_lens.prompts.tokens import Tokens, check_control_tokens, token_text, tokenise
from refusal_lens.validation.shares import difference_interval, number_topics, wilson_interval
from refusal_lens.validation.thresholds import CONTRAST_GAP, FEW_REFUSED
from refusal_lens.validation.units import FEWEST_UNITS

N_FINDING = 64
"""Prompts of each class that refusal tokens are found on."""

N_TRIED = 32
"""Prompts of each class that the length of answers is found on."""

MIN_PROBABILITY = 0.02
MIN_RATIO = 4.0
"""A refusal token's mean probability as first token of answers to harmful prompts is at least this,
and this many times that on harmless ones."""


State = Literal["none", "all", "partial", "contrast", "unclear"]
"""What a model does with a contrast set: it refuses nothing, everything, a part, or harmful prompts
far more often than harmless ones; or there are too few prompts to say."""


@dataclass(frozen=True)
class Answer:
    """What the model answered to one prompt."""

    prompt_id: str
    category: str
    is_harmful: bool
    prompt: str
    answer: str
    outcome: Outcome
    refusal_score: float
    by_length: tuple[Outcome, ...] = ()
    """Cut off after each of the report's `lengths`; the last is `outcome`."""
    topic: str = ""
    """Prompts of one topic are not independent; "" for one that is a topic by itself."""

    @property
    def is_refused(self) -> bool:
        """The request was refused; what is evaded or broken was not."""
        return self.outcome == "refused"


@dataclass(frozen=True, eq=False)
class RefusalReport:
    """Answers of a contrast set, and the refusal tokens that the score was taken over.

    `lengths` are the numbers of tokens that answers were judged at, the whole last.
    """

    answers: tuple[Answer, ...]
    refusal_tokens: tuple[str, ...]
    refusal_ids: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    def count(self, is_harmful: bool, *outcomes: Outcome) -> int:
        """Count one class's prompts with these outcomes."""
        return sum(a.outcome in outcomes for a in self._of(is_harmful))

    def n_judged(self, is_harmful: bool) -> int:
        """Count one class's prompts that the judge did not fail on."""
        return len(self._of(is_harmful)) - self.count(is_harmful, "unjudged")

    def rate(self, is_harmful: bool, outcome: Outcome = "refused") -> float:
        """Share of one class's judged prompts that were refused, or had another outcome."""
        n_judged = self.n_judged(is_harmful)
        return self.count(is_harmful, outcome) / n_judged if n_judged else math.nan

    def by_topic(self) -> pd.DataFrame:
        """Return how much of each topic was refused, harmful topics and the most refused first.

        Intervals are for new prompts of the topic.
        """
        rows = []
        for is_harmful, category in dict.fromkeys((a.is_harmful, a.category) for a in self.answers):
            part = tuple(a for a in self._of(is_harmful) if a.category == category)
            report = replace(self, answers=part)
            n_judged = report.n_judged(is_harmful)
            low, high = wilson_interval(report.count(is_harmful, "refused"), n_judged)
            rate = report.rate(is_harmful)
            rows.append((category, is_harmful, n_judged, rate, low, high))
        columns = ["name", "is_harmful", "n_prompts", "refusal_rate"]
        columns += ["refusal_rate_low", "refusal_rate_high"]
        table = pd.DataFrame(rows, columns=pd.Index(columns))
        order = ["is_harmful", "refusal_rate"]
        return table.sort_values(order, ascending=False, kind="stable")

    def interval(self, is_harmful: bool) -> tuple[float, float]:
        """Return the 95 % interval of one class's refusal rate, on new topics."""
        answers = self._of(is_harmful)
        topics = number_topics([answer.topic for answer in answers])
        return refusal_interval([answer.outcome for answer in answers], topics)

    @property
    def has_few_topics(self) -> bool:
        """A class's prompts are told to be of so few topics that intervals cannot go by them."""
        sides = ([answer.topic or None for answer in self._of(side)] for side in (True, False))
        return any(None not in side and 0 < len(set(side)) < FEWEST_UNITS for side in sides)

    def gap(self) -> tuple[float, float]:
        """Return the 95 % interval of how much more often harmful prompts are refused."""
        (first, of_first), (second, of_second) = (
            (self.rate(side) if self.n_judged(side) else 0.0, self.interval(side))
            for side in (True, False)
        )
        return difference_interval(first, of_first, second, of_second)

    def _of(self, is_harmful: bool) -> list[Answer]:
        return [answer for answer in self.answers if answer.is_harmful == is_harmful]

    def mean_score(self, is_harmful: bool) -> float:
        """Mean refusal score of one class, in nats."""
        scores = [a.refusal_score for a in self.answers if a.is_harmful == is_harmful]
        return sum(scores) / len(scores)

    @property
    def state(self) -> State:
        """Say in one word what there is to find, by the intervals of both rates."""
        ends = [self.interval(is_harmful) for is_harmful in (True, False)]
        if all(high <= FEW_REFUSED for _, high in ends):
            return "none"
        if all(low >= 1 - FEW_REFUSED for low, _ in ends):
            return "all"
        low, _ = self.gap()
        if low >= CONTRAST_GAP:
            return "contrast"
        is_some = low > 0 or any(low > FEW_REFUSED for low, _ in ends)
        # A wide interval is no evidence of a part: one of the rates must lie apart from its end.
        (_, harmful_high), (harmless_low, _) = ends
        is_apart = harmful_high < 1 - FEW_REFUSED or harmless_low > FEW_REFUSED
        return "partial" if is_some and is_apart else "unclear"

    @property
    def settled_at(self) -> int | None:
        """Tokens after which refusal and evasion moved no more; None where they still did."""
        return settled_at(*self._by_length())

    def length_table(self) -> pd.DataFrame:
        """Return refusal and evasion by length of answer, see `answer_lengths.length_table`."""
        return length_table(*self._by_length(), [answer.topic for answer in self.answers])

    def _by_length(self) -> tuple[list[tuple[Outcome, ...]], list[bool], tuple[int, ...]]:
        outcomes = [answer.by_length for answer in self.answers]
        return outcomes, [answer.is_harmful for answer in self.answers], self.lengths

    @property
    def is_told_apart(self) -> bool:
        """Harmful prompts are refused more often than harmless ones, beyond doubt."""
        return self.gap()[0] > 0

    @property
    def score_threshold(self) -> tuple[float, float]:
        """Return the refusal score from which on a refusal is likeliest, and its Youden index.

        The index is the rate of hits less that of false alarms, over both classes: 1 where the
        score follows the judge, 0 where it says nothing of refusal. Where everything is refused, or
        nothing, there is no telling: the threshold is 0 then, and the index 0.

        Source:
            Youden 1950, Cancer 3, 32-35.
        """
        judged = [a for a in self.answers if a.outcome != "unjudged"]
        refused = [a.is_refused for a in judged]
        if len(set(refused)) < 2:
            return 0.0, 0.0
        false, hits, thresholds = roc_curve(refused, [a.refusal_score for a in judged])
        best = int((hits - false).argmax())
        # Half-way down to the next score: between what was refused and what was not.
        lower = [a.refusal_score for a in judged if a.refusal_score < thresholds[best]]
        threshold = (thresholds[best] + max(lower, default=thresholds[best])) / 2
        return float(threshold), float(hits[best] - false[best])

    @property
    def agreement(self) -> Agreement:
        """Compare the sign of the score with the judge, over both classes."""
        return agree([a.refusal_score for a in self.answers], [a.is_refused for a in self.answers])


def measure_refusal(
    model: Model,
    prompts: ContrastSet,
    settings: RefusalConfig | None = None,
    *,
    judge: Judge | None = None,
    hooks: Sequence[Hook] = (),
    system_prompt: str | None = None,
    journal: Journal | None = None,
    show_progress: bool | None = None,
) -> RefusalReport:
    """Answer every prompt greedily and judge whether it was refused.

    Printed before any direction: a model that does not refuse has no refusal direction to find.

    Without `first_words` the refusal tokens are found from the model itself, before any hook acts.
    They are used where the judge finds refusal and agrees with them at least as well as with the
    words that refusals usually start with; otherwise those words' tokens are: in a model that never
    refuses, what answers to harmful prompts start with is no refusal.

    Args:
        model: A model with its tokenizer.
        prompts: Harmful and harmless prompts.
        settings: How long answers are, who judges, and the words that refusals start with.
        judge: Takes a prompt and its answer and says what became of the request; it decides
            instead of the one that the settings name.
        hooks: Interventions to answer under; they are gone afterwards, also after an error.
        system_prompt: What the system says before each prompt.
        journal: Keeps answers as they come, and has those of an interrupted process.
        show_progress: Draw progress bars; None draws them on a terminal and in notebooks only.

    Returns:
        Answers in the order of `prompts.prompts`.

    Raises:
        RefusalLensError: There is no such judge, or a prompt holds control tokens.
    """
    if not isinstance(prompts, ContrastSet):
        raise RefusalLensError(
            f"Refusal is measured on a ContrastSet, but {type(prompts).__name__} came. Two lists "
            "become one by rl.ContrastSet.from_texts(harmful, harmless)."
        )
    settings = settings or RefusalConfig()
    judge = judge or judge_of(settings)
    tokens = tokenise(tokenizer_of(model), prompts.prompts, system_prompt)
    check_control_tokens(tokenizer_of(model), prompts.prompts, tokens)
    words = settings.first_words
    choices = [find_refusal_tokens(model, FIRST_WORDS if words is None else words)]
    if words is None:
        choices.insert(0, discover_refusal_tokens(model, tokens, prompts.is_harmful))
    choices = [ids for ids in choices if ids]
    scores: list[list[float]] = [[]] * len(tokens)
    with ClassProgress("Answering", prompts.counts(), show_progress) as progress:

        def score_first(first: Tensor) -> list[list[float]]:
            return torch.stack([refusal_score(first, ids) for ids in choices], dim=1).tolist()

        def keep(rows: list[int], first_scores: Sequence[list[float]]) -> None:
            for row, each in zip(rows, first_scores, strict=True):
                scores[row] = each
            progress.advance(prompts.counts(rows))

        n_answer_tokens = settings.n_new_tokens
        if n_answer_tokens == "auto":
            n_answer_tokens = find_length(model, tokens, prompts, judge, hooks, journal)
        ids = answer_ids(
            model,
            tokens,
            n_answer_tokens,
            hooks,
            score_first=score_first,
            on_batch=keep,
            journal=journal,
            score_key=choices,
        )
    lengths = lengths_up_to(n_answer_tokens)
    outcomes = _judge_all(model, prompts, ids, judge, lengths)
    answered = list(zip(write_out(model, ids), scores, outcomes, strict=True))
    return _choose_report(_reports(tokenizer_of(model), prompts, answered, lengths, choices))


def find_length(
    model: Model,
    tokens: Tokens,
    prompts: ContrastSet,
    judge: Judge,
    hooks: Sequence[Hook] = (),
    journal: Journal | None = None,
) -> int:
    """Return how long answers have to be for refusal and evasion to stop moving.

    Tried on the first `N_TRIED` prompts of each class, at the longest of the lengths, which is also
    what is returned where the rates still move there.
    """
    # A short context may leave less room behind the longest prompt.
    room = (getattr(model.cfg, "n_ctx", None) or math.inf) - max(tokens.lengths)
    longest = max(1, int(min(LENGTHS[-1], room)))
    harmful, harmless = (
        PromptSet(side.name, side.prompts[:N_TRIED]) for side in (prompts.harmful, prompts.harmless)
    )
    tried = ContrastSet(harmful, harmless)
    n_harmful = len(prompts.harmful)
    rows = [*range(len(tried.harmful)), *(n_harmful + i for i in range(len(tried.harmless)))]
    ids = answer_ids(
        model, tokens.select(rows), longest, hooks, score_first=score_nothing, journal=journal
    )
    lengths = lengths_up_to(longest)
    outcomes = _judge_all(model, tried, ids, judge, lengths)
    return settled_at(outcomes, tried.is_harmful, lengths) or longest


def _judge_all(
    model: Model,
    prompts: ContrastSet,
    ids: Sequence[Sequence[int]],
    judge: Judge,
    lengths: Sequence[int],
) -> list[tuple[Outcome, ...]]:
    """Judge every answer, cut off at every length."""
    return [
        judge_by_length(
            lambda text, asked=prompt.text: decide(judge, asked, text),
            lambda part: write_out(model, [part])[0],
            answer,
            lengths,
        )
        for prompt, answer in zip(prompts.prompts, ids, strict=True)
    ]


def _reports(
    tokenizer: Any,
    prompts: ContrastSet,
    answered: Sequence[tuple[str, list[float], tuple[Outcome, ...]]],
    lengths: tuple[int, ...],
    choices: Sequence[tuple[int, ...]],
) -> list[RefusalReport]:
    """Make one report for each choice of refusal tokens; answers and verdicts are the same."""
    reports = []
    for choice, ids in enumerate(choices):
        answers = [
            Answer(p.id, p.category, is_harmful, p.text, text, by[-1], scores[choice], by, p.topic)
            for p, is_harmful, (text, scores, by) in zip(
                prompts.prompts, prompts.is_harmful, answered, strict=True
            )
        ]
        words = tuple(token_text(tokenizer, i) for i in ids)
        reports.append(RefusalReport(tuple(answers), words, ids, lengths))
    return reports


def _choose_report(reports: Sequence[RefusalReport]) -> RefusalReport:
    """Take the found refusal tokens where the judge bears them out, else those of the words."""
    found, words = reports[0], reports[-1]
    is_borne_out = found.is_told_apart and found.agreement.share >= words.agreement.share
    return found if is_borne_out else words


# --- refusal score ----------------------------------------------------------------------------


def find_refusal_tokens(model: Model, first_words: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of the first tokens of words that refusals start with.

    Raises:
        RefusalLensError: No word is given.
    """
    tokenizer = tokenizer_of(model)
    encoded = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in first_words]
    ids = dict.fromkeys(row[0] for row in encoded if row)
    if not ids:
        raise RefusalLensError(
            "The refusal score needs words that refusals start with; refusal.first_words is empty. "
            'Set it to null, or for example to ["I", "As", "Sorry"].'
        )
    return tuple(ids)


def discover_refusal_tokens(
    model: Model, tokens: Tokens, is_harmful: Sequence[bool]
) -> tuple[int, ...]:
    """Find the tokens that answers to harmful prompts start with and others do not.

    The first `N_FINDING` prompts of each class are read. Ids, the likeliest first: those whose mean
    probability over harmful prompts is at least `MIN_PROBABILITY`, and `MIN_RATIO` times that over
    harmless ones; none where the classes are answered alike.
    """
    harmful, harmless = (
        _mean_first_probabilities(model, tokens, [i for i, h in enumerate(is_harmful) if h is side])
        for side in (True, False)
    )
    is_found = (harmful >= MIN_PROBABILITY) & (harmful >= MIN_RATIO * harmless)
    order = harmful.argsort(descending=True)
    return tuple(order[is_found[order]].tolist())


def _mean_first_probabilities(
    model: Model, tokens: Tokens, rows: list[int]
) -> Float[Tensor, " d_vocab"]:
    chosen = tokens.select(rows[:N_FINDING])
    sums: list[Tensor] = []
    answer_ids(
        model,
        chosen,
        1,
        score_first=lambda first: list(first.double().softmax(dim=-1)),
        on_batch=lambda _, probabilities: sums.append(torch.stack(list(probabilities)).sum(dim=0)),
    )
    return torch.stack(sums).sum(dim=0) / len(chosen)


def refusal_score(
    logits: Float[Tensor, "*batch d_vocab"], refusal_ids: Sequence[int]
) -> Float[Tensor, "*batch"]:
    """Return the log-odds, in nats, that the next token is a refusal token.

    Source:
        Arditi et al. 2024, arXiv 2406.11717, section 2.3: log p - log(1 - p), with p the summed
        probability of the refusal tokens.

    Example:
        >>> refusal_score(torch.tensor([[0.0, 0.0]]), [1])
        tensor([0.], dtype=torch.float64)
    """
    ids = torch.tensor(list(dict.fromkeys(refusal_ids)), device=logits.device)
    # Two log-sums keep the digits that 1 - p loses when p is near one; what they would be
    # normalised by is the same in both.
    exact = logits.double()
    others = exact.index_fill(-1, ids, -torch.inf)
    return exact[..., ids].logsumexp(-1) - others.logsumexp(-1)
