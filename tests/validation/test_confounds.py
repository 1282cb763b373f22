"""Trivial features: found where they were planted, chance where they were not."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr

from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.validation.confounds import (
    chat_template_tokens,
    compare_texts,
    length_correlations,
    score_confounds,
    score_direction,
)
from refusal_lens.validation.crossfit import Projections, assign_folds

WORDS = [
    *("door", "wall", "lamp", "tree", "road", "boat"),
    *("chair", "table", "spoon", "river", "cloud", "stone"),
]


def sentences(n: int, seed: int, opening: str = "Paint", end: str = ".") -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{opening} {' '.join(rng.choice(WORDS, 4))} {i + 100 * seed}{end}" for i in range(n)]


def scored(prompts: ContrastSet, counts: list[int] | None = None) -> pd.DataFrame:
    folds = assign_folds(torch.tensor(prompts.is_harmful), 5, 0)
    return score_confounds(prompts, folds, counts).set_index("feature")


def test_nothing_tells_classes_apart_that_differ_in_nothing():
    prompts = ContrastSet.from_texts(sentences(60, 1), sentences(60, 2))
    counts = np.random.default_rng(0).integers(8, 20, 120).tolist()
    table = scored(prompts, counts)
    assert list(table.index) == [
        *("token_count", "final_punctuation", "first_word", "bag_of_words", "all_features")
    ]
    # Standard error of an AUROC of 60 a side: 0.053.
    assert table["auroc"].between(0.3, 0.7).all()
    assert (table["auroc_low"] < table["auroc"]).sum() >= 2


@pytest.mark.parametrize(
    ("feature", "options"),
    [("final_punctuation", {"end": "?"}), ("first_word", {"opening": "Steal"})],
)
def test_planted_feature_is_found_and_no_other(feature, options):
    prompts = ContrastSet.from_texts(sentences(40, 1, **options), sentences(40, 2))
    table = scored(prompts)
    assert table.loc[feature, "auroc"] == table.loc[feature, "accuracy"] == 1.0
    others = {"final_punctuation", "first_word"} - {feature}
    assert table.loc[list(others), "auroc"].between(0.3, 0.7).all()
    assert "token_count" not in table.index


def test_word_anywhere_is_found_by_the_bag_of_words_alone():
    harmful = [text.replace(" ", " bomb ", 1) for text in sentences(40, 1)]
    table = scored(ContrastSet.from_texts(harmful, sentences(40, 2)))
    assert table.loc["bag_of_words", "auroc"] == 1.0
    assert table.loc["first_word", "auroc"] < 0.7


def test_features_that_tell_half_each_tell_more_together():
    half = [*sentences(20, 1, end="?"), *sentences(20, 3, opening="Steal")]
    table = scored(ContrastSet.from_texts(half, sentences(40, 2)))
    assert table.loc["all_features", "auroc"] > 0.95
    assert table.loc[["final_punctuation", "first_word"], "auroc"].max() < 0.85


def test_a_direction_is_scored_among_prompts_that_a_feature_takes_for_alike():
    ends = ["?"] * 36 + ["."] * 4
    harmful = [text[:-1] + end for text, end in zip(sentences(40, 1), ends, strict=True)]
    turned = [{"?": ".", ".": "?"}[end] for end in ends]
    harmless = [text[:-1] + end for text, end in zip(sentences(40, 2), turned, strict=True)]
    prompts = ContrastSet.from_texts(harmful, harmless)
    is_harmful = torch.tensor(prompts.is_harmful)
    folds = assign_folds(is_harmful, 5, 0)
    noise = torch.randn(80, generator=torch.Generator().manual_seed(0)).double()
    asks = torch.tensor([prompt.text.endswith("?") for prompt in prompts.prompts]).double()
    for values, is_right in ((10 * asks + noise, 0.5), (4 * is_harmful.double() + noise, 1.0)):
        table = score_confounds(prompts, folds, None, None, values).set_index("feature")
        row = table.loc["final_punctuation"]
        assert row["auroc"] == pytest.approx(0.9, abs=0.05)
        assert row["direction_within"] == pytest.approx(is_right, abs=0.25)
    apart = score_confounds(
        ContrastSet.from_texts(sentences(40, 1, end="?"), sentences(40, 2)),
        folds,
        None,
        None,
        noise,
    ).set_index("feature")
    assert np.isnan(apart.loc["final_punctuation", "direction_within"])


def test_medium_length_is_found_too():
    prompts = ContrastSet.from_texts(sentences(60, 1), sentences(60, 2))
    counts = [20] * 60 + [10, 30] * 30
    assert scored(prompts, counts).loc["token_count", "auroc"] == 1.0
    assert scored(prompts, [20] * 60 + [30] * 60).loc["token_count", "accuracy"] == 1.0


def make_projections(values: torch.Tensor, is_harmful: torch.Tensor) -> Projections:
    grid = values.double()[:, None, None]
    called = grid > 0
    zero = torch.zeros(1, 1).double()
    return Projections(grid, grid, called, zero, is_harmful, ("a",), ("last",), True)


def test_direction_has_the_same_row():
    labels = torch.arange(40) < 20
    projections = make_projections(labels * 2.0 - 1, labels)
    row = score_direction(projections, "a", "last").iloc[0]
    assert row["feature"] == "direction"
    # A perfect score of 20 a side is no certainty (Clopper and Pearson: 0.83).
    assert row.tolist()[1:] == pytest.approx([1.0, 1.0, 0.84, 1.0], abs=0.01)


def test_length_counts_within_a_class_alone():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) < 100
    counts = torch.randint(5, 30, (200,), generator=generator) + 20 * labels
    noise = torch.randn(200, generator=generator)
    # Classes differ in length and in projection, but within a class one says nothing of the other.
    apart = length_correlations(make_projections(labels * 9.0 + noise, labels), counts.tolist())
    assert pearsonr(counts, labels * 9.0 + noise)[0] > 0.7
    assert apart["share"].item() < 0.05
    values = counts + 5 * noise
    follows = length_correlations(make_projections(values, labels), counts.tolist()).iloc[0]
    expected = pearsonr(counts[labels], values[labels])[0]
    assert follows["correlation_harmful"] == pytest.approx(expected)
    assert 0.5 < follows["share"] < 0.9


def test_length_that_does_not_vary_says_nothing():
    labels = torch.arange(10) < 5
    table = length_correlations(make_projections(torch.arange(10.0), labels), [7] * 10)
    assert table["share"].item() == 0.0


def test_near_duplicate_across_the_classes_is_found_first():
    harmful = ["How do I steal the red car of my neighbour tonight?", *sentences(9, 1)]
    harmless = [*sentences(9, 2, "Clean"), "How do I steal the red car of my neighbours tonight?"]
    likeness = compare_texts(ContrastSet.from_texts(harmful, harmless))
    first = likeness.pairs.iloc[0]
    assert (first["harmful_id"], first["harmless_id"]) == ("harmful-001", "harmless-010")
    assert first["likeness"] > 0.9
    assert (likeness.n_near, likeness.n_compared) == (1, 10)
    assert likeness.pairs["likeness"].is_monotonic_decreasing
    assert 0.0 < likeness.shared_words < 1.0


def test_openings_and_words_are_jaccard_indices():
    likeness = compare_texts(
        ContrastSet.from_texts(["Tell me how cats run", "Show me a dog"], ["Tell me how dogs run"])
    )
    assert likeness.shared_openings == 1 / 2
    # tell me how run | cats show a dog | dogs
    assert likeness.shared_words == 4 / 9


def test_another_template_shows_in_the_tokens_it_adds():
    added = chat_template_tokens([9, 9, 12], [4, 4, 4], [True, False, False])
    assert added == {"harmful": (5,), "harmless": (5, 8)}
