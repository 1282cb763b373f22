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
from refusal_lens.models.unembedding import unembed

Residual = Float[Tensor, "rows pos d_model"]
Logits = Float[Tensor, "batch n_needed d_vocab"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts padded on the right, and the positions whose logits are read.

    The first `n_shared` tokens are the same in all rows, and nothing is read there.
    """

    ids: Int[Tensor, "batch pos"]
    needed: Int[Tensor, "batch n_needed"]
    n_shared: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that run for one arm."""
        n_rows, n_pos = self.ids.shape
        return self.n_shared + n_rows * (n_pos - self.n_shared)


class Forked:
    """One plain pass over a batch, kept where interventions begin, and what runs on from there.

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
        if is_hooked(model):
            edges = sorted({0, *starts, self.n_layers})
            self.prefix_at, past = self._run_plainly(self.prefix, edges, [])
            self.residual_at, _ = self._run_plainly(self.ids, edges, past)

    def plain(self) -> Logits:
        """Return the logits without an intervention."""
        if not is_hooked(self.model):
            return at_positions(self.model(self.ids), self.needed)
        return unembed(self.model, at_positions(self.residual_at[self.n_layers], self.needed))

    def under(self, arms: Sequence[Arm]) -> Iterator[Logits]:
        """Yield the logits under each arm, of one group; hooks are gone before the first."""
        start, n_rows = arms[0].first_layer, len(self.ids)
        past: list[KeyValues] = []
        if is_hooked(self.model) and self.prefix.shape[1]:
            with hooks_at(self.model, arm_hooks(self.model, arms, 1)):
                past = self._read_prefix(start, len(arms))
        with hooks_at(self.model, arm_hooks(self.model, arms, n_rows)):
            last = self._run_on(start, len(arms), past)
        for rows in last.split(n_rows):
            yield unembed(self.model, rows) if is_hooked(self.model) else rows

    def _run_plainly(
        self, ids: Int[Tensor, "batch pos"], edges: Sequence[int], past: Sequence[KeyValues]
    ) -> tuple[dict[int, Residual], list[KeyValues]]:
        """Run all blocks, and keep what goes into some of them; and all keys and values."""
        if not ids.shape[1]:
            return {}, []
        if self.fast is None:
            residual = self.model(ids, stop_at_layer=0)
        else:
            residual = embed(self.fast, ids, past[0].keys.shape[1] if past else 0)
        residual_at, kept = {0: residual}, []
        for start, stop in pairwise(edges):
            residual, key_values = self._blocks(residual, start, stop, past[start:stop], None)
            residual_at[stop] = residual
            kept += key_values
        return residual_at, kept

    def _read_prefix(self, start: int, n_arms: int) -> list[KeyValues]:
        """Run what all rows share once for each arm; give its keys and values to all rows."""
        begun = self._begin(self.prefix_at[start], start, n_arms)
        _, past = self._blocks(begun, start, self.n_layers, [], None)
        n_rows = len(self.ids)
        return [
            KeyValues(
                each.keys.repeat_interleave(n_rows, dim=0),
                each.values.repeat_interleave(n_rows, dim=0),
            )
            for each in past
        ]

    def _run_on(self, start: int, n_arms: int, past: Sequence[KeyValues]) -> Tensor:
        """Return the residual stream of the positions that are read; of a bridge, their logits."""
        needed = self.needed.repeat(n_arms, 1)
        if not is_hooked(self.model):
            return at_positions(self.model(self.ids.repeat(n_arms, 1)), needed)
        begun = self._begin(self.residual_at[start], start, n_arms)
        last, _ = self._blocks(begun, start, self.n_layers, past, needed)
        return last

    def _begin(
        self, residual: Residual, start: int, n_arms: int
    ) -> Float[Tensor, "all_rows pos d_model"]:
        """Repeat what was kept for each arm; hooks at the end of the block below act here."""
        begun = residual.repeat(n_arms, 1, 1)
        return begun if start == 0 else self.model.blocks[start - 1].hook_resid_post(begun)

    def _blocks(
        self,
        residual: Residual,
        start: int,
        stop: int,
        past: Sequence[KeyValues],
        needed: Int[Tensor, "rows n_needed"] | None,
    ) -> tuple[Float[Tensor, "rows n_left d_model"], list[KeyValues]]:
        """Run some blocks, the last of them for the positions that are read only."""
        if start == stop:
            return residual if needed is None else at_positions(residual, needed), []
        if self.fast is not None:
            return run_blocks(self.fast, residual, start, stop, past=past, needed=needed)
        residual = self.model(residual, start_at_layer=start, stop_at_layer=stop)
        return residual if needed is None else at_positions(residual, needed), []
