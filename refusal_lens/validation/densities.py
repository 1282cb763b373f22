"""What figures show of many numbers: densities, shares, planes, the largest coordinates.

Knows how to sum up. Draws nothing, and judges nothing.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import gaussian_kde, norm
from sklearn.metrics import roc_curve
from torch import Tensor

from refusal_lens.directions.direction import Direction, clip
from refusal_lens.errors import RefusalLensError
from refusal_lens.validation.crossfit import Projections

N_GRID = 80
"""Points at which a density is taken."""

MANY = 10
"""Parts of fewer numbers have wide kernels: where others have so many, the grid goes by those."""


Labels = Bool[Tensor, " n_prompts"] | Int[Tensor, " n_prompts"]
"""Which part each prompt is of: its class, 1 for harmful, or a finer one. No part is empty."""


@dataclass(frozen=True, eq=False)
class Densities:
    """Densities of all parts on one grid of equal steps, per unit of the numbers."""

    grid: Float[Tensor, " n_grid"]
    curves: Float[Tensor, "n_parts n_grid"]


def shared_densities(
    numbers: Float[Tensor, " n_prompts"], labels: Labels, n_grid: int = N_GRID
) -> Densities:
    """Smooth every part with Gaussian kernels, on a grid that holds all.

    Each part has Scott's bandwidth of its own. The grid reaches three of the widest one's beyond
    the outermost numbers, so that each density integrates to one; see `MANY`.

    Source:
        Scott 1992, Multivariate Density Estimation: bandwidth n^(-1/5) standard deviations.
    """
    parts = _parts(numbers, labels)
    spread = max(float(numbers.max() - numbers.min()), 1e-9 * float(numbers.abs().max()), 1e-12)
    widths = [_bandwidth(part, spread) for part in parts]
    of_many = [width for width, part in zip(widths, parts, strict=True) if len(part) >= MANY]
    margin = 3 * max(of_many or widths)
    grid = np.linspace(float(numbers.min()) - margin, float(numbers.max()) + margin, n_grid)
    smoothed = [
        torch.from_numpy(_smooth(part.numpy(), width, grid))
        for part, width in zip(parts, widths, strict=True)
    ]
    return Densities(torch.from_numpy(grid), torch.stack(smoothed))


def _parts(numbers: Float[Tensor, " n_prompts"], labels: Labels) -> list[Float[Tensor, " n_part"]]:
    """Deal numbers to their parts, in the order of the labels."""
    return [numbers[labels == label].double() for label in range(int(labels.max()) + 1)]


def _bandwidth(values: Float[Tensor, " n_part"], spread: float) -> float:
    """Return Scott's bandwidth; a hundredth of all numbers' spread where a part has none."""
    deviation = float(values.std()) if len(values) > 1 else 0.0
    return max(deviation * len(values) ** -0.2, 0.01 * spread)


def _smooth(values: np.ndarray, width: float, grid: np.ndarray) -> np.ndarray:
    """Return the mean of the kernels; scipy has none for numbers that are all the same."""
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    if deviation == 0:
        return norm.pdf(grid, values[0], width)
    return gaussian_kde(values, width / deviation)(grid)


@dataclass(frozen=True, eq=False)
class Ridges:
    """Densities of all parts at every hook point of one site and position.

    Each row has a grid of its own. A curve is as high as its part is of its class. NaN where there
    is no direction.
    """

    grids: Float[Tensor, "n_hook_points n_grid"]
    curves: Float[Tensor, "n_hook_points n_parts n_grid"]
    hook_points: tuple[str, ...]
    position: str
    is_cosine: bool


def ridges(
    projections: Projections,
    hook_points: tuple[str, ...],
    position: str,
    *,
    is_cosine: bool = True,
    labels: Labels | None = None,
) -> Ridges:
    """Smooth the projections at some hook points, in their order, and one position.

    Cosines compare across layers, as lengths do not. Parts are the classes where nothing is said.
    """
    labels = projections.is_harmful if labels is None else labels
    column = projections.positions.index(position)
    values = projections.cosines if is_cosine else projections.values
    is_harmful = projections.is_harmful
    shares = torch.stack(
        [
            (labels == label).sum() / (is_harmful == is_harmful[labels == label][0]).sum()
            for label in range(int(labels.max()) + 1)
        ]
    )
    nothing = torch.full((len(shares), N_GRID), torch.nan, dtype=torch.float64)
    rows = []
    for hook_point in hook_points:
        numbers = values[:, projections.hook_points.index(hook_point), column]
        if bool(numbers.isnan().any()):
            rows.append(Densities(nothing[0], nothing))
        else:
            rows.append(shared_densities(numbers, labels))
    return Ridges(
        torch.stack([row.grid for row in rows]),
        torch.stack([row.curves for row in rows]) * shares[:, None],
        hook_points,
        position,
        is_cosine,
    )


@dataclass(frozen=True, eq=False)
class Plane:
    """Activations seen in two dimensions, in their own units.

    `along` is the projection on the unit direction; `across` the first principal component of what
    is left without it, centred. `across_share` is that component's share of the variance left.
    """

    along: Float[Tensor, " n_prompts"]
    across: Float[Tensor, " n_prompts"]
    across_share: float


def activation_plane(
    values: Float[Tensor, "n_prompts d_model"], unit: Float[Tensor, " d_model"]
) -> Plane:
    """Look at activations along a direction and along the largest spread beside it."""
    values, unit = values.double(), unit.double()
    along = values @ unit
    rest = values - along[:, None] * unit
    rest = rest - rest.mean(dim=0)
    left, sizes, _ = torch.linalg.svd(rest, full_matrices=False)
    variance = float((sizes**2).sum())
    share = float(sizes[0] ** 2) / variance if variance > 0 else 0.0
    return Plane(along, left[:, 0] * sizes[0], share)


def embedding(
    values: Float[Tensor, "n_prompts d_model"], seed: int = 0
) -> Float[Tensor, "n_prompts 2"]:
    """Lay activations out in two dimensions, neighbours beside neighbours.

    Only who is near whom means anything: not distances, not sizes of heaps, not axes.

    Args:
        values: Activations at one place.
        seed: Of the layout; the same one gives the same picture.

    Raises:
        RefusalLensError: umap-learn is not installed.

    Source:
        McInnes et al. 2018, arXiv 1802.03426.
    """
    try:
        from umap import UMAP
    except ImportError as error:
        raise RefusalLensError(
            "The embedding needs umap-learn. Install it: pip install 'refusal-lens[embed]'."
        ) from error
    n_neighbours = min(15, len(values) - 1)
    layout = UMAP(n_neighbors=n_neighbours, random_state=seed, n_jobs=1, init="pca")
    return torch.from_numpy(np.asarray(layout.fit_transform(values.numpy())))


def roc(projections: Projections, hook_point: str, position: str) -> pd.DataFrame:
    """Return what every threshold at a place would catch and raise falsely.

    Returns:
        `threshold`, in the activations' units, the highest first; `hits` and `false_alarms`, the
        shares of harmful and harmless prompts that lie at or above it.

    Example:
        >>> from refusal_lens import validate
        >>> _, projections = validate(activations)
        >>> list(roc(projections, "resid_post:1", "last").iloc[-1][["hits", "false_alarms"]])
        [1.0, 1.0]
    """
    row, column = projections.place(hook_point, position)
    values = projections.values[:, row, column].numpy()
    false_alarms, hits, thresholds = roc_curve(projections.is_harmful.numpy(), values)
    return pd.DataFrame({"threshold": thresholds, "hits": hits, "false_alarms": false_alarms})


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The largest coordinates of a direction, largest first, before and after clipping.

    `raw` and `clipped` are scaled by the raw vector's length, so that squares are shares of it;
    `cumulative` is the share of squared length that the first 1, 2, ... of *all* coordinates hold.
    """

    index: Int[Tensor, " n_top"]
    raw: Float[Tensor, " n_top"]
    clipped: Float[Tensor, " n_top"]
    cumulative: Float[Tensor, " d_model"]


