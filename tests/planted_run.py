"""A run folder with planted numbers, written without a model: what the report is made from."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from conftest import make_separation

from refusal_lens.config_files import load_config
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.separation import Separation

HOSTILE = (
    "</script><script>document.title = 'stolen'</script>",
    '<img src=x onerror="document.title = \'stolen\'"> & <b>bold</b> <a href="https://a.b">x</a>',
    "{{ 7 * 7 }} {% raw %} ${1} $x^2$ %{x} \\u003c \\n",
    "quotes \" ' ` and \u2028 \u2029 separators",
    "right to left: \u05e9\u05dc\u05d5\u05dd \u202eoverridden and never closed",
    "controls \x00\x01\x1b[31m\x7f\x85 and a bell \x07",
    "emoji 👩‍👩‍👧‍👦 🏴‍☠️ and 長い文 " + "x" * 300,
    "<!-- <script> ]]> --> &lt;escaped&gt; &amp;",
)


def make_run(
    folder: Path,
    *,
    n_layers: int = 4,
    positions: Sequence[str] = ("last", "mean"),
    texts: tuple[Sequence[str], Sequence[str]] | None = None,
    categories: Sequence[str] = ("c",),
    strength: float = 1.0,
    n_refused: int | None = None,
) -> RunFolder:
    """Write a run whose classes part at the later layers.

    Args:
        folder: The run folder.
        n_layers: Layers, all read at `resid_post`.
        positions: Positions.
        texts: Harmful and harmless prompts; None makes 40 of each.
        categories: Given to the prompts in turn.
        strength: 1 separates the classes well; 0 not at all.
        n_refused: Harmful prompts refused; None says all, -1 that refusal was not measured.
    """
    run_folder = RunFolder(folder)
    run_folder.write_config(load_config(None, []))
    prompts = make_prompts(texts, categories)
    run_folder.write_prompts(prompts)
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(n_layers))
    projections, separation = make_scores(prompts, names, tuple(positions), strength)
    run_folder.write_projections(projections)
    run_folder.write_separation(separation)
    run_folder.write_provenance(make_provenance(2 * n_layers))  # none of these is late in it
    if n_refused != -1:
        run_folder.write_refusal(make_refusal(prompts, n_refused))
    return run_folder


def make_prompts(
    texts: tuple[Sequence[str], Sequence[str]] | None, categories: Sequence[str]
) -> ContrastSet:
    given = texts or tuple([f"{side} request {i}" for i in range(40)] for side in ("bad", "good"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = ContrastSet.from_texts(*given)
    sides = [
        type(side)(
            side.name,
            tuple(
                type(prompt)(prompt.id, prompt.text, categories[i % len(categories)])
                for i, prompt in enumerate(side)
            ),
        )
        for side in (plain.harmful, plain.harmless)
    ]
    return ContrastSet(*sides)


def make_scores(
    prompts: ContrastSet, names: tuple[str, ...], positions: tuple[str, ...], strength: float
) -> tuple[Projections, Separation]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(list(prompts.is_harmful))
    rise = torch.linspace(0.05, 1, len(names)).double()[:, None].expand(-1, len(positions))
    noise = torch.randn((len(labels), *rise.shape), generator=generator).double()
    values = 10 * (labels[:, None, None].double() - 0.5) * rise * strength + noise
    thresholds = torch.zeros(rise.shape).double()
    called = values > thresholds
    accuracy = (called == labels[:, None, None]).double().mean(dim=0)
    separation = 0.9 * rise * strength
    # One position a little better than the others: the best place is not a matter of rounding.
    separation[:, 1:] *= 0.8
    scores = make_separation(
        separation,
        accuracy,
        separation + 0.01,
        accuracy.clamp(max=0.99) + 0.01,
        names,
        positions,
        5,
    )
    projections = Projections(
        values, values / 20, called, thresholds, labels, names, positions, True
    )
    return projections, scores


def make_provenance(n_layers: int) -> dict[str, Any]:
    return {
        "model": {"name": "some/where/model", "n_layers": n_layers, "d_model": 64, "dtype": "f32"},
        "versions": {"python": "3.11.7", "refusal-lens": "0.1.0", "torch": "2.9.0+cpu"},
        "collected_at": "2026-01-31T12:34:56+00:00",
    }


def make_refusal(prompts: ContrastSet, n_refused: int | None) -> RefusalReport:
    wanted = len(prompts.harmful) if n_refused is None else n_refused
    sides = ((prompts.harmful, True, wanted), (prompts.harmless, False, 1))
    return RefusalReport(
        tuple(
            Answer(
                p.id,
                p.category,
                is_harmful,
                p.text,
                "I cannot.",
                "refused" if i < n else "answered",
                float(i),
            )
            for side, is_harmful, n in sides
            for i, p in enumerate(side)
        ),
        ("I",),
    )


# --- tables that other stages write -------------------------------------------------------------

BEST = {"hook_point": "blocks.3.hook_resid_post", "site": "resid_post", "layer": 3}
"""The last of four layers, at position last."""


def places(n_layers: int = 4) -> list[dict[str, Any]]:
    return [
        {**BEST, "hook_point": f"blocks.{i}.hook_resid_post", "layer": i, "position": position}
        for i in range(n_layers)
        for position in ("last", "mean")
    ]


def nulls(p_value: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": kind,
            "score": score,
            **place,
            "low": -0.1,
            "median": 0.0,
            "high": 0.1,
            "n_draws": 1000,
            "p_value": p_value / 2,
            "p_value_corrected": p_value,
        }
        for kind in ("permutation", "random")
        for score in ("separation", "auroc")
        for place in places()
    )


def power(detectable: float) -> pd.DataFrame:
    row = {"shuffled": "pairs", "detectable_auroc": detectable, "frames_differ": False}
    return pd.DataFrame([row])


def corrected_rates() -> pd.DataFrame:
    rates = {"judged_rate": 0.5, "rate": 0.6, "rate_low": 0.4, "rate_high": 0.8}
    row = {"intervention": "", "direction": "", "strength": 0.0, "outcome": "refused", **rates}
    return pd.DataFrame([{**row, "is_harmful": is_harmful} for is_harmful in (True, False)])


def stability(cosine: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **place,
            "split_half_cosine": cosine,
            "bootstrap_cosine": 0.9,
            "bootstrap_cosine_low": 0.85,
            "bootstrap_cosine_high": 0.95,
            "raw_norm": 3.0,
        }
        for place in places()
    )


def confounds(bag_of_words: float) -> pd.DataFrame:
    scores = {"token_count": 0.6, "first_word": 0.5, "bag_of_words": bag_of_words}
    return pd.DataFrame(
        {
            "feature": feature,
            "accuracy": auroc,
            "auroc": auroc,
            "auroc_low": auroc - 0.05,
            "auroc_high": min(1.0, auroc + 0.05),
        }
        for feature, auroc in {**scores, "direction": 0.99}.items()
    )


def causal_scores(verdict: str, chosen_layer: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **place,
            "intervention": "affine_ablate",
            "bypass": -5.0,
            "induce": 3.0,
            "kl": 0.05,
            "is_chosen": (place["layer"], place["position"]) == (chosen_layer, "last"),
            "verdict": verdict,
        }
        for place in places()
    )


def learning_curve() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "hook_point": BEST["hook_point"],
            "position": "last",
            "n_per_class": n,
            "degrees": 100 / n**0.5,
            "degrees_low": 90 / n**0.5,
            "degrees_high": 110 / n**0.5,
            "is_extrapolated": n > 40,
        }
        for n in (10, 20, 40, 80, 160)
    )


def nested_choice() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repeat": 0,
            "fold": fold,
            "hook_point": f"blocks.{layer}.hook_resid_post",
            "position": "last",
            "separation": 0.8,
            "accuracy": 0.9,
            "auroc": 0.95,
        }
        for fold, layer in enumerate((3, 3, 2, 3, 3))
    )


def misread(run_folder: RunFolder) -> pd.DataFrame:
    prompts = run_folder.read_prompts()
    return pd.DataFrame(
        {
            "hook_point": f"blocks.{layer}.hook_resid_post",
            "position": "last",
            "prompt_id": prompt.id,
            "category": prompt.category,
            "is_harmful": True,
            "text": "as the CSV tells it",
            "projection": -1.0 - i,
            "margin": 1.0 + i,
        }
        for layer in (2, 3)
        for i, prompt in enumerate(prompts.harmful)
    )
