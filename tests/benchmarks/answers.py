"""How fast answers are given: ours against Hugging Face's `generate`, on the same weights.

    python tests/benchmarks/answers.py                               # 0.5 B shape, float32, CPU
    python tests/benchmarks/answers.py --shape 0.5b 7b --n 256       # on a CUDA machine, bfloat16
    python tests/benchmarks/answers.py --no-shared-prefix

Weights are random, prompts are those of `collector.py`. Both answer the same batches greedily, and
no answer ends early, so that both do the same work. They take turns, round by round; the first
round warms up and is not counted. Prints a Markdown table: the median of the rounds, and how many
answers are the same token for token (in half precision a tie may fall either way).
"""

import argparse
import datetime
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from collector import SHAPES, make_ids, make_model, to_hooked
from rich.console import Console

from refusal_lens.models.generation import generate_greedily
from refusal_lens.prompts.tokens import Tokens

Answers = list[list[int]]


def by_hugging_face(model: Any, ids: list[list[int]], n_new: int) -> Answers:
    """Answer one batch by `generate`, padded on the left."""
    longest = max(map(len, ids))
    rows = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=model.device
    )
    answered = model.generate(
        rows,
        attention_mask=mask,
        max_new_tokens=n_new,
        min_new_tokens=n_new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return answered[:, longest:].tolist()


def by_ours(model: Any, ids: list[list[int]], n_new: int) -> Answers:
    """Answer one batch as `measure_refusal` does."""
    names = [str(row) for row in range(len(ids))]
    tokens = Tokens.of(names, [tuple(row) for row in ids], [(0, len(row)) for row in ids])
    return generate_greedily(model, tokens, n_new)[0]


def timed(answer: Callable[[], Answers], device: str) -> tuple[float, Answers]:
    """Return the seconds of one call, and what it returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    answers = answer()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, answers


def compare(shape: str, n_new: int, options: argparse.Namespace, device: str) -> str:
    """Return one row of the table."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hf_model: Any = make_model(shape, device, dtype, "sdpa")
    hooked = to_hooked(hf_model)
    # Without an end of turn nothing ends early.
    hooked.tokenizer = argparse.Namespace(eos_token_id=-1)
    ids = sorted(make_ids(options.n, not options.no_shared_prefix), key=len, reverse=True)
    batches = [ids[i : i + options.batch] for i in range(0, len(ids), options.batch)]
    ways = {"generate": (by_hugging_face, hf_model), "ours": (by_ours, hooked)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, Answers] = {}
    with torch.no_grad():
        for _ in range(options.rounds + 1):
            for name, (way, model) in ways.items():
                took, answers[name] = timed(
                    lambda way=way, model=model: [
                        row for batch in batches for row in way(model, batch, n_new)
                    ],
                    device,
                )
                seconds[name].append(took)
    medians = {name: statistics.median(took[1:]) for name, took in seconds.items()}
    n_same = sum(a == b for a, b in zip(answers["generate"], answers["ours"], strict=True))
    return (
        f"| {shape} | {n_new} | {medians['generate']:.2f} | {medians['ours']:.2f} "
        f"| {medians['generate'] / medians['ours']:.2f} | {n_same} of {len(ids)} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", default=["0.5b"], choices=list(SHAPES))
    parser.add_argument("--n", type=int, default=64, help="prompts")
    parser.add_argument("--batch", type=int, default=256, help="prompts in a batch")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[24])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-shared-prefix", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    console = Console(width=200, highlight=False)
    console.print(f"{options.n} prompts, {machine}, torch {torch.__version__}")
    console.print(f"{datetime.date.today()}, {torch.get_num_threads()} threads\n")
    console.print("| shape | new tokens | generate, s | ours, s | x generate | same answers |")
    console.print("|---|---|---|---|---|---|")
    for shape in options.shape:
        for n_new in options.new_tokens:
            console.print(compare(shape, n_new, options, device))


if __name__ == "__main__":
    main()