def top_coordinates(direction: Direction, n_top: int = 20) -> Coordinates:
    """Find the coordinates that make up most of a direction, at most `n_top`."""
    vector = direction.vector.double()
    length = vector.norm()
    order = vector.abs().argsort(descending=True)
    index = order[:n_top]
    clipped = clip(vector, direction.clip_quantile)
    return Coordinates(
        index,
        vector[index] / length,
        clipped[index] / length,
        ((vector[order] / length) ** 2).cumsum(dim=0),
    )


def activation_norms(projections: Projections) -> Float[Tensor, "n_hook_points n_positions"]:
    """Return the median length of the activations at every place, in their own units.

    A cosine times it is about the projection. NaN where there is no direction.
    """
    norms = projections.values / projections.cosines
    return torch.nanmedian(norms.where(projections.cosines != 0, torch.nan), dim=0).values


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of all parts in the same bins."""

    edges: Float[Tensor, " n_edges"]
    counts: Int[Tensor, "n_parts n_bins"]


def shared_histogram(
    projections: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    labels: Labels | None = None,
) -> Histogram:
    """Count every part in bins chosen from all projections together, without NaN.

    Bins of each class's own would make distributions look apart that are not. Their width is
    Freedman and Diaconis's, of the narrower class, between 10 and 60 bins. Parts are the classes
    where nothing is said.
    """
    labels = is_harmful if labels is None else labels
    numbers = projections.double().numpy()
    widths = [_bin_width(numbers[is_harmful.numpy() == side]) for side in (True, False)]
    low, high = float(numbers.min()), float(numbers.max())
    wanted = (high - low) / min(widths) if min(widths) > 0 else 1
    n_bins = int(np.clip(np.ceil(wanted), 10, 60))
    margin = (high - low or abs(high) or 1.0) * 1e-9
    edges = np.linspace(low - margin, high + margin, n_bins + 1)
    return Histogram(
        torch.from_numpy(edges),
        torch.stack(
            [torch.from_numpy(np.histogram(part, edges)[0]) for part in _parts(projections, labels)]
        ),
    )


def _bin_width(numbers: np.ndarray) -> float:
    """Return Freedman and Diaconis's bin width (1981): 2 IQR / n^(1/3)."""
    lower, upper = np.percentile(numbers, [25, 75])
    return float(2 * (upper - lower) / len(numbers) ** (1 / 3))
