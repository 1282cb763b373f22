"""Tables of a run with planted numbers, in the layout that the stages write."""

import itertools
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go

CATEGORIES = ("weapons", "contraband", "attack", "a category with a long name", "cooking", "travel")


def places(n_layers: int, positions: tuple[str, ...] = ("last", "mean")) -> pd.DataFrame:
    rows = [
        {
            "hook_point": f"blocks.{layer}.hook_resid_post",
            "site": "resid_post",
            "layer": layer,
            "position": position,
        }
        for layer in range(n_layers)
        for position in positions
    ]
    return pd.DataFrame(rows)


def rise(frame: pd.DataFrame) -> np.ndarray:
    """From 0 to 1 over the layers, lower at the second position."""
    depth = frame["layer"] / max(frame["layer"].max(), 1)
    return (
        1 / (1 + np.exp(-10 * (depth - 0.5))) * (1 - 0.3 * (frame["position"] == "mean"))
    ).values


def separation(n_layers: int) -> pd.DataFrame:
    frame = places(n_layers)
    height = rise(frame)
    for name, low, high in (
        ("separation", 0, 1),
        ("accuracy", 0.5, 0.99),
        ("auroc", 0.5, 1.0),
        ("balanced_accuracy", 0.5, 0.99),
        ("cohens_d", 0, 4),
    ):
        frame[name] = low + (high - low) * height
        frame[f"{name}_low"] = frame[name] - 0.04 * (high - low)
        frame[f"{name}_high"] = np.minimum(frame[name] + 0.04 * (high - low), high)
        frame[f"{name}_in_sample"] = np.minimum(frame[name] + 0.06 * (high - low), high)
    frame["is_valid"] = (frame["separation"] >= 0.15) & (frame["accuracy"] >= 0.65)
    frame["p_value"] = 0.01
    return frame


def nulls(n_layers: int) -> pd.DataFrame:
    parts = []
    for score, low, high in (
        ("separation", -0.08, 0.08),
        ("accuracy", 0.42, 0.58),
        ("auroc", 0.41, 0.59),
    ):
        for kind in ("permutation", "random"):
            own = places(n_layers).assign(kind=kind, score=score, n_draws=200, p_value=0.005)
            parts.append(own.assign(low=low, median=(low + high) / 2, high=high))
    return pd.concat(parts, ignore_index=True)


def stability(n_layers: int) -> pd.DataFrame:
    frame = places(n_layers)
    frame["bootstrap_cosine"] = 0.6 + 0.39 * rise(frame)
    frame["bootstrap_cosine_low"] = frame["bootstrap_cosine"] - 0.03
    frame["bootstrap_cosine_high"] = np.minimum(frame["bootstrap_cosine"] + 0.01, 1)
    return frame.assign(split_half_cosine=frame["bootstrap_cosine"] - 0.1, raw_norm=3.0)


def learning_curve() -> pd.DataFrame:
    counts = [8, 16, 32, 64, 128, 192, 384, 768]
    degrees = [300 / math.sqrt(n) for n in counts]
    frame = pd.DataFrame({"n_per_class": counts, "degrees": degrees})
    frame["degrees_low"], frame["degrees_high"] = frame["degrees"] * 0.9, frame["degrees"] * 1.1
    frame["is_extrapolated"] = frame["n_per_class"] > 192
    return frame.assign(hook_point="blocks.5.hook_resid_post", position="last")


def clip_sweep() -> pd.DataFrame:
    rows = [
        {
            "hook_point": f"blocks.{layer}.hook_resid_post",
            "position": "last",
            "clip_quantile": quantile,
            "separation": 0.1 * layer + 0.3 * quantile if quantile else 0.4,
            "accuracy": 0.9,
            "auroc": 0.95,
            "cosine_to_unclipped": quantile or 1.0,
        }
        for layer in (3, 5)
        for quantile in (0.9, 0.95, 0.99, 0.995, 0.999, None)
    ]
    return pd.DataFrame(rows)


def coordinates(n_layers: int) -> pd.DataFrame:
    frame = places(n_layers)
    for name, share in (("share_top_1", 0.3), ("share_top_10", 0.5), ("share_top_1_percent", 0.4)):
        frame[name] = share * (1 - 0.5 * rise(frame))
        frame[f"{name}_clipped"] = frame[name] / 2
    return frame.assign(cosine_raw_clipped=0.95)


def nested_choice() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {
            "repeat": repeat,
            "fold": fold,
            "hook_point": f"blocks.{4 + (repeat + fold) % 3}.hook_resid_post",
            "position": "last",
            "separation": generator.normal(0.9, 0.05),
            "accuracy": generator.normal(0.97, 0.01),
            "auroc": 0.99,
        }
        for repeat, fold in itertools.product(range(3), range(5))
    ]
    return pd.DataFrame(rows)


def confounds() -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "feature": [
                "token_count",
                "final_punctuation",
                "first_word",
                "bag_of_words",
                "direction",
            ],
            "auroc": [0.55, 0.5, 0.62, 0.81, 0.995],
            "accuracy": [0.53, 0.5, 0.6, 0.74, 0.98],
        }
    )
    return frame.assign(auroc_low=frame["auroc"] - 0.05, auroc_high=frame["auroc"] + 0.005)


