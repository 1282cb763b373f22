"""What interventions do to the next token, many of them on the same prompts at once.

Knows how to run only the layers that an intervention changes, and the scores read from the logits.
Does not know how directions are made or chosen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.experiments.refusal import refusal_score
from refusal_lens.models.backends import Model, is_hooked
from refusal_lens.models.batching import run_in_batches
from refusal_lens.models.fast_forward import embed, run_blocks, why_not_fast
from refusal_lens.models.hook_points import Hook
from refusal_lens.models.matmul import fast_products
from refusal_lens.models.unembedding import unembed
from refusal_lens.prompts.tokens import Ragged, Tokens

CPU_BUDGET = 2048
CUDA_BUDGET = 8192
"""Tokens that run together, those of several interventions counted."""

LogitsAt = Callable[[Tensor], Tensor]
"""From positions `[batch, n_read]` to logits `[n_arms, batch, n_read, d_vocab]`."""


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
    """Put the plain answers behind the prompts.

    Args:
        tokens: Formatted prompts.
        answers: Ids of each plain answer, without the id that ended it.
        n_answer_tokens: Most answer tokens to score.
    """
    # The last token scored is only predicted, so that it need not be read.
    read = [tuple(answer)[: n_answer_tokens - 1] for answer in answers]
    ids = tuple((*prompt, *answer) for prompt, answer in zip(tokens.ids, read, strict=True))
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
) -> Effects:
    """Run every arm on every prompt and compare it with the plain model.

    Each prompt runs once without intervention; every arm goes on from the layer below its own.
    A bridge cannot start in the middle and runs everything.

    Args:
        model: Of either backend.
        prompts: Prompts with plain answers behind them.
        arms: The interventions, in any order.
        refusal_ids: Ids of the refusal tokens.
        has_text_loss: Compute the loss of the user's own tokens too.
        token_budget: Most tokens in a batch, all arms in it counted; None takes 2,048 on CPUs.
        advance: Called with the number of (prompt, arm) pairs just done.
    """
    is_cuda = str(model.cfg.device).startswith("cuda")
    budget = token_budget or (CUDA_BUDGET if is_cuda else CPU_BUDGET)
    scores = _Scores.empty(len(arms), len(prompts.tokens))
    n_passes = 0.0

    def run(rows: list[int]) -> None:
        nonlocal n_passes
        batch = _Batch.of(prompts, rows)
        forked = _Forked(model, batch.ids, sorted({arm.first_layer for arm in arms}))
        plain = batch.read(forked.finish(0, [], 1), refusal_ids, None, has_text_loss)
        scores.keep_plain(rows, plain)
        n_passes += len(rows)
        for chunk in _chunks(arms, max(1, budget // batch.ids.numel())):
            chosen = [arms[i] for i in chunk]
            start = chosen[0].first_layer
            hooks = arm_hooks(model, chosen, len(rows))
            logits_at = forked.finish(start, hooks, len(chunk))
            scores.keep(chunk, rows, batch.read(logits_at, refusal_ids, plain, has_text_loss))
            n_passes += forked.cost(start) * len(chunk) * len(rows)
            if advance is not None:
                advance(len(chunk) * len(rows))

    with torch.no_grad(), fast_products(model.cfg):
        run_in_batches(
            prompts.tokens.lengths,
            run,
            token_budget=budget,
            device=str(model.cfg.device),
            name_of=lambda row: prompts.tokens.prompt_ids[row],
        )
    return scores.effects(n_passes)


def _chunks(arms: Sequence[Arm], size: int) -> list[list[int]]:
    """Cut arms into batches of one group each."""
    order = sorted(range(len(arms)), key=lambda i: arms[i].group)
    chunks = []
    for _, group in groupby(order, key=lambda i: arms[i].group):
        members = list(group)
        chunks += [members[i : i + size] for i in range(0, len(members), size)]
    return chunks


class _Forked:
    """One plain pass over a batch, kept where interventions begin, and what runs on from there."""

    def __init__(self, model: Model, ids: Int[Tensor, "batch pos"], starts: Sequence[int]) -> None:
        self.model = model
        self.ids = ids.to(model.cfg.device)
        self.residual: dict[int, Tensor] = {}
        if is_hooked(model):
            self.is_fast = why_not_fast(model) is None
            residual = embed(model, self.ids) if self.is_fast else model(self.ids, stop_at_layer=0)
            done = 0
            for start in starts:
                residual = self._run(residual, done, start)
                self.residual[start] = residual
                done = start
            self.plain_start = done

    def cost(self, start: int) -> float:
        """Return the share of the layers that runs."""
        if not is_hooked(self.model):
            return 1.0
        return 1 - start / self.model.cfg.n_layers

    def finish(self, start: int, hooks: Sequence[Hook], n_arms: int) -> LogitsAt:
        """Run the rest once for each arm; without hooks, from wherever the plain pass stopped."""
        n_rows = len(self.ids)
        with self.model.hooks(fwd_hooks=list(hooks)):
            if is_hooked(self.model):
                start = start if hooks else self.plain_start
                begun = self.residual[start].repeat(n_arms, 1, 1)
                last = self._run(begun, start, self.model.cfg.n_layers)
            else:
                last = self.model(self.ids.repeat(n_arms, 1))

        def logits_at(positions: Int[Tensor, "batch n_read"]) -> Tensor:
            index = positions.to(last.device).repeat(n_arms, 1)
            taken = last[torch.arange(len(last), device=last.device)[:, None], index]
            if is_hooked(self.model):
                taken = unembed(self.model, taken)
            return taken.float().unflatten(0, (n_arms, n_rows))

        return logits_at

    def _run(self, residual: Tensor, start: int, stop: int) -> Tensor:
        if start == stop:
            return residual
        if is_hooked(self.model) and self.is_fast:
            return run_blocks(self.model, residual, start, stop)
        return self.model(residual, start_at_layer=start, stop_at_layer=stop)


@dataclass(frozen=True, eq=False)
class _Read:
    """What is read from one run: `[n_arms, batch]` each; `log_p` is of the plain run only."""

    refusal_score: Tensor
    kl: Tensor
    kl_answer: Tensor
    text_loss: Tensor
    log_p: Tensor


@dataclass(frozen=True, eq=False)
class _Batch:
    """Prompts padded on the right, and where they are read."""

    ids: Int[Tensor, "batch pos"]
    answer_positions: Int[Tensor, "batch n_read"]
    is_answer: Tensor
    text_positions: Int[Tensor, "batch n_text"]
    is_text: Tensor

    @classmethod
    def of(cls, prompts: Continued, rows: Sequence[int]) -> "_Batch":
        tokens = prompts.tokens.select(rows)
        ids = torch.zeros(len(rows), max(tokens.lengths), dtype=torch.long)
        for row, prompt in enumerate(tokens.ids):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        answers = [(prompts.prompt_lengths[r] - 1, prompts.n_scored[r]) for r in rows]
        # A token is predicted at the position before it; the very first one is not predicted.
        spans = [(max(first, 1) - 1, stop - 1) for first, stop in tokens.instruction_spans]
        texts = [(first, stop - first) for first, stop in spans]
        return cls(ids, *_ranges(answers), *_ranges(texts))

    def read(
        self,
        logits_at: LogitsAt,
        refusal_ids: Sequence[int],
        plain: _Read | None,
        has_text_loss: bool,
    ) -> _Read:
        logits = logits_at(self.answer_positions)
        log_p = logits.log_softmax(dim=-1)
        reference = log_p if plain is None else plain.log_p
        kl = (reference.exp() * (reference - log_p)).sum(dim=-1)
        weights = self.is_answer.to(kl.device, kl.dtype)
        score = refusal_score(logits[:, :, 0], refusal_ids)
        loss = self._text_loss(logits_at) if has_text_loss else torch.full_like(score, torch.nan)
        answer = (kl * weights).sum(dim=-1) / weights.sum(dim=-1)
        return _Read(score, kl[..., 0], answer, loss, reference)

    def _text_loss(self, logits_at: LogitsAt) -> Float[Tensor, "n_arms batch"]:
        log_p = logits_at(self.text_positions).log_softmax(dim=-1)
        after = (self.text_positions + 1).clamp(max=self.ids.shape[1] - 1)
        targets = self.ids.gather(1, after).to(log_p.device)
        losses = -log_p.gather(-1, targets.expand(len(log_p), -1, -1)[..., None])[..., 0]
        weights = self.is_text.to(log_p.device, log_p.dtype)
        return (losses * weights).sum(dim=-1) / weights.sum(dim=-1)


def _ranges(spans: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Lay ranges of (first, length) out as positions, and mark which of them are real."""
    first, n = (torch.tensor(column)[:, None] for column in zip(*spans, strict=True))
    steps = torch.arange(max(int(n.max()), 1))[None]
    return first + torch.minimum(steps, (n - 1).clamp(min=0)), steps < n


@dataclass(frozen=True, eq=False)
class _Scores:
    arms: dict[str, Tensor]
    plain: dict[str, Tensor]

    @classmethod
    def empty(cls, n_arms: int, n_prompts: int) -> "_Scores":
        def nans(*shape: int) -> Tensor:
            return torch.full(shape, torch.nan, dtype=torch.float64)

        names = ("refusal_score", "kl", "kl_answer", "text_loss")
        return cls(
            {name: nans(n_arms, n_prompts) for name in names},
            {name: nans(n_prompts) for name in ("refusal_score", "text_loss")},
        )

    def keep(self, arms: Sequence[int], rows: Sequence[int], read: _Read) -> None:
        for name, values in self.arms.items():
            values[torch.tensor(arms)[:, None], torch.tensor(rows)] = (
                getattr(read, name).double().cpu()
            )

    def keep_plain(self, rows: Sequence[int], read: _Read) -> None:
        for name, values in self.plain.items():
            values[torch.tensor(rows)] = getattr(read, name)[0].double().cpu()

    def effects(self, n_passes: float) -> Effects:
        return Effects(
            **self.arms,
            plain_score=self.plain["refusal_score"],
            plain_loss=self.plain["text_loss"],
            n_passes=n_passes,
        )
