"""How long a run's statistics take, part by part, from activations in memory.

    python tests/benchmarks/reliability.py                            # 48 x 2 places, d_model 896
    python tests/benchmarks/reliability.py --hook-points 8 --d-model 128 --threads 1

Activations are normal noise around a large mean, with a planted difference that grows with depth.
Prints a Markdown table: wall-clock seconds, processor seconds of all threads together (which say
what a busy machine's clock does not), and the most memory held so far.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from refusal_lens.activations.pooled import Activations
from refusal_lens.validation.nested_choice import choose_nested
from refusal_lens.validation.nulls import draw_nulls
from refusal_lens.validation.separation import validate
from refusal_lens.validation.stability import measure_stability


def make(n_hook_points: int, n_positions: int, n_prompts: int, d_model: int) -> Activations:
    """Make activations of two equal classes."""
    generator = torch.Generator().manual_seed(0)
    centre = 5 * torch.randn(d_model, generator=generator)
    planted = torch.randn(d_model, generator=generator) / d_model**0.5
    values = torch.randn(n_prompts, n_hook_points, n_positions, d_model, generator=generator)
    values += centre
    is_harmful = torch.arange(n_prompts) % 2 == 0
    strength = torch.linspace(0, 4, n_hook_points)[:, None, None]
    values[is_harmful] += strength * planted
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(n_hook_points))
    positions = ("last", "mean", *(f"-{k}" for k in range(2, n_positions)))[:n_positions]
    return Activations(values, is_harmful, names, positions)


def parts(activations: Activations, n_draws: int, n_layers: int) -> dict[str, Callable[[], Any]]:
    """List what a run computes, by name."""
    return {
        "scores and intervals": lambda: validate(activations, n_resamples=n_draws),
        "nulls, four kinds": lambda: draw_nulls(activations, n_permutations=n_draws),
        "stability": lambda: measure_stability(activations, n_resamples=n_draws),
        "nested choice": lambda: choose_nested(activations, n_layers),
    }


def main() -> None:
    """Time the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        *(("hook-points", 48), ("positions", 2), ("prompts", 320), ("d-model", 896)),
        *(("draws", 1000), ("threads", 2)),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    activations = make(options.hook_points, options.positions, options.prompts, options.d_model)
    console.print(f"{activations}, {options.draws} draws, {options.threads} threads", markup=False)
    console.print("| part | wall s | processor s | peak MiB |\n|---|---|---|---|", markup=False)
    total = [0.0, 0.0]
    for name, work in parts(activations, options.draws, options.hook_points).items():
        wall, processor = time.perf_counter(), time.process_time()
        work()
        spent = [time.perf_counter() - wall, time.process_time() - processor]
        total = [before + now for before, now in zip(total, spent, strict=True)]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        console.print(f"| {name} | {spent[0]:.1f} | {spent[1]:.1f} | {peak:.0f} |", markup=False)
    console.print(f"| all | {total[0]:.1f} | {total[1]:.1f} | |", markup=False)


if __name__ == "__main__":
    main()
