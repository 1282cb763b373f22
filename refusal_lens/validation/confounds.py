"""What else tells the classes apart: length, punctuation, first word, words; and prompts too alike.

Knows texts and token counts. Does not know activations: the direction it is compared with comes as
projections.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, PolynomialFeatures
from sklearn.preprocessing import StandardScaler as Standardise
from torch import Tensor

from refusal_lens.prompts.contrast import ContrastSet, Prompt
from refusal_lens.prompts.groups import words_of
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.frames import PLACE, place_frame
from refusal_lens.validation.scores import auroc, auroc_interval
from refusal_lens.validation.thresholds import NEAR_DUPLICATE
from refusal_lens.validation.units import Units

TOKEN_COUNT, FINAL_PUNCTUATION = "token_count", "final_punctuation"
FIRST_WORD, BAG_OF_WORDS, DIRECTION = "first_word", "bag_of_words", "direction"
ALL_FEATURES = "all_features"

N_LEVELS = 5
"""Levels of a feature within which the direction is scored again."""

N_COMPARED = 2000
"""Most prompts of a class that are searched for near duplicates: the search grows as n squared."""

N_PAIRS = 20


# --- how well the texts alone tell the classes apart ------------------------------------------


def score_confounds(
    prompts: ContrastSet,
    folds: Int[Tensor, " n_prompts"],
    token_counts: Sequence[int] | None,
    units: Units | None = None,
    direction: Float[Tensor, " n_prompts"] | None = None,
) -> pd.DataFrame:
    """Classify the prompts by trivial features, out of sample, with the direction's own folds.

    Each feature gets a logistic regression, classes weighted alike, and so do all of them together;
    the token count, where it is given, enters with its square, so that "of medium length" can be
    learned too. Intervals are by `units`, what the folds keep together.

    Twins must lie in one fold, as `assign_folds` deals them: a frame whose harmful twin alone is
    held out is left with the harmless one in the fitting folds, and the AUROC falls below 0.5.

    Returns:
        One row a feature: `feature`, `accuracy` (share), `auroc` with its 95 % interval, and
        `direction_within`: the direction's AUROC among prompts that the feature takes for alike,
        NaN where it leaves no harmful prompt beside a harmless one.
    """
    labels = np.array(prompts.is_harmful)
    columns = np.empty((len(labels), 2), dtype=object)
    columns[:, 0] = [prompt.text for prompt in prompts.prompts]
    columns[:, 1] = [0] * len(labels) if token_counts is None else list(token_counts)
    features = {name: [(name, prepare, 0)] for name, prepare in _TEXT_FEATURES.items()}
    if token_counts is not None:
        features = {TOKEN_COUNT: [(TOKEN_COUNT, _length(), [1])], **features}
    features[ALL_FEATURES] = [part for parts in features.values() for part in parts]
    rows = []
    for feature, parts in features.items():
        decided = torch.from_numpy(
            _decide(_classifier(ColumnTransformer(parts)), columns, labels, folds.numpy())
        )
        told = torch.from_numpy(labels)
        row = _row(feature, decided, decided > 0, told, units)
        within = math.nan if direction is None else auroc_within(direction, decided, told)
        rows.append(row | {"direction_within": within})
    return pd.DataFrame(rows)


def auroc_within(
    values: Float[Tensor, " n_prompts"],
    feature: Float[Tensor, " n_prompts"],
    labels: Bool[Tensor, " n_prompts"],
) -> float:
    """Return the AUROC among pairs of prompts on the same level of a feature.

    Levels are the feature's fifths; a feature of few values has one level a value.

    Example:
        >>> labels = torch.tensor([False, True, False, True])
        >>> auroc_within(torch.tensor([0.0, 1.0, 10.0, 11.0]), torch.tensor([0, 0, 1.0, 1]), labels)
        1.0
    """
    numbers = feature.numpy()
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, N_LEVELS + 1)[1:-1]))
    # A value that is an edge is a level of its own.
    levels = torch.from_numpy(
        sum(np.searchsorted(edges, numbers, side) for side in ("left", "right"))
    )
    total = n_pairs = 0.0
    for level in levels.unique():
        is_in_level = levels == level
        n_both = int(labels[is_in_level].sum()) * int((~labels[is_in_level]).sum())
        if n_both:
            total += n_both * auroc(values[is_in_level], labels[is_in_level]).item()
            n_pairs += n_both
    return total / n_pairs if n_pairs else math.nan


def score_direction(
    projections: Projections, hook_point: str, position: str, units: Units | None = None
) -> pd.DataFrame:
    """Return the row of the direction itself, to stand under `score_confounds`."""
    row, column = projections.place(hook_point, position)
    values = projections.values[:, row, column]
    called = projections.is_called_harmful[:, row, column]
    return pd.DataFrame([_row(DIRECTION, values, called, projections.is_harmful, units)])


def _row(
    feature: str,
    values: Float[Tensor, " n_prompts"],
    called: Bool[Tensor, " n_prompts"],
    labels: Bool[Tensor, " n_prompts"],
    units: Units | None,
) -> dict[str, object]:
    low, high = auroc_interval(values, labels, units)
    return {
        "feature": feature,
        "accuracy": (called == labels).double().mean().item(),
        "auroc": auroc(values, labels).item(),
        "auroc_low": low,
        "auroc_high": high,
    }


def _classifier(*steps: object) -> Pipeline:
    return make_pipeline(*steps, LogisticRegression(class_weight="balanced", max_iter=1000))


def _length() -> Pipeline:
    return make_pipeline(
        FunctionTransformer(lambda counts: counts.astype(np.float64)),
        Standardise(),
        PolynomialFeatures(2, include_bias=False),
    )


def _decide(
    classifier: Pipeline, inputs: np.ndarray, labels: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Return log-odds of harm for each prompt, from a fit to the other folds."""
    decided = np.empty(len(labels))
    for fold in np.unique(folds):
        is_fitting = folds != fold
        fitted = classifier.fit(inputs[is_fitting], labels[is_fitting])
        decided[~is_fitting] = fitted.decision_function(inputs[~is_fitting])
    return decided


