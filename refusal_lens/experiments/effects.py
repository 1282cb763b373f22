"""What interventions do to the next token, many of them on the same prompts at once.

Knows where prompts are read, and the scores that are read from the logits there. Does not know how
interventions are run, or how directions are made and chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.experiments.arms import Arm
from refusal_lens.experiments.forked import Batch, Forked, Logits
from refusal_lens.experiments.refusal import refusal_score
from refusal_lens.journal import Journal, fingerprint
from refusal_lens.models.backends import Model, describe_model, is_hooked
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.matmul import fast_products
from refusal_lens.prompts.tokens import Ragged, Tokens

CPU_BUDGET = 1024
CUDA_BUDGET = 8192
"""Tokens that run together, those of several interventions counted. On CPUs more are slower: what
goes from one layer to the next no longer stays in the cache."""

WORTH_SHARING = 0.2
"""Share of the tokens from which it pays to run once what all prompts begin with: behind a prefix
attention needs a mask, and is slower."""


CHUNKS_KEPT = 8
"""Batches of arms after which what they gave is kept: on disk that takes as long as one of them in
a small model, and in a large one half a minute goes by."""

_NAMES = ("refusal_score", "kl", "kl_answer", "text_loss")


@dataclass(frozen=True, eq=False)
class Continued:
    """Prompts with the plain model's answers behind them.

    `n_scored` counts, for each, the answer tokens whose distributions are compared; the token that
    ends an answer is one of them.
    """

    tokens: Tokens
    prompt_lengths: tuple[int, ...]
    n_scored: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Effects:
    """What each arm does to each prompt.

    Refusal score of the first answer token, in nats; KL of the plain from the intervened
    distribution at the first token and on average over the first tokens, in nats; loss of the
    user's own tokens, in nats a token (NaN unless asked for). `plain_score` and `plain_loss` are
    those without intervention; `n_passes` counts prompts run through the whole model, a pass over
    half of the layers as half.
    """

    refusal_score: Float[Tensor, "n_arms n_prompts"]
    kl: Float[Tensor, "n_arms n_prompts"]
    kl_answer: Float[Tensor, "n_arms n_prompts"]
    text_loss: Float[Tensor, "n_arms n_prompts"]
    plain_score: Float[Tensor, " n_prompts"]
    plain_loss: Float[Tensor, " n_prompts"]
    n_passes: float


def continue_prompts(
    tokens: Tokens, answers: Sequence[Sequence[int]], n_answer_tokens: int
) -> Continued:
    """Put the plain answers, without the id that ended each, behind the prompts.

    At most `n_answer_tokens` tokens of each answer are scored.
    """
    # The last token scored is only predicted, so that it need not be read.
    given = [tuple(answer)[: n_answer_tokens - 1] for answer in answers]
    ids = tuple((*prompt, *answer) for prompt, answer in zip(tokens.ids, given, strict=True))
    return Continued(
        Tokens(tokens.prompt_ids, Ragged.of(ids), tokens.instruction_spans),
        tokens.lengths,
        tuple(min(len(answer) + 1, n_answer_tokens) for answer in answers),
    )


def measure_effects(
    model: Model,
    prompts: Continued,
    arms: Sequence[Arm],
    refusal_ids: Sequence[int],
    *,
    has_text_loss: bool = False,
    token_budget: int | None = None,
    advance: Callable[[int], None] | None = None,
    journal: Journal | None = None,
) -> Effects:
    """Run every arm on every prompt and compare it with the plain model.

    Each prompt runs once without intervention; every arm goes on from the layer below its own. A
    bridge cannot start in the middle and runs everything.

    Args:
        model: Of either backend.
        prompts: Prompts with plain answers behind them.
        arms: The interventions, in any order.
        refusal_ids: Ids of the refusal tokens.
        has_text_loss: Compute the loss of the user's own tokens too.
        token_budget: Most tokens in a batch, all arms in it counted; None takes 1,024 on CPUs.
        advance: Called with the number of (prompt, arm) pairs just done.
        journal: Keeps scores as they come, and has those of an interrupted process.
    """
    is_cuda = str(model.cfg.device).startswith("cuda")
    budget = token_budget or (CUDA_BUDGET if is_cuda else CPU_BUDGET)
    # The plain model's scores come first, then those of each arm.
    scores = torch.full(
        (len(_NAMES), 1 + len(arms), len(prompts.tokens)), torch.nan, dtype=torch.float64
    )
    n_passes = 0.0

    def run(rows: list[int]) -> None:
        nonlocal n_passes
        batch = _OnBatch(model, prompts, rows, arms, refusal_ids, has_text_loss, budget)
        scores[:, 0, rows] = _as_kept(batch.once(journal, [])[0])
        n_passes += len(rows)
        chunks = _chunks(arms, max(1, budget // batch.places.batch.n_tokens))
        for first in range(0, len(chunks), CHUNKS_KEPT):
            some = chunks[first : first + CHUNKS_KEPT]
            indices = [index for chunk in some for index in chunk]
            for index, scored in zip(indices, batch.once(journal, some), strict=True):
                scores[:, 1 + index, rows] = _as_kept(scored)
            n_passes += sum(batch.cost(arms[index]) for index in indices) * len(rows)
            if advance is not None:
                advance(len(indices) * len(rows))

    with torch.no_grad(), fast_products(model.cfg):
        run_in_batches(
            prompts.tokens.lengths,
            run,
            token_budget=budget,
            device=str(model.cfg.device),
            name_of=lambda row: prompts.tokens.prompt_ids[row],
        )
    return Effects(
        **dict(zip(_NAMES, scores[:, 1:], strict=True)),
        plain_score=scores[0, 0],
        plain_loss=scores[-1, 0],
        n_passes=n_passes,
    )


def _as_kept(scored: Sequence[Sequence[float]]) -> Float[Tensor, "n_scores n_rows"]:
    return torch.tensor(scored, dtype=torch.float64)


def join_effects(parts: Sequence[tuple[Sequence[int], Effects]]) -> Effects:
    """Put effects of some arms and of others on the same prompts together.

    Each part comes with the places of its arms in the whole; what is plain is taken from the first.
    """
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
    found = [effects for _, effects in parts]
    return replace(
        found[0],
        **{name: torch.cat([getattr(each, name) for each in found])[order] for name in _NAMES},
        n_passes=sum(each.n_passes for each in found),
    )


def _chunks(arms: Sequence[Arm], size: int) -> list[list[int]]:
    """Cut arms into batches of one group each."""
    order = sorted(range(len(arms)), key=lambda i: arms[i].group)
    chunks = []
    for _, group in groupby(order, key=lambda i: arms[i].group):
        members = list(group)
        chunks += [members[i : i + size] for i in range(0, len(members), size)]
    return chunks


@dataclass(frozen=True, eq=False)
class _Plain:
    """Next-token distributions of the plain model, which those of all arms are compared with."""

    p: Logits
    log_p: Logits

    @classmethod
    def of(cls, logits: Logits) -> "_Plain":
        log_p = logits.log_softmax(dim=-1)
        return cls(log_p.exp(), log_p)

    def kl(self, logits: Logits) -> Float[Tensor, "batch n_needed"]:
        """Return the KL of the plain from other distributions, in nats."""
        log_q = logits.log_softmax(dim=-1)
        # In place, and one dot product: over a large vocabulary a copy takes as long as a layer.
        return torch.linalg.vecdot(self.p, torch.sub(self.log_p, log_q, out=log_q))


@dataclass(frozen=True, eq=False)
class _Places:
    """Where prompts are read: before each answer token that is scored, and of the user's text."""

    batch: Batch
    n_answer: int
    is_answer: Bool[Tensor, "batch n_answer"]
    is_text: Bool[Tensor, "batch n_text"]
    targets: Int[Tensor, "batch n_text"]

    @classmethod
    def of(cls, prompts: Continued, rows: Sequence[int], has_text_loss: bool) -> "_Places":
        tokens = prompts.tokens.select(rows)
        ids = torch.zeros(len(rows), max(tokens.lengths), dtype=torch.long)
        for row, prompt in enumerate(tokens.ids):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        answers = [(prompts.prompt_lengths[r] - 1, prompts.n_scored[r]) for r in rows]
        # A token is predicted at the position before it; the very first one is not predicted.
        spans = [(max(first, 1) - 1, stop - 1) for first, stop in tokens.instruction_spans]
        texts = [(first, stop - first) for first, stop in spans]
        needed, is_answer = _ranges(answers)
        text_needed, is_text = _ranges(texts if has_text_loss else [(0, 0)] * len(rows))
        targets = ids.gather(1, (text_needed + 1).clamp(max=ids.shape[1] - 1))
        n_answer = needed.shape[1]
        if has_text_loss:
            needed = torch.cat([needed, text_needed], dim=1)
        n_shared = min(len(tokens.shared_prefix()), int(needed.min())) if len(rows) > 1 else 0
        if n_shared < WORTH_SHARING * ids.shape[1]:
            n_shared = 0
        batch = Batch(ids, tokens.lengths, needed, n_shared)
        return cls(batch, n_answer, is_answer, is_text, targets)

    def split(
        self, logits: Logits
    ) -> tuple[Float[Tensor, "batch n_answer d_vocab"], Float[Tensor, "batch n_text d_vocab"]]:
        """Part the logits before answer tokens from those before the user's own."""
        logits = logits.float()
        return logits[:, : self.n_answer], logits[:, self.n_answer :]

    def score(self, logits: Logits, refusal_ids: Sequence[int], plain: _Plain) -> list[list[float]]:
        """Return the scores of one arm, in the order of their names, each prompt by prompt."""
        before_answer, before_text = self.split(logits)
        kl = plain.kl(before_answer)
        scores = (
            refusal_score(before_answer[:, 0], refusal_ids),
            kl[:, 0],
            _mean(kl, self.is_answer),
            self._text_loss(before_text),
        )
        # One tensor: each that is read by itself makes the device wait.
        return torch.stack(scores).double().tolist()

    def _text_loss(self, logits: Logits) -> Float[Tensor, " batch"]:
        if not logits.shape[1]:
            return logits.new_full((len(logits),), torch.nan)
        chosen = logits.gather(-1, self.targets.to(logits.device)[..., None])[..., 0]
        return _mean(logits.logsumexp(dim=-1) - chosen, self.is_text)


