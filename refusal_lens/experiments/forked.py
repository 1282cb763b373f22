"""Many interventions on the same prompts, each run from where it begins to act.

Knows which parts of a pass an intervention leaves as they are: the layers below it, and what is
the same in all rows because all prompts begin alike, which is run once for all of them. Does not
know what is read off the logits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.models.backends import Model, is_hooked
from refusal_lens.models.fast_forward import (
    KeyValues,
    at_positions,
    embed,
    run_blocks,
    why_not_fast,
)
from refusal_lens.models.hook_points import hooks_at
from refusal_lens.models.packed import Packed
from refusal_lens.models.unembedding import unembed

Residual = Float[Tensor, "copies pos d_model"]
Logits = Float[Tensor, "batch n_needed d_vocab"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts padded on the right, their lengths, and the positions whose logits are read.

    The first `n_shared` tokens are the same in all rows, and nothing is read there.
    """

    ids: Int[Tensor, "batch pos"]
    lengths: tuple[int, ...]
    needed: Int[Tensor, "batch n_needed"]
    n_shared: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that run for one arm."""
        return sum(self.lengths) - self.n_shared * (len(self.lengths) - 1)


class Forked:
    """One plain pass over a batch, kept where interventions begin, and what runs on from there.

    Where the fast forward can run, prompts lie end to end, and arms side by side, each a copy of
    all of them; else padded prompts stand below each other, arm after arm.

    Args:
        model: Of either backend. A bridge cannot start in the middle and runs everything.
        batch: The prompts.
        starts: The first block that each intervention to come changes.
    """

    def __init__(self, model: Model, batch: Batch, starts: Sequence[int]) -> None:
        self.model = model
        self.n_layers: int = model.cfg.n_layers
        self.fast = model if is_hooked(model) and why_not_fast(model) is None else None
        # TransformerLens's own forward knows no keys and values of a prefix.
        n_shared = batch.n_shared if self.fast is not None else 0
        ids = batch.ids.to(model.cfg.device)
        self.prefix, self.ids = ids[:1, :n_shared], ids[:, n_shared:]
        self.needed = batch.needed.to(model.cfg.device) - n_shared
        self.packed: Packed | None = None
        if self.fast is not None:
            self.packed = Packed.of([length - n_shared for length in batch.lengths], ids.device)
        if is_hooked(model):
            edges = sorted({0, *starts, self.n_layers})
            self.prefix_at, past = self._run_plainly(self.prefix, edges, [], None)
            own = self.ids if self.packed is None else self.packed.pack(self.ids)
            self.residual_at, _ = self._run_plainly(own, edges, past, self.packed)

    def plain(self) -> Logits:
        """Return the logits without an intervention."""
        if not is_hooked(self.model):
            return at_positions(self.model(self.ids), self.needed)
        last = at_positions(self.residual_at[self.n_layers], self.needed, self.packed)
        return unembed(self.model, last.reshape(*self.needed.shape, -1))

    def under(self, arms: Sequence[Arm]) -> Iterator[Logits]:
        """Yield the logits under each arm, of one group; hooks are gone before the first."""
        start = arms[0].first_layer
        n_rows = len(self.ids) if self.packed is None else 1
        with hooks_at(self.model, arm_hooks(self.model, arms, n_rows)):
            past = self._read_prefix(start, len(arms))
            last = self._run_on(start, len(arms), past)
        for rows in last.reshape(len(arms), *self.needed.shape, -1):
            yield unembed(self.model, rows) if is_hooked(self.model) else rows

    def _run_plainly(
        self,
        ids: Int[Tensor, "copies pos"],
        edges: Sequence[int],
        past: Sequence[KeyValues],
        packed: Packed | None,
    ) -> tuple[dict[int, Residual], list[KeyValues]]:
        """Run all blocks, and keep what goes into some of them; and all keys and values."""
        if not ids.shape[1]:
            return {}, []
        if self.fast is None:
            residual = self.model(ids, stop_at_layer=0)
        else:
            n_before = past[0].keys.shape[1] if past else 0
            offset = n_before if packed is None else packed.position[None] + n_before
            residual = embed(self.fast, ids, offset)
        residual_at, kept = {0: residual}, []
        for start, stop in pairwise(edges):
            residual, key_values = self._blocks(residual, start, stop, past[start:stop], packed)
            residual_at[stop] = residual
            kept += key_values
        return residual_at, kept

    def _read_prefix(self, start: int, n_arms: int) -> list[KeyValues]:
        """Run what all rows share once for each arm; return its keys and values."""
        if not self.prefix.shape[1]:
            return []
        begun = self._begin(self.prefix_at[start], start, n_arms)
        return self._blocks(begun, start, self.n_layers, [], None)[1]

    def _run_on(self, start: int, n_arms: int, past: Sequence[KeyValues]) -> Tensor:
        """Return the residual stream of the positions that are read; of a bridge, their logits."""
        if not is_hooked(self.model):
            logits = self.model(self.ids.repeat(n_arms, 1))
            return at_positions(logits, self.needed.repeat(n_arms, 1))
        begun = self._begin(self.residual_at[start], start, n_arms)
        needed = self.needed if self.packed is not None else self.needed.repeat(n_arms, 1)
        return self._blocks(begun, start, self.n_layers, past, self.packed, needed)[0]

    def _begin(
        self, residual: Residual, start: int, n_arms: int
    ) -> Float[Tensor, "all_copies pos d_model"]:
        """Repeat what was kept for each arm; hooks at the end of the block below act here."""
        begun = residual.repeat(n_arms, 1, 1)
        return begun if start == 0 else self.model.blocks[start - 1].hook_resid_post(begun)

    def _blocks(
        self,
        residual: Residual,
        start: int,
        stop: int,
        past: Sequence[KeyValues],
        packed: Packed | None,
        needed: Int[Tensor, "rows n_needed"] | None = None,
    ) -> tuple[Float[Tensor, "copies n_left d_model"], list[KeyValues]]:
        """Run some blocks, the last of them for the positions that are read only."""
        if self.fast is not None and start < stop:
            return run_blocks(
                self.fast, residual, start, stop, past=past, needed=needed, packed=packed
            )
        if start < stop:
            residual = self.model(residual, start_at_layer=start, stop_at_layer=stop)
        return residual if needed is None else at_positions(residual, needed, packed), []
