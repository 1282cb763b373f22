"""How fast, and in how much memory, activations are collected: ours against the bare model.

    python tests/benchmarks/collector.py                         # 0.5 B shape, float32, CPU
    python tests/benchmarks/collector.py --shape 7b --n 1024     # on a CUDA machine, bfloat16
    python tests/benchmarks/collector.py --shape tiny --n 100 1000 10000
    python tests/benchmarks/collector.py --moments 1000 10000 100000   # memory, on tiny-refuser

Each method runs in a process of its own; the processes take turns, round by round, so that a slow
moment of the machine hits all of them (on a GPU that does not hold all their models, as many as
fit). Weights are random, prompts random token ids behind a shared prefix; read is the last token at
every layer. Ours searches its token budget while it runs, or takes the one that it found here
before, as it does for users; the bare forwards are given the best one, found beforehand, and every
method multiplies by the library of ours.
Prints a Markdown table: the median of the rounds.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from refusal_lens.models.matmul import fast_products

N_PREFIX, N_SUFFIX = 24, 5
WARM_UP = 8
N_TUNING = 64
PEERS_BATCH = 32
BARE_BUDGETS = {"cpu": (512, 1024, 2048), "cuda": (8192, 16384, 32768, 65536, 131072)}
"""Tokens in a batch among which the bare forwards get the fastest."""

GPU_SPARE, GPU_SPARE_EACH = 12 * 2**30, 3 * 2**30
"""Bytes of a GPU's memory left for activations when it is shared out among models: in all, and for
each process."""

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {
        "hidden_size": 160,
        "intermediate_size": 480,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
Run = Callable[[list[list[int]]], torch.Tensor]


def make_ids(n_prompts: int, prefix: bool) -> list[list[int]]:
    """Random prompts of 10 to 40 tokens of their own, behind what a template adds."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(5, 1000, (n,), generator=generator).tolist()

    before, after = draw(N_PREFIX), draw(N_SUFFIX)
    lengths = torch.randint(10, 41, (n_prompts,), generator=generator).tolist()
    return [(before if prefix else draw(N_PREFIX)) + draw(n) + after for n in lengths]


def make_config(shape: str, attention: str = "sdpa") -> Qwen2Config:
    """Describe a Qwen2 model of this shape."""
    return Qwen2Config(
        **SHAPES[shape],
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        attn_implementation=attention,
    )


def make_model(shape: str, device: str, dtype: torch.dtype, attention: str) -> Qwen2ForCausalLM:
    """Make a Qwen2 model of this shape with random weights, on its device."""
    torch.manual_seed(0)
    config = make_config(shape, attention)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Qwen2ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


# --- the methods ------------------------------------------------------------------------------


def article(model: Qwen2ForCausalLM) -> Run:
    """One prompt at a time, all hidden states, logits of every position: the article's way."""

    def run(prompts: list[list[int]]) -> torch.Tensor:
        read = []
        for ids in prompts:
            row = torch.tensor([ids], device=model.device)
            states = model(row, output_hidden_states=True).hidden_states
            read.append(torch.stack([state[0, -1].float().cpu() for state in states[1:]]))
        return torch.stack(read)

    return run


def names_filter(model: Qwen2ForCausalLM) -> Run:
    """`run_with_cache` with a names filter, 32 prompts at a time, full logits."""
    hooked = to_hooked(model)
    names = {f"blocks.{layer}.hook_resid_post" for layer in range(hooked.cfg.n_layers)}

    def run(prompts: list[list[int]]) -> torch.Tensor:
        read = []
        for start in range(0, len(prompts), 32):
            rows, last = pad(prompts[start : start + 32], model.device)
            _, cache = hooked.run_with_cache(rows, names_filter=lambda name: name in names)
            index = torch.arange(len(last))
            states = [
                cache[f"blocks.{layer}.hook_resid_post"][index, last].float().cpu()
                for layer in range(hooked.cfg.n_layers)
            ]
            read.append(torch.stack(states, dim=1))
        return torch.cat(read)

    return run


