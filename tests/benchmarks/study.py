"""What a whole study costs: answers, collecting and causal scores, beside what else is in use.

    python tests/benchmarks/study.py                              # 0.5 B shape, float32, CPU
    python tests/benchmarks/study.py --n 16 --every 8 --rounds 1  # the same, small
    python tests/benchmarks/study.py --shape 7b --n 256           # on a CUDA machine, bfloat16
    python tests/benchmarks/study.py --model data/tiny-refuser    # a folder, its own prompts

Beside ours stand Hugging Face's `generate`, the article's way to collect (one prompt at a time,
all hidden states) and the paper's loop (one full forward a candidate, 32 prompts in a batch), each
on the same weights and prompts. They take turns, round by round; a round before them warms up, on
a few prompts. No answer ends early. Prints a Markdown table: the median of the rounds, in seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from answers import by_hugging_face, by_ours
from collector import (
    SHAPES,
    WARM_UP,
    article,
    describe_machine,
    make_ids,
    make_model,
    read_by_ours,
    to_hooked,
    to_tokens,
)
from experiments import BATCH, make_arms
from experiments import by_ours as score_by_ours
from experiments import by_the_papers_loop as score_by_the_papers_loop
from rich.console import Console

Ids = list[list[int]]


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a study, done on prompts in two ways."""

    name: str
    their_name: str
    theirs: Callable[[Ids], Any]
    ours: Callable[[Ids], Any]

    def seconds(self, ids: Ids, n_rounds: int, device: str) -> tuple[float, float]:
        """Return the median seconds of both ways."""
        ways = (self.theirs, self.ours)
        parts = [ids[:WARM_UP]] + [ids] * n_rounds
        taken = [[timed(way, part, device) for way in ways] for part in parts]
        theirs, ours = zip(*taken[1:], strict=True)
        return statistics.median(theirs), statistics.median(ours)


def timed(way: Callable[[Ids], Any], ids: Ids, device: str) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    way(ids)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def stages(hf_model: Any, hooked: Any, options: argparse.Namespace) -> Iterator[Stage]:
    """Yield the stages of a study of one model."""

    def answer(way: Callable[..., Any], model: Any) -> Callable[[Ids], Any]:
        def run(ids: Ids) -> Any:
            return [
                way(model, ids[i : i + options.batch], options.new_tokens)
                for i in range(0, len(ids), options.batch)
            ]

        return run

    name = f"answers, {options.new_tokens} tokens"
    yield Stage(name, "`generate`", answer(by_hugging_face, hf_model), answer(by_ours, hooked))
    ours = read_by_ours(hooked, None)
    yield Stage("collecting, all layers", "one prompt at a time", article(hf_model), ours)
    arms = make_arms(hooked, options.every)

    def score(way: Callable[..., Any]) -> Callable[[Ids], Any]:
        return lambda ids: way(hooked, to_tokens(ids), arms)

    name = f"causal scores, {len(arms)} candidates"
    loop = f"a full forward each, batch {BATCH}"
    yield Stage(name, loop, score(score_by_the_papers_loop), score(score_by_ours))


def load(options: argparse.Namespace, dtype: torch.dtype) -> tuple[Any, Any, Ids]:
    """Return the model as Hugging Face's and as ours, and the prompts."""
    if options.model is None:
        hf_model: Any = make_model(options.shape, options.device, dtype, "sdpa")
        return hf_model, to_hooked(hf_model), make_ids(options.n, prefix=True)
    from transformers import AutoModelForCausalLM

    from refusal_lens import load_model, read_contrast, tokenise

    hf_model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    hooked: Any = load_model(
        options.model, device=options.device, dtype=str(dtype).removeprefix("torch.")
    )
    both = read_contrast("data/harmful_prompts.json", "data/harmless_prompts.json").prompts
    tokens = tokenise(hooked.tokenizer, both[: options.n])
    return hf_model.to(options.device), hooked, [list(ids) for ids in tokens.ids]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--shape", default="0.5b", choices=list(SHAPES), help="of random weights")
    which.add_argument("--model", help="a folder or hub name instead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--n", type=int, default=32, help="prompts")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=256, help="prompts answered together")
    parser.add_argument("--every", type=int, default=1, help="candidates at every so many layers")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    hf_model, hooked, ids = load(options, getattr(torch, dtype))
    # Without an end of turn no answer ends early.
    hooked.tokenizer = argparse.Namespace(eos_token_id=-1, padding_side="right")
    ids = sorted(ids, key=len, reverse=True)
    console = Console(soft_wrap=True, highlight=False)
    machine = describe_machine(options.device)
    console.print(f"{options.model or options.shape}, {dtype}, {len(ids)} prompts, {machine}\n")
    console.print("| stage | instead | theirs, s | ours, s | x theirs |\n|---|---|---|---|---|")
    totals = torch.zeros(2)
    with torch.no_grad():
        for stage in stages(hf_model, hooked, options):
            theirs, ours = stage.seconds(ids, options.rounds, options.device)
            totals += torch.tensor([theirs, ours])
            console.print(row(stage.name, stage.their_name, theirs, ours))
    console.print(row("**all**", "", *totals.tolist()))


def row(name: str, their_name: str, theirs: float, ours: float) -> str:
    """Write one row of the table."""
    return f"| {name} | {their_name} | {theirs:.2f} | {ours:.2f} | **{theirs / ours:.2f}** |"


if __name__ == "__main__":
    main()