def final_punctuation(text: str) -> str:
    """Return the punctuation that a text ends with, its last character; "" for none.

    Example:
        >>> final_punctuation("Why?! "), final_punctuation("Because")
        ('!', '')
    """
    last = text.rstrip()[-1:]
    return last if last and not last.isalnum() else ""


def first_word(text: str) -> str:
    """Return the first word in lower case, without punctuation.

    Example:
        >>> first_word("Hello, I am new here.")
        'hello'
    """
    words = words_of(text)
    return words[0] if words else ""


def _one_hot(feature_of: Callable[[str], str]) -> Pipeline:
    column = FunctionTransformer(lambda texts: np.array([[feature_of(text)] for text in texts]))
    return make_pipeline(column, OneHotEncoder(handle_unknown="ignore"))


_TEXT_FEATURES: dict[str, object] = {
    FINAL_PUNCTUATION: _one_hot(final_punctuation),
    FIRST_WORD: _one_hot(first_word),
    BAG_OF_WORDS: CountVectorizer(analyzer=words_of, binary=True),  # pyright: ignore[reportArgumentType]
}


# --- how much of a direction is length --------------------------------------------------------


def length_correlations(projections: Projections, token_counts: Sequence[int]) -> pd.DataFrame:
    """Correlate projections with token counts within each class, at every place.

    Across the classes the two would agree for the mere reason that both differ between them;
    within a class, only a direction that reads length follows it.

    Returns:
        One row a place: Pearson's r within `harmful` and `harmless`, and `share`, the part of the
        within-class variance of projections that goes with length (r squared, classes pooled).
    """
    counts = torch.tensor(token_counts, dtype=torch.float64)
    labels = projections.is_harmful
    sides = [
        tuple(each[side] - each[side].mean(dim=0) for each in (counts, projections.values))
        for side in (labels, ~labels)
    ]
    both = (torch.cat(parts) for parts in zip(*sides, strict=True))
    columns = {
        "correlation_harmful": _correlations(*sides[0]),
        "correlation_harmless": _correlations(*sides[1]),
        "share": _correlations(*both) ** 2,
    }
    table = place_frame(projections.hook_points, projections.positions)[list(PLACE)]
    return table.assign(**{name: one.flatten().numpy() for name, one in columns.items()})