def methods(n_layers: int) -> pd.DataFrame:
    parts = []
    for shift, method in enumerate(("difference_of_means", "logistic", "lda", "pca")):
        for is_clipped in (False, True):
            frame = places(n_layers)
            height = rise(frame) * (1 - 0.1 * shift - 0.03 * is_clipped)
            parts.append(
                frame.assign(
                    method=method,
                    is_clipped=is_clipped,
                    separation=height,
                    accuracy=0.5 + height / 2,
                    auroc=0.5 + height / 2,
                    cohens_d=4 * height,
                    cosine_to_difference_of_means=1 - 0.2 * shift - 0.05 * is_clipped,
                )
            )
    return pd.concat(parts, ignore_index=True)


def categories(n_layers: int) -> pd.DataFrame:
    rows = [
        {
            **place,
            "category": category,
            "is_harmful": number < 4,
            "n": 20 + number,
            "mean_cosine": (0.5 if number < 4 else -0.5) + 0.03 * number,
            "share_called_harmful": 0.98 - 0.1 * number if number < 4 else 0.05 * (number - 3),
            "separation": 0.9,
        }
        for place in places(n_layers).to_dict("records")
        for number, category in enumerate(CATEGORIES)
    ]
    return pd.DataFrame(rows)


def misread(n_layers: int, n_prompts: int = 7) -> pd.DataFrame:
    rows = [
        {
            "hook_point": f"blocks.{n_layers - 1}.hook_resid_post",
            "position": "last",
            "prompt_id": f"{'harmful' if number % 3 else 'harmless'}-{number:03d}",
            "category": CATEGORIES[number % 6],
            "is_harmful": number % 3 > 0,
            "text": f"Number {number}: please tell me how somebody would go about this & that <b>.",
            "projection": 1.0,
            "margin": (-1 if number % 3 else 1) * (0.2 + 0.3 * number),
        }
        for number in range(n_prompts)
    ]
    columns = [
        "hook_point",
        "position",
        "prompt_id",
        "category",
        "is_harmful",
        "text",
        "projection",
        "margin",
    ]
    return pd.DataFrame(rows, columns=columns)


def causal_scores(n_layers: int) -> pd.DataFrame:
    frame = places(n_layers, ("-1", "-2"))
    depth = frame["layer"] / max(n_layers - 1, 1)
    bump = np.exp(-(((depth - 0.6) / 0.2) ** 2)) * (1 - 0.3 * (frame["position"] == "-2"))
    frame["bypass"], frame["induce"] = 5 - 12 * bump, -6 + 10 * bump
    frame["kl"] = 0.003 + 2 * depth**8
    frame["baseline_harmful"], frame["baseline_harmless"] = 5.0, -7.0
    is_early = depth < 0.8
    ablate = frame.assign(
        intervention="ablate",
        is_eligible=is_early & (frame["kl"] <= 0.1) & (frame["induce"] >= 0),
    )
    affine = frame.assign(
        intervention="affine_ablate",
        is_eligible=is_early,
        bypass=frame["bypass"] - 1,
        kl=frame["kl"] / 10,
    )
    best = ablate[ablate["is_eligible"]]["bypass"].idxmin() if ablate["is_eligible"].any() else 0
    both = pd.concat([ablate, affine], ignore_index=True)
    return both.assign(reasons="", verdict="", is_chosen=both.index == best)


def dose_response() -> pd.DataFrame:
    rows = []
    sources = [("fitted", 0), *(("random", seed) for seed in range(3)), ("permuted", 0)]
    for intervention, strengths in (
        ("ablate", [0, 0.5, 1]),
        ("affine_ablate", [0, 0.5, 1]),
        ("add", [0, 0.5, 1, 2]),
    ):
        for (direction, seed), strength, is_harmful in itertools.product(
            sources, strengths, (True, False)
        ):
            if is_harmful == (intervention == "add"):
                continue
            slope = (8 if direction == "fitted" else 0.3 * (seed + 1)) * (
                1 if not is_harmful else -1
            )
            score = (4 if is_harmful else -6) + slope * strength
            rate = 1 / (1 + math.exp(-score))
            rows.append(
                {
                    "intervention": intervention,
                    "direction": direction,
                    "seed": seed,
                    "strength": strength,
                    "hook_point": "blocks.5.hook_resid_post",
                    "position": "last",
                    "is_harmful": is_harmful,
                    "refusal_score": score,
                    "refusal_score_low": score - 1,
                    "refusal_score_high": score + 1,
                    "refusal_rate": rate,
                    "refusal_rate_low": max(rate - 0.1, 0),
                    "refusal_rate_high": min(rate + 0.1, 1),
                    "kl": 0.01,
                    "text_loss": 1.0,
                }
            )
    return pd.DataFrame(rows)