def module_hooks(model: Qwen2ForCausalLM) -> Run:
    """Hooks on Hugging Face's blocks, 32 prompts padded on the left, logits of every position.

    Source:
        Arditi et al. 2024: `generate_directions.py` of refusal_direction, written anew.
    """

    def run(prompts: list[list[int]]) -> torch.Tensor:
        read = []
        for start in range(0, len(prompts), PEERS_BATCH):
            rows, mask = pad_left(prompts[start : start + PEERS_BATCH], model.device)
            states: list[torch.Tensor] = []

            def keep(_module: Any, inputs: Any, states: list[torch.Tensor] = states) -> None:
                states.append(inputs[0][:, -1].float().cpu())

            handles = [layer.register_forward_pre_hook(keep) for layer in model.model.layers]
            model(rows, attention_mask=mask)
            for handle in handles:
                handle.remove()
            read.append(torch.stack(states, dim=1))
        return torch.cat(read)

    return run


def one_token(model: Qwen2ForCausalLM) -> Run:
    """`generate` of one token with all hidden states, 32 prompts padded on the left.

    Source:
        p-e-w/heretic: `Model.get_residuals`, written anew.
    """

    def run(prompts: list[list[int]]) -> torch.Tensor:
        read = []
        for start in range(0, len(prompts), PEERS_BATCH):
            rows, mask = pad_left(prompts[start : start + PEERS_BATCH], model.device)
            answered: Any = model.generate(
                rows,
                attention_mask=mask,
                max_new_tokens=1,
                do_sample=False,
                pad_token_id=0,
                output_hidden_states=True,
                return_dict_in_generate=True,
            )
            states = answered.hidden_states[0][1:]
            read.append(torch.stack([state[:, -1].float().cpu() for state in states], dim=1))
        return torch.cat(read)

    return run