def _correlations(x: Float[Tensor, " n"], y: Float[Tensor, " n *grid"]) -> Float[Tensor, "*grid"]:
    """Pearson's r of centred numbers; 0 where one does not vary, as then neither follows."""
    size = x.norm() * y.norm(dim=0)
    return torch.tensordot(x, y, dims=1).div(size).where(size != 0, 0.0)


# --- prompts that are too alike ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike the classes' texts are.

    `pairs` are the likest pairs across the classes, one row a pair, the likest first. `n_near` is
    how many harmful prompts have a near duplicate among the harmless ones, of the `n_compared`
    looked at. `shared_words` and `shared_openings` are Jaccard indices: of the two vocabularies,
    and of the sets of first three words.
    """

    pairs: pd.DataFrame
    n_near: int
    n_compared: int
    shared_words: float
    shared_openings: float

    def to_frame(self) -> pd.DataFrame:
        """Return one row of all but the pairs, which are a table of their own."""
        names = ("n_near", "n_compared", "shared_words", "shared_openings")
        return pd.DataFrame([{name: getattr(self, name) for name in names}])

    @classmethod
    def of_tables(cls, pairs: pd.DataFrame, rest: pd.DataFrame) -> "Likeness":
        """Read back what `pairs` and `to_frame` hold."""
        row = rest.iloc[0]
        counts = int(row["n_near"]), int(row["n_compared"])
        return cls(pairs, *counts, float(row["shared_words"]), float(row["shared_openings"]))


def compare_texts(prompts: ContrastSet, *, seed: int = 0) -> Likeness:
    """Find near duplicates across the classes, and what their texts have in common.

    Likeness is the cosine of character n-grams (3 to 5, within words), weighted by their rarity.
    Of classes larger than `N_COMPARED` a seeded sample is compared.
    """
    harmful, harmless = (
        _sample(side.prompts, seed) for side in (prompts.harmful, prompts.harmless)
    )
    texts = [[prompt.text for prompt in side] for side in (harmful, harmless)]
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit([*texts[0], *texts[1]])
    left, right = (csr_matrix(grams.transform(side)) for side in texts)
    likeness = csr_matrix(left @ right.transpose()).toarray()
    order = np.argsort(-likeness, axis=None, kind="stable")[:N_PAIRS]
    rows = [
        {
            "harmful_id": harmful[a].id,
            "harmless_id": harmless[b].id,
            "likeness": float(likeness[a, b]),
            "harmful_text": harmful[a].text,
            "harmless_text": harmless[b].text,
        }
        for a, b in zip(*np.unravel_index(order, likeness.shape), strict=True)
    ]
    words = [{word for text in side for word in words_of(text)} for side in texts]
    openings = [{tuple(words_of(text)[:3]) for text in side} for side in texts]
    return Likeness(
        pairs=pd.DataFrame(rows),
        n_near=int((likeness.max(axis=1) >= NEAR_DUPLICATE).sum()),
        n_compared=len(harmful),
        shared_words=_jaccard(*words),
        shared_openings=_jaccard(*openings),
    )


def _sample(prompts: Sequence[Prompt], seed: int) -> list[Prompt]:
    if len(prompts) <= N_COMPARED:
        return list(prompts)
    drawn = np.random.default_rng(seed).choice(len(prompts), N_COMPARED, replace=False)
    return [prompts[index] for index in sorted(drawn)]


def _jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def chat_template_tokens(
    token_counts: Sequence[int], text_counts: Sequence[int], is_harmful: Sequence[bool]
) -> dict[str, tuple[int, ...]]:
    """Return how many tokens the template adds to the prompts of each class.

    Where both went through the same template, both classes have the same numbers: one, or two
    neighbours where a token spans the border of a text.

    Example:
        >>> chat_template_tokens([9, 8, 9], [4, 3, 4], [True, False, False])
        {'harmful': (5,), 'harmless': (5,)}
    """
    counted = list(zip(token_counts, text_counts, is_harmful, strict=True))
    return {
        name: tuple(sorted({total - part for total, part, label in counted if label is wanted}))
        for name, wanted in (("harmful", True), ("harmless", False))
    }