@dataclass(frozen=True, eq=False)
class _OnBatch:
    """Arms on one batch of prompts. The plain pass is run once one of them has to be."""

    model: Model
    prompts: Continued
    rows: Sequence[int]
    arms: Sequence[Arm]
    refusal_ids: Sequence[int]
    has_text_loss: bool
    budget: int

    @cached_property
    def places(self) -> _Places:
        return _Places.of(self.prompts, self.rows, self.has_text_loss)

    @cached_property
    def forked(self) -> Forked:
        starts = sorted({arm.first_layer for arm in self.arms})
        return Forked(self.model, self.places.batch, starts)

    @cached_property
    def unmoved(self) -> Logits:
        return self.forked.plain()

    @cached_property
    def plain(self) -> _Plain:
        return _Plain.of(self.places.split(self.unmoved)[0])

    @cached_property
    def key(self) -> str:
        """What all scores of this batch depend on; arms apart, but for where the plain run stops.

        The first blocks of arms cut the plain run into pieces, which changes no bit of it.
        """
        given = self.prompts
        return fingerprint(
            describe_model(self.model),
            torch.__version__,
            [list(given.tokens.ids[row]) for row in self.rows],
            [list(given.tokens.instruction_spans[row]) for row in self.rows],
            [(given.prompt_lengths[row], given.n_scored[row]) for row in self.rows],
            list(self.refusal_ids),
            self.has_text_loss,
            self.budget,
        )

    def cost(self, arm: Arm) -> float:
        """Return the share of the layers that runs."""
        is_whole = not is_hooked(self.model)
        return 1.0 if is_whole else 1 - arm.first_layer / self.model.cfg.n_layers

    def once(self, journal: Journal | None, chunks: Sequence[Sequence[int]]) -> Any:
        """Return the scores of arms, or of the plain model, unless these are known already."""
        if journal is None:
            return self._scores(chunks)
        arms = [[vars(self.arms[index]) for index in chunk] for chunk in chunks]
        return journal.once(fingerprint(self.key, arms), lambda: self._scores(chunks))

    def _scores(self, chunks: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        found = [] if chunks else [self._score(self.unmoved)]
        for chunk in chunks:
            found += map(self._score, self.forked.under([self.arms[i] for i in chunk]))
        return found

    def _score(self, logits: Logits) -> list[list[float]]:
        return self.places.score(logits, self.refusal_ids, self.plain)


def _mean(
    values: Float[Tensor, "batch n"], is_counted: Bool[Tensor, "batch n"]
) -> Float[Tensor, " batch"]:
    weights = is_counted.to(values.device, values.dtype)
    return (values * weights).sum(dim=-1) / weights.sum(dim=-1)


def _ranges(spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Lay ranges of (first, length) out as positions, and mark which of them are real."""
    first, n = (torch.tensor(column)[:, None] for column in zip(*spans, strict=True))
    steps = torch.arange(max(int(n.max()), 1))[None]
    return first + torch.minimum(steps, (n - 1).clamp(min=0)), steps < n