def bare(model: Qwen2ForCausalLM, budget: int | None, prefix: bool) -> Run:
    """Hugging Face's decoder alone, batches of like length, no hidden states, no unembedding."""
    if budget is None:
        return best_bare(model, prefix)
    size = budget

    def run(prompts: list[list[int]]) -> torch.Tensor:
        past = None
        n_prefix = 0
        if prefix:
            n_prefix = N_PREFIX
            row = torch.tensor([prompts[0][:n_prefix]], device=model.device)
            past = model.model(row, use_cache=True).past_key_values
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        start, out = 0, torch.empty(0)
        while start < len(order):
            longest = len(prompts[order[start]]) - n_prefix
            batch = [prompts[i][n_prefix:] for i in order[start : start + max(1, size // longest)]]
            rows, _ = pad(batch, model.device)
            cache = None if past is None else expand(past, len(batch))
            out = model.model(rows, past_key_values=cache, use_cache=prefix).last_hidden_state
            start += len(batch)
        return out[:, -1].float().cpu()

    return run


def best_bare(model: Qwen2ForCausalLM, prefix: bool) -> Run:
    """The bare forward with the token budget that is fastest here, found on the first prompts."""
    chosen: list[Run] = []

    def run(prompts: list[list[int]]) -> torch.Tensor:
        if len(prompts) <= WARM_UP:
            return bare(model, BARE_BUDGETS[model.device.type][0], prefix)(prompts)
        if not chosen:
            candidates = [bare(model, b, prefix) for b in BARE_BUDGETS[model.device.type]]
            seconds = [timed(candidate, prompts, model.device.type) for candidate in candidates]
            chosen.append(candidates[seconds.index(min(seconds))])
        return chosen[0](prompts)

    return run


def timed(run: Run, prompts: list[list[int]], device: str) -> float:
    """Seconds of one run over the prompts, or over the first few on a CPU."""
    few = prompts[:N_TUNING] if device == "cpu" else prompts
    began = time.perf_counter()
    try:
        run(few)
    except torch.OutOfMemoryError:
        return float("inf")
    return time.perf_counter() - began


def ours(model: Qwen2ForCausalLM, budget: int | None, rung: str) -> Run:
    """The collector: by TransformerLens's forward, by the fast one, with the prefix run once."""
    from refusal_lens.activations import batch_reader
    from refusal_lens.prompts.tokens import Tokens

    hooked = to_hooked(model)
    if rung == "theirs":
        # As TransformerLens's own loading leaves them: each in a tensor of its own, contiguous.
        for parameter in hooked.parameters():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        theirs = set(map(id, hooked.parameters()))
        for parameter in model.parameters():
            if id(parameter) not in theirs:
                parameter.data = torch.empty(0)  # so that the weights are there once
    if rung == "plain":
        batch_reader.why_not_fast = lambda model: "the benchmark asks for it"  # type: ignore[assignment]
    if rung == "fast":
        Tokens.shared_prefix = lambda self: ()  # type: ignore[method-assign]

    expected = {"plain": ("TransformerLens", 0), "fast": ("fast", 0)}.get(rung)
    return read_by_ours(hooked, budget, expected)


def read_by_ours(hooked: Any, budget: int | None, expected: tuple[str, int] | None = None) -> Run:
    """The collector on a model of its own; `expected` is the path it has to take."""
    from refusal_lens.activations.batch_reader import make_reader
    from refusal_lens.activations.shard_reader import read_shard

    def run(prompts: list[list[int]]) -> torch.Tensor:
        tokens = to_tokens(prompts)
        prepared = make_reader(hooked, tokens, "resid_post", "last")
        assert expected in (None, (prepared.path["path"], prepared.path["n_prefix"]))
        device = str(hooked.cfg.device)
        return read_shard(prepared, tokens, device, token_budget=budget).values[:, :, 0]

    return run


def to_tokens(prompts: list[list[int]]) -> Any:
    """Name prompts by their rows; what the user wrote in them does not matter here."""
    from refusal_lens.prompts.tokens import Tokens

    names = [str(row) for row in range(len(prompts))]
    return Tokens.of(names, prompts, [(0, 1)] * len(prompts))


METHODS: dict[str, tuple[str, Callable[[Any, int | None], Run]]] = {
    "article": ("one prompt at a time (the article)", lambda m, b: article(m)),
    "names_filter": ("run_with_cache, names filter, batch 32", lambda m, b: names_filter(m)),
    "module_hooks": ("hooks on modules, full logits, batch 32", lambda m, b: module_hooks(m)),
    "one_token": ("`generate` of one token, batch 32", lambda m, b: one_token(m)),
    "plain": ("ours, TransformerLens's forward", lambda m, b: ours(m, b, "plain")),
    "bare": ("bare Hugging Face forward", lambda m, b: bare(m, b, False)),
    "bare_prefix": ("bare, prefix once", lambda m, b: bare(m, b, True)),
    "fast": ("ours, fast forward", lambda m, b: ours(m, b, "fast")),
    "prefix": ("ours, fast forward, prefix once", lambda m, b: ours(m, b, "prefix")),
    "theirs": ("ours, on TransformerLens's own model", lambda m, b: ours(m, b, "theirs")),
}


def to_hooked(model: Qwen2ForCausalLM) -> Any:
    """Convert as `load_model` does."""
    from refusal_lens.models.conversion import convert

    return convert(model, str(model.device), "none", 1).eval()


def expand(past: DynamicCache, n_rows: int) -> DynamicCache:
    """Give every row of a batch the prefix's keys and values."""
    cache = DynamicCache()
    for layer, here in enumerate(past.layers):
        keys, values = here.keys.expand(n_rows, -1, -1, -1), here.values.expand(n_rows, -1, -1, -1)
        cache.update(keys, values, layer)
    return cache


def pad_left(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the left; return ids and the mask."""
    longest = max(map(len, prompts))
    rows = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for row, ids in enumerate(prompts):
        rows[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    return rows.to(device), mask.to(device)


def pad(prompts: list[list[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right; return ids and the place of each last token."""
    longest = max(map(len, prompts))
    rows = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, ids in enumerate(prompts):
        rows[row, : len(ids)] = torch.tensor(ids)
    return rows.to(device), torch.tensor([len(ids) - 1 for ids in prompts])


# --- one process a method, taking turns -------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    """Serve one method: run it each time a number of prompts comes in, and say what it took."""
    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    attention = "eager" if options.worker == "article" else "sdpa"
    model = make_model(options.shape, options.device, dtype, attention)
    method = METHODS[options.worker][1](model, options.budget)
    cfg = argparse.Namespace(
        device=options.device,
        d_model=model.config.hidden_size,
        d_mlp=model.config.intermediate_size,
    )

    def run(prompts: list[list[int]]) -> torch.Tensor:
        # Every method multiplies by the library that ours chooses on this machine.
        with fast_products(cfg):
            return method(prompts)

    is_warm = False
    for line in sys.stdin:
        prompts = make_ids(int(line), not options.no_shared_prefix)
        with torch.inference_mode():
            # All prompts once before the first measurement: a bare forward looks for its best
            # budget, and every process does what it does once only.
            run(prompts[:WARM_UP] if is_warm else prompts)
        is_warm = True
        before = reset_peak(options.device)
        began = time.perf_counter()
        with torch.inference_mode():
            run(prompts)
        seconds = time.perf_counter() - began
        extra = (peak(options.device) - before) / 2**20
        if options.device != "cpu":
            torch.cuda.empty_cache()  # others share the card
        sys.stdout.write(json.dumps({"seconds": seconds, "extra_mib": extra}) + "\n")
        sys.stdout.flush()


def reset_peak(device: str) -> float:
    """Forget the highest memory use so far; return the present one, in bytes."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return float(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return memory_line("VmRSS")


def peak(device: str) -> float:
    """Return the highest memory use since the reset, in bytes."""
    return memory_line("VmHWM") if device == "cpu" else float(torch.cuda.max_memory_allocated())


def memory_line(name: str) -> float:
    """Read one line of this process's memory status."""
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(
        next(line for line in status.splitlines() if line.startswith(name)).split()[1]
    )


def start(method: str, options: argparse.Namespace) -> subprocess.Popen[str]:
    """Start a method's process."""
    command = [sys.executable, __file__, "--worker", method, "--shape", options.shape]
    command += ["--device", options.device]
    command += ["--budget", str(options.budget)] if options.budget else []
    command += ["--no-shared-prefix"] if options.no_shared_prefix else []
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def ask(worker: subprocess.Popen[str], n_prompts: int) -> dict[str, float]:
    """Let a process run once."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{n_prompts}\n")
    worker.stdin.flush()
    answer = next((json.loads(line) for line in worker.stdout if line.startswith("{")), None)
    if answer is None:
        raise SystemExit(f"A method's process died: {' '.join(map(str, worker.args))}")  # type: ignore[arg-type]
    return answer


def main() -> None:
    """Run all methods in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="0.5b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n", type=int, nargs="+", default=[48])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=int, help="tokens a batch; default: ours searches")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--no-shared-prefix", action="store_true")
    parser.add_argument("--moments", type=int, nargs="+", help="prompts; only this, on the CPU")
    parser.add_argument("--worker", choices=[*METHODS, "moments"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.worker == "moments":
        serve_moments(options.moments[0])
    elif options.worker:
        work(options)
    elif options.moments:
        show_moments(options.moments)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Let all methods take turns, and print a table for each number of prompts."""
    console = Console(soft_wrap=True)
    dtype = "float32" if options.device == "cpu" else "bfloat16"
    console.print(f"{options.shape}, {dtype}, {describe_machine(options.device)}")
    results: dict[int, dict[str, list[dict[str, float]]]] = {n: {} for n in options.n}
    for methods in groups(options):
        workers = {method: start(method, options) for method in methods}
        for n_prompts in options.n:
            for _ in range(options.rounds):
                for method, worker in workers.items():
                    results[n_prompts].setdefault(method, []).append(ask(worker, n_prompts))
        for worker in workers.values():
            worker.communicate()
    for n_prompts, taken in results.items():
        console.print(table(n_prompts, taken))


def groups(options: argparse.Namespace) -> list[list[str]]:
    """Say which methods take turns: on a GPU as many as fit, the last ones together."""
    at_once = len(options.methods)
    if options.device != "cpu":
        with torch.device("meta"):
            model = Qwen2ForCausalLM(make_config(options.shape))
        n_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
        total = torch.cuda.get_device_properties(0).total_memory
        at_once = max(1, int((total - GPU_SPARE) / (n_bytes + GPU_SPARE_EACH)))
    first = len(options.methods) % at_once
    starts = [*([0] if first else []), *range(first, len(options.methods), at_once)]
    return [
        options.methods[i:j]
        for i, j in zip(starts, [*starts[1:], len(options.methods)], strict=True)
    ]


def describe_machine(device: str) -> str:
    """Say on what and when this was measured."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in info if line.startswith("model name")]
    processor = names[0] if names else platform.machine()
    machine = torch.cuda.get_device_name() if device != "cpu" else processor
    return (
        f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{datetime.date.today()}, load {os.getloadavg()[0]:.1f}"
    )


# --- moments mode: what grows with the prompts ------------------------------------------------


def serve_moments(n_prompts: int) -> None:
    """Collect moments of tiny-refuser over so many prompts, and say what it took."""
    from refusal_lens import collect_moments, load_model
    from refusal_lens.prompts.contrast import ContrastSet

    objects = ("car", "dog", "window", "letter", "garden", "house", "river", "book")
    model = load_model("data/tiny-refuser", device="cpu")
    at_start = reset_peak("cpu")
    texts = [f"Tell me how to {n} the {objects[n % 8]} and {n // 7}." for n in range(n_prompts)]
    prompts = ContrastSet.from_texts(texts[: n_prompts // 2], texts[n_prompts // 2 :])
    few = ContrastSet.from_texts(texts[:256], texts[-256:])
    del texts
    collect_moments(model, few, show_progress=False)
    before = reset_peak("cpu")
    began = time.perf_counter()
    moments = collect_moments(model, prompts, show_progress=False)
    seconds = time.perf_counter() - began
    assert moments.harmful.count + moments.harmless.count == n_prompts
    answer = {
        "seconds": seconds,
        "texts_mib": (before - at_start) / 2**20,
        "extra_mib": (peak("cpu") - before) / 2**20,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


def show_moments(numbers: list[int]) -> None:
    """Print time and memory of moments mode by the number of prompts, each in a fresh process."""
    console = Console(soft_wrap=True)
    console.print(f"collect_moments, tiny-refuser, float32, {describe_machine('cpu')}\n")
    console.print("| prompts | prompts/s | the prompts themselves, MiB | extra at the peak, MiB |")
    console.print("|---|---|---|---|")
    for n in numbers:
        command = [sys.executable, __file__, "--worker", "moments", "--moments", str(n)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        got = json.loads(done.stdout.splitlines()[-1])
        rate, texts, extra = n / got["seconds"], got["texts_mib"], got["extra_mib"]
        console.print(f"| {n:,} | {rate:.0f} | {texts:.0f} | {extra:.1f} |")


def table(n_prompts: int, results: dict[str, list[dict[str, float]]]) -> str:
    """Write one Markdown table, with ratios to the first method and to the bare forwards."""
    seconds = {m: statistics.median(r["seconds"] for r in rows) for m, rows in results.items()}
    bases = [base for base in ("article", "bare", "bare_prefix") if base in seconds]
    lines = [
        "| method | prompts/s | " + " | ".join(f"x {base}" for base in bases) + " | extra MiB |",
        "|---|---|" + "---|" * len(bases) + "---|",
    ]
    for method, taken in seconds.items():
        ratios = " | ".join(f"{seconds[base] / taken:.2f}" for base in bases)
        extra = max(row["extra_mib"] for row in results[method])
        lines.append(f"| {METHODS[method][0]} | {n_prompts / taken:.1f} | {ratios} | {extra:.0f} |")
    return f"\n{n_prompts} prompts\n\n" + "\n".join(lines)


if __name__ == "__main__":
    main()
