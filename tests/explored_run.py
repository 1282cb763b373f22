"""A run folder as the explorer reads it, with planted classes, written without a model."""

import warnings
from pathlib import Path

import torch
from conftest import save_activations

from refusal_lens.activations.pooled import Activations
from refusal_lens.config_files import load_config
from refusal_lens.directions.direction import fit_directions
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.prompts.contrast import ContrastSet, Prompt, PromptSet
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.separation import validate

HOSTILE = (
    "</script><script>document.title = 'stolen'</script>",
    '<img src=x onerror="document.title = \'stolen\'"> & <b>bold</b> <a href="https://a.b">x</a>',
    "${1} $x^2$ %{x} {{ 7 * 7 }} \\n \" ' `",
    "right to left: \u05e9\u05dc\u05d5\u05dd \u202eoverridden and never closed",
    "controls \x01\x1b[31m\x7f \u2028 and emoji 👩‍👩‍👧‍👦 " + "x" * 300,
)


def make_prompts(n: int, texts: tuple[str, ...] = ()) -> ContrastSet:
    """Make n prompts a side, in three categories; the first harmful ones have the given texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sides = []
        for side in ("harmful", "harmless"):
            given = texts if side == "harmful" else ()
            said = [*given, *(f"{side} request number {i}" for i in range(len(given), n))]
            named = [
                Prompt(f"{side}-{i:04d}", text, ("art", "law", "war")[i % 3])
                for i, text in enumerate(said)
            ]
            sides.append(PromptSet(side, tuple(named)))
        return ContrastSet(*sides)


def make_activations(
    n: int, sites: tuple[str, ...], n_layers: int, positions: tuple[str, ...], d_model: int
) -> Activations:
    """Part the classes along one axis, more at every layer, half as much at later positions."""
    generator = torch.Generator().manual_seed(0)
    names = tuple(f"blocks.{i}.hook_{site}" for site in sites for i in range(n_layers))
    labels = torch.arange(2 * n) < n
    values = torch.randn(2 * n, len(names), len(positions), d_model, generator=generator)
    rise = (torch.arange(len(names)) % n_layers)[:, None] / max(1, n_layers - 1)
    shrink = 0.5 ** torch.arange(len(positions))[None, :]
    values[labels, :, :, 0] += 6 * rise * shrink
    return Activations(values, labels, names, positions, {"model": {"n_layers": 2 * n_layers}})


def make_refusal(prompts: ContrastSet) -> RefusalReport:
    """Answer every prompt with its own text; of the harmful ones every second is refused."""
    answers = [
        Answer(
            prompt.id,
            prompt.category,
            is_harmful,
            prompt.text,
            f"Answer: {prompt.text}",
            "refused" if is_harmful and i % 2 else "answered",
            float(i),
        )
        for i, (prompt, is_harmful) in enumerate(
            zip(prompts.prompts, prompts.is_harmful, strict=True)
        )
    ]
    return RefusalReport(tuple(answers), ("I",))


def make_run(
    folder: Path,
    *,
    n: int = 40,
    sites: tuple[str, ...] = ("resid_post",),
    n_layers: int = 4,
    positions: tuple[str, ...] = ("last", "mean"),
    d_model: int = 16,
    texts: tuple[str, ...] = (),
    is_fitted: bool = True,
    is_answered: bool = False,
) -> RunFolder:
    """Write a run: activations, and unless told otherwise what a fit of them leaves.

    Answered, the model has refused every second harmful prompt, and answers are the prompts' texts.
    """
    run_folder = RunFolder(folder)
    config = load_config(None, [])
    run_folder.write_config(config)
    run_folder.write_prompts(make_prompts(n, texts))
    activations = make_activations(n, sites, n_layers, positions, d_model)
    save_activations(run_folder.activations_path, activations)
    run_folder.write_provenance({"model": {"name": "planted", "n_layers": 2 * n_layers}})
    if is_answered:
        run_folder.write_refusal(make_refusal(run_folder.read_prompts()))
    if is_fitted:
        clip_quantile = config.directions.clip_quantile
        separation, projections = validate(activations, clip_quantile=clip_quantile)
        run_folder.write_directions(fit_directions(activations, clip_quantile=clip_quantile))
        run_folder.write_separation(separation)
        run_folder.write_projections(projections)
    return run_folder
