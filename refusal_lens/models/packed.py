"""Rows of different lengths laid end to end, so that no padding is multiplied.

Knows where each token stands in the padded rows, which attention alone needs. Runs nothing.

Tested in tests/experiments/test_forked.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Where tokens stand: as rows, padded on the right, and end to end.

    Several copies of the same rows may lie side by side, `[n_copies, n_tokens, ...]`; padded they
    stand below each other, `[n_copies * n_rows, longest, ...]`.
    """

    token_at: Int[Tensor, "n_rows longest"]
    """Which token stands at each place of the rows; padding reads the last token of its row, so
    that all of it is finite, and nothing sees it."""
    padded_at: Int[Tensor, " n_tokens"]
    """At which place of the rows, counted through, each token stands."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return self.token_at.shape[1]

    @cached_property
    def position(self) -> Int[Tensor, " n_tokens"]:
        """How many tokens of its row stand before each."""
        return self.padded_at % self.longest

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Packed":
        """Lay rows of these lengths out."""
        n, longest = torch.tensor(lengths)[:, None], max(lengths)
        steps = torch.arange(longest)[None]
        token_at = n.cumsum(dim=0) - n + torch.minimum(steps, n - 1)
        padded_at = (steps < n).flatten().nonzero()[:, 0]
        return cls(token_at.to(device), padded_at.to(device))

    def pad(self, packed: Tensor) -> Tensor:
        """Bring `[n_copies, n_tokens, ...]` into rows."""
        rows = packed[:, self.token_at.to(packed.device)]
        return rows.flatten(0, 1)

    def pack(self, rows: Tensor) -> Tensor:
        """Lay rows end to end."""
        copies = rows.unflatten(0, (-1, len(self.token_at))).flatten(1, 2)
        return copies[:, self.padded_at.to(rows.device)]

    def at(self, positions: Int[Tensor, "n_rows n_needed"]) -> Int[Tensor, " n_all_needed"]:
        """Say which tokens stand at some positions of each row."""
        return self.token_at.gather(1, positions.to(self.token_at.device)).flatten()
