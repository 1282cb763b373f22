"""Intervals of means by resampling prompts, those that depend on each other together.

Knows values, and which of them belong together. Does not know what they mean.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from refusal_lens.validation.scores import CONFIDENCE

N_DRAWS = 2000


def resample_means(
    values: Float[np.ndarray, "n_prompts n_values"],
    units: Sequence[int],
    seed: int,
    n_draws: int = N_DRAWS,
) -> Float[np.ndarray, "n_draws n_values"]:
    """Draw units with replacement, and return the means over the prompts drawn.

    Prompts with the same number in `units` are drawn together, and so are all values of a prompt,
    so that differences between them are paired. A value that a prompt does not have (NaN: of the
    other class) counts in no mean; a mean is NaN where a draw holds no value.
    """
    numbers = np.unique(np.asarray(units), return_inverse=True)[1]
    n_units = int(numbers.max(initial=-1)) + 1
    sums, counts = np.zeros((2, n_units, values.shape[1]))
    np.add.at(sums, numbers, np.nan_to_num(values))
    np.add.at(counts, numbers, ~np.isnan(values))
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(n_units, np.full(n_units, 1 / n_units), n_draws)
    drawn = (weights @ counts).astype(float)
    drawn[drawn == 0] = np.nan
    return (weights @ sums) / drawn


def mean_interval(
    values: Float[np.ndarray, " n_prompts"], units: Sequence[int], seed: int
) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean; arguments as in `resample_means`."""
    draws = resample_means(values[:, None], units, seed)[:, 0]
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def with_both_ways(
    before: Float[np.ndarray, " n_prompts"], after: Float[np.ndarray, " n_prompts"]
) -> tuple[Float[np.ndarray, " n_more"], Float[np.ndarray, " n_more"]]:
    """Add a prompt that went from 0 to 1, and one that went from 1 to 0.

    Of five prompts that all go one way a bootstrap knows no others, and its interval is a point.
    With one more of either kind the interval of a small sample is as wide as it has to be.

    Source:
        Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, 479-488: the
        interval of a difference of paired shares after adding one to either kind of change.
    """
    return np.append(before, [0.0, 1.0]), np.append(after, [1.0, 0.0])