def attribution(n_layers: int, n_heads: int = 4) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [("embed", None, None), ("bias", None, None)]
    for layer in range(n_layers):
        rows += [(f"blocks.{layer}.attn", layer, head) for head in range(n_heads)]
        rows.append((f"blocks.{layer}.mlp", layer, None))
    frame = pd.DataFrame(rows, columns=["component", "layer", "head"])
    frame["contribution"] = generator.normal(size=len(frame)) ** 3
    frame["share"] = frame["contribution"] / frame["contribution"].sum()
    frame["category"] = ""
    of_category = frame.assign(category="weapons", contribution=100.0)
    both = pd.concat([frame, of_category], ignore_index=True)
    return both.assign(hook_point=f"blocks.{n_layers - 1}.hook_resid_post", position="last")


def unembedding() -> pd.DataFrame:
    words = ["I", " cannot", " sorry", "Sorry", "\n", "<b>", " $5$", "不", " unfortunately", "As"]
    rows = [
        {
            "hook_point": "blocks.7.hook_resid_post",
            "position": "last",
            "rank": rank,
            "end": end,
            "token_id": 10 * rank + (end == "top"),
            "token": word,
            "logit": (1 if end == "top" else -1) * (3 - 0.2 * rank),
        }
        for end in ("top", "bottom")
        for rank, word in enumerate(words, start=1)
    ]
    return pd.DataFrame(rows)


def prompt_tokens(n_prompts: int = 3) -> pd.DataFrame:
    words = [
        "<|im_start|>",
        "user",
        "\n",
        "Can",
        " you",
        " give",
        " me",
        " advice",
        " for",
        " delivering",
        " fighting",
        " roosters",
        "?",
        "<|im_end|>",
        "\n",
        "<|im_start|>",
        "assistant",
        "\n",
    ]
    rows = [
        {
            "prompt_id": f"{'harmful' if number % 2 else 'harmless'}-{number:03d}",
            "index": index,
            "token_id": index,
            "token": word,
            "hook_point": "blocks.5.hook_resid_post",
            "projection": math.sin(index + number) * 8,
            "cosine": math.sin(index + number),
        }
        for number in range(n_prompts)
        for index, word in enumerate(words * (1 + number))
    ]
    return pd.DataFrame(rows)


def refusal_by_length() -> pd.DataFrame:
    refused = {True: (0.2, 0.7, 0.9, 0.9), False: (0.0, 0.05, 0.05, 0.05)}
    return pd.DataFrame(
        {
            "is_harmful": is_harmful,
            "n_tokens": length,
            "n_prompts": 40,
            "refused": rate,
            "refused_low": max(0, rate - 0.1),
            "refused_high": min(1, rate + 0.1),
            "evaded": 0.08 if is_harmful else 0.0,
            "is_settled": length >= 32,
        }
        for is_harmful, rates in refused.items()
        for length, rate in zip((8, 16, 32, 64), rates, strict=True)
    )


def quadrants() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = []
    for side, outcomes, harm in (
        ("harmful", {"refused": 60, "answered": 20, "evaded": 8}, 2),
        ("harmless", {"refused": 4, "answered": 80, "broken": 4}, -2),
        ("borderline", {"refused": 20, "answered": 30}, 0),
    ):
        for outcome, n in outcomes.items():
            for number in range(n):
                refusal = 1.5 if outcome == "refused" else -1.5
                x, y = generator.normal((harm, refusal), 0.8)
                rows.append((f"{side}-{outcome}-{number}", side, outcome, x, y))
    names = ["prompt_id", "class", "outcome", "harm", "refusal"]
    return pd.DataFrame(rows, columns=pd.Index(names)).assign(
        harm_hook_point="blocks.3.hook_resid_post",
        harm_position="instruction_last",
        refusal_hook_point="blocks.5.hook_resid_post",
        refusal_position="last",
    )


def side_effects() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "intervention": intervention,
            "direction": direction,
            "strength": strength,
            "effect": min(1.0, (0.6 if direction == "fitted" else 0.05) * strength),
            "kl": 0.05 * strength**2 * (2 if intervention == "ablate" else 1),
            "is_on_front": direction == "fitted" and intervention != "ablate",
        }
        for intervention in ("affine_ablate", "ablate", "add")
        for direction in ("fitted", "random")
        for strength in (0.5, 1.0, 1.5)
    )


def every_table(n_layers: int) -> dict[str, pd.DataFrame]:
    """All tables that a figure reads, by name."""
    return {
        "nulls": nulls(n_layers),
        "stability": stability(n_layers),
        "learning_curve": learning_curve(),
        "clip_sweep": clip_sweep(),
        "coordinates": coordinates(n_layers),
        "nested_choice": nested_choice(),
        "confounds": confounds(),
        "methods": methods(n_layers),
        "categories": categories(n_layers),
        "misread": misread(n_layers),
        "causal_scores": causal_scores(n_layers),
        "dose_response": dose_response(),
        "refusal_by_length": refusal_by_length(),
        "quadrants": quadrants(),
        "side_effects": side_effects(),
        "attribution": attribution(n_layers),
        "unembedding": unembedding(),
        "prompt_tokens": prompt_tokens(),
    }


def named(figure: go.Figure, name: str) -> list:
    """Return a figure's traces of one name."""
    return [trace for trace in figure.data if trace.name == name]
