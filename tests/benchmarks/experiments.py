"""How fast candidates are scored: ours against the paper's own loop, on the same prompts and arms.

    python tests/benchmarks/experiments.py                     # data/tiny-refuser
    python tests/benchmarks/experiments.py --model MODEL --n 21 --every 6

The loop is that of Arditi et al. 2024, written anew: one full forward a candidate, 32 prompts in a
batch, hooks on the whole model, the logits of all positions. Directions are random, one at every
layer, each under `ablate`, `affine_ablate` and `add`; the refusal score and the KL of the first
answer token are read. They take turns; seconds are of processor time, the best of the rounds.
Prints a Markdown table, and the largest difference between the scores of both.
"""

import argparse
import datetime
import time
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console

from refusal_lens import load_model, read_contrast, tokenise
from refusal_lens.experiments.arms import Arm, arm_hooks
from refusal_lens.experiments.effects import continue_prompts, measure_effects
from refusal_lens.experiments.refusal import refusal_score
from refusal_lens.prompts.tokens import Tokens

BATCH = 32
REFUSAL_IDS = [5, 9]


def make_arms(model: Any, every: int = 1) -> list[Arm]:
    """Give each layer, or every so many, a random direction, under every intervention."""
    generator = torch.Generator().manual_seed(0)
    arms = []
    for layer in range(0, model.cfg.n_layers, every):
        vector = torch.randn(model.cfg.d_model, generator=generator)
        place = f"blocks.{layer}.hook_resid_post"
        unit, mean = vector / vector.norm(), torch.zeros_like(vector)
        arms += [Arm(name, place, unit, vector, mean) for name in ("ablate", "affine_ablate")]
        arms.append(Arm("add", place, unit, unit, mean))
    return arms


def by_the_papers_loop(model: Any, tokens: Tokens, arms: Sequence[Arm]) -> torch.Tensor:
    """Run one full forward a candidate and batch; return scores, `[n_arms, n_prompts]`."""
    scores = torch.empty(len(arms), len(tokens), dtype=torch.float64)
    for start in range(0, len(tokens), BATCH):
        rows = list(range(start, min(start + BATCH, len(tokens))))
        batch = tokens.select(rows)
        ids = torch.zeros(len(rows), max(batch.lengths), dtype=torch.long)
        for row, prompt in enumerate(batch.ids):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        ids, last = ids.to(model.cfg.device), torch.tensor(batch.lengths) - 1
        plain = model(ids)[torch.arange(len(rows)), last].log_softmax(-1)
        for index, arm in enumerate(arms):
            hooks = arm_hooks(model, [arm], len(rows))
            logits = model.run_with_hooks(ids, fwd_hooks=hooks)[torch.arange(len(rows)), last]
            log_p = logits.log_softmax(-1)
            (plain.exp() * (plain - log_p)).sum(-1)
            scores[index, rows] = refusal_score(logits.float(), REFUSAL_IDS).double().cpu()
    return scores


def by_ours(model: Any, tokens: Tokens, arms: Sequence[Arm]) -> torch.Tensor:
    """Return the same by `measure_effects`, as `refusal-lens select` runs it."""
    continued = continue_prompts(tokens, [()] * len(tokens), 1)
    return measure_effects(model, continued, arms, REFUSAL_IDS).refusal_score


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="data/tiny-refuser")
    parser.add_argument("--n", type=int, default=32, help="prompts")
    parser.add_argument("--every", type=int, default=1, help="candidates at every so many layers")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model: Any = load_model(options.model, device="cpu")
    prompts = read_contrast("data/harmful_prompts.json", "data/harmless_prompts.json")
    tokens = tokenise(model.tokenizer, prompts.prompts[: options.n])
    arms, ways = (
        make_arms(model, options.every),
        {"the paper's loop": by_the_papers_loop, "ours": by_ours},
    )
    best, scores = dict.fromkeys(ways, float("inf")), {}
    with torch.no_grad():
        for _ in range(options.rounds):
            for name, way in ways.items():
                began = time.process_time()
                scores[name] = way(model, tokens, arms)
                best[name] = min(best[name], time.process_time() - began)
    console = Console(width=200, highlight=False)
    console.print(f"{options.model}, {len(tokens)} prompts, {len(arms)} arms, float32")
    console.print(f"{datetime.date.today()}, {torch.get_num_threads()} threads\n")
    console.print("| way | seconds | passes/s | x the paper's loop |\n|---|---|---|---|")
    slowest = best["the paper's loop"]
    for name, seconds in best.items():
        rate, ratio = len(arms) * len(tokens) / seconds, slowest / seconds
        console.print(f"| {name} | {seconds:.2f} | {rate:.1f} | {ratio:.2f} |")
    difference = (scores["ours"] - scores["the paper's loop"]).abs().max()
    console.print(f"\nLargest difference of a refusal score: {difference:.1e} nats")


if __name__ == "__main__":
    main()
