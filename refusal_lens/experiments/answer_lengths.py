"""Are answers long enough to be judged? The same ones, cut off after ever more tokens.

Knows outcomes by length and where they stop moving. Does not generate, and knows no prompts.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import pandas as pd

from refusal_lens.config import Outcome
from refusal_lens.experiments.outcomes import count_judged, refusal_interval
from refusal_lens.validation.shares import number_topics
from refusal_lens.validation.thresholds import MOVED

LENGTHS = (8, 16, 32, 64, 128)
WATCHED: tuple[Outcome, ...] = ("refused", "evaded")
"""Outcomes whose rates are watched: what begins as an answer may turn into either."""


def lengths_up_to(n_new_tokens: int) -> tuple[int, ...]:
    """List the lengths that answers of so many tokens are judged at, the whole last.

    Example:
        >>> lengths_up_to(24)
        (8, 16, 24)
    """
    return (*(length for length in LENGTHS if length < n_new_tokens), n_new_tokens)


def most_tokens(n_new_tokens: int | Literal["auto"]) -> int:
    """Return how long an answer may become; where that is to be found, the longest tried."""
    return LENGTHS[-1] if n_new_tokens == "auto" else n_new_tokens


def judge_by_length(
    judge: Callable[[str], Outcome],
    write_out: Callable[[Sequence[int]], str],
    ids: Sequence[int],
    lengths: Sequence[int],
) -> tuple[Outcome, ...]:
    """Judge one answer cut off at every length, ascending; what is the same text is judged once."""
    known: dict[str, Outcome] = {}
    outcomes = []
    for length in lengths:
        text = write_out(ids[:length])
        if text not in known:
            known[text] = judge(text)
        outcomes.append(known[text])
    return tuple(outcomes)


def settled_at(
    outcomes: Sequence[Sequence[Outcome]], is_harmful: Sequence[bool], lengths: Sequence[int]
) -> int | None:
    """Return the length from which on no rate of refusal or evasion moved any more.

    `outcomes` are of each answer, at every length, ascending. None where a rate still moved at the
    last length, or where there is only one.
    """
    rates = [
        [
            _share([row[index] for row, of in zip(outcomes, is_harmful, strict=True) if of == side])
            for side in (True, False)
        ]
        for index in range(len(lengths))
    ]
    settled = None
    for index in reversed(range(len(lengths) - 1)):
        now = [share for shares in rates[index] for share in shares]
        later = [share for shares in rates[-1] for share in shares]
        if any(abs(a - b) > MOVED for a, b in zip(now, later, strict=True)):
            break
        settled = lengths[index]
    return settled


def _share(outcomes: Sequence[Outcome]) -> list[float]:
    counts = [count_judged(outcomes, watched) for watched in WATCHED]
    return [n / max(n_judged, 1) for n, n_judged in counts]


def length_table(
    outcomes: Sequence[Sequence[Outcome]],
    is_harmful: Sequence[bool],
    lengths: Sequence[int],
    topics: Sequence[str],
) -> pd.DataFrame:
    """Return one row a class and length: rates of refusal and evasion, and whether they stand.

    Returns:
        `is_harmful`, `n_tokens`, `n_prompts`, `refused` with its 95 % interval (`refused_low`,
        `refused_high`), `evaded`, `is_settled`.
    """
    settled = settled_at(outcomes, is_harmful, lengths)
    rows = []
    for side in (True, False):
        of_class = [row for row, of in zip(outcomes, is_harmful, strict=True) if of == side]
        numbers = number_topics([t for t, of in zip(topics, is_harmful, strict=True) if of == side])
        for index, length in enumerate(lengths):
            reached: list[Outcome] = [row[index] for row in of_class]
            n_refused, n_judged = count_judged(reached, "refused")
            n_evaded, _ = count_judged(reached, "evaded")
            low, high = refusal_interval(reached, numbers)
            rows.append(
                {
                    "is_harmful": side,
                    "n_tokens": length,
                    "n_prompts": n_judged,
                    "refused": n_refused / max(n_judged, 1),
                    "refused_low": low,
                    "refused_high": high,
                    "evaded": n_evaded / max(n_judged, 1),
                    "is_settled": settled is not None and length >= settled,
                }
            )
    return pd.DataFrame(rows)
