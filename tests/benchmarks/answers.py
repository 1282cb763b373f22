"""How fast answers are given: ours against Hugging Face's `generate`, on the same weights.

    python tests/benchmarks/answers.py                               # 0.5 B shape, float32, CPU
    python tests/benchmarks/answers.py --shape 0.5b 7b --n 256       # on a CUDA machine, bfloat16
    python tests/benchmarks/answers.py --new-tokens 24 128 --shared-prefix yes

Weights are random, prompts are those of `collector.py`. Both answer the same batches greedily, and
no answer ends early, so that both do the same work. They take turns, round by round; the first
round warms up and is not counted. Prints a Markdown table: the median of the rounds, the most
memory that was taken beyond the weights, and how many answers are the same token for token (in
half precision a tie may fall either way).
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from collector import (
    SHAPES,
    describe_machine,
    make_ids,
    make_model,
    pad_left,
    peak,
    reset_peak,
    to_hooked,
    to_tokens,
)
from rich.console import Console

from refusal_lens.models.generation import generate_greedily

Answers = list[list[int]]


def by_hugging_face(model: Any, ids: list[list[int]], n_new: int) -> Answers:
    """Answer one batch by `generate`, padded on the left."""
    rows, mask = pad_left(ids, model.device)
    answered = model.generate(
        rows,
        attention_mask=mask,
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return answered[:, rows.shape[1] :].tolist()


def by_ours(model: Any, ids: list[list[int]], n_new: int) -> Answers:
    """Answer one batch as `measure_refusal` does."""
    return generate_greedily(model, to_tokens(ids), n_new)[0]


def timed(answer: Callable[[], Answers], device: str) -> tuple[float, float, Answers]:
    """Return the seconds of one call, its extra memory in MiB, and what it returned."""
    before = reset_peak(device)
    began = time.perf_counter()
    answers = answer()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, (peak(device) - before) / 2**20, answers


@dataclass(frozen=True, eq=False)
class Ways:
    """Two models on the same weights, and how each answers."""

    shape: str
    device: str
    models: dict[str, tuple[Callable[..., Answers], Any]]

    @classmethod
    def load(cls, shape: str, device: str, dtype: torch.dtype) -> "Ways":
        """Make both models."""
        hf_model: Any = make_model(shape, device, dtype, "sdpa")
        hooked = to_hooked(hf_model)
        # Without an end of turn nothing ends early.
        hooked.tokenizer = argparse.Namespace(eos_token_id=-1)
        models = {"generate": (by_hugging_face, hf_model), "ours": (by_ours, hooked)}
        return cls(shape, device, models)

    def compare(self, n_new: int, is_shared: bool, options: argparse.Namespace) -> str:
        """Return one row of the table."""
        ids = sorted(make_ids(options.n, is_shared), key=len, reverse=True)
        batches = [ids[i : i + options.batch] for i in range(0, len(ids), options.batch)]
        taken: dict[str, list[tuple[float, float, Answers]]] = {name: [] for name in self.models}
        for _ in range(options.rounds + 1):
            for name, (way, model) in self.models.items():

                def answer(way: Any = way, model: Any = model) -> Answers:
                    return [row for batch in batches for row in way(model, batch, n_new)]

                with torch.no_grad():
                    taken[name].append(timed(answer, self.device))
        theirs, ours = (statistics.median(row[0] for row in taken[n][1:]) for n in self.models)
        memory = (max(row[1] for row in taken[n][1:]) for n in self.models)
        a, b = (taken[name][-1][2] for name in self.models)
        n_same = sum(x == y for x, y in zip(a, b, strict=True))
        cells = [self.shape, n_new, "yes" if is_shared else "no", f"{theirs:.2f}", f"{ours:.2f}"]
        cells += [f"**{theirs / ours:.2f}**", *(f"{mib:,.0f}" for mib in memory)]
        return "| " + " | ".join(map(str, [*cells, f"{n_same} of {len(ids)}"])) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", default=["0.5b"], choices=list(SHAPES))
    parser.add_argument("--n", type=int, default=64, help="prompts")
    parser.add_argument("--batch", type=int, default=256, help="prompts in a batch")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[24])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared-prefix", nargs="+", default=["yes", "no"], choices=["yes", "no"])
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"])
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype or ("bfloat16" if device == "cuda" else "float32")
    console = Console(width=200, highlight=False)
    console.print(f"{options.n} prompts, {dtype}, {describe_machine(device)}\n")
    console.print(
        "| shape | new tokens | shared prefix | `generate`, s | ours, s | x generate "
        "| extra MiB, `generate` | ours | same answers |"
    )
    console.print("|---|---|---|---|---|---|---|---|---|")
    for shape in options.shape:
        ways = Ways.load(shape, device, getattr(torch, dtype))
        for n_new in options.new_tokens:
            for is_shared in options.shared_prefix:
                console.print(ways.compare(n_new, is_shared == "yes", options))


if __name__ == "__main__":
    main()
