"""Where a direction works and where it does not: by category, by prompt, from one to another.

Knows the prompts behind the projections. Does not draw.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, clip, normalise
from refusal_lens.directions.methods import DIFFERENCE_OF_MEANS
from refusal_lens.directions.subspaces import fit_categories
from refusal_lens.prompts.contrast import Prompt
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.frames import place_frame
from refusal_lens.validation.scores import auroc

N_MISREAD = 100
"""Misread prompts listed at one place, the farthest on the wrong side first."""


def category_table(projections: Projections, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Score every category of prompts at every place, by held-out projections of these prompts.

    Returns:
        One row a place and category: `n`; `mean_cosine`; `share_called_harmful`; `separation`, the
        difference of mean cosines between the category and all prompts of the other class (harmful
        minus harmless, so that positive is right for both).
    """
    labels = projections.is_harmful
    means = {
        True: projections.cosines[labels].mean(dim=0),
        False: projections.cosines[~labels].mean(dim=0),
    }
    groups: dict[tuple[str, bool], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault((prompt.category, bool(labels[row])), []).append(row)
    places = place_frame(projections.hook_points, projections.positions)
    tables = []
    for (category, is_harmful), rows in groups.items():
        mean = projections.cosines[rows].mean(dim=0)
        apart = mean - means[False] if is_harmful else means[True] - mean
        called = projections.is_called_harmful[rows].double().mean(dim=0)
        tables.append(
            places.assign(
                category=category,
                is_harmful=is_harmful,
                n=len(rows),
                mean_cosine=mean.flatten().numpy(),
                share_called_harmful=called.flatten().numpy(),
                separation=apart.flatten().numpy(),
            )
        )
    # Place by place, in the order of the collection.
    return pd.concat(tables).sort_index(kind="stable").reset_index(drop=True)


def misread_table(projections: Projections, prompts: Sequence[Prompt]) -> pd.DataFrame:
    """List the prompts on the wrong side of the threshold of their own fold, place by place.

    Returns:
        At most `N_MISREAD` rows a place, the worst first: `projection` in the activations' units,
        and `margin`, projection minus threshold (the mean of the folds'): negative for harmful
        prompts that were taken for harmless, positive the other way round.
    """
    wrong = projections.is_called_harmful != projections.is_harmful[:, None, None]
    margins = projections.values - projections.thresholds
    rows = []
    for i, hook_point in enumerate(projections.hook_points):
        for j, position in enumerate(projections.positions):
            if projections.thresholds[i, j].isnan():
                continue
            misread = wrong[:, i, j].nonzero().flatten().tolist()
            misread.sort(key=lambda row, i=i, j=j: -abs(margins[row, i, j].item()))
            for row in misread[:N_MISREAD]:
                rows.append(
                    {
                        "hook_point": hook_point,
                        "position": position,
                        "prompt_id": prompts[row].id,
                        "category": prompts[row].category,
                        "is_harmful": bool(projections.is_harmful[row]),
                        "text": prompts[row].text,
                        "projection": projections.values[row, i, j].item(),
                        "margin": margins[row, i, j].item(),
                    }
                )
    return pd.DataFrame(rows, columns=list(_MISREAD_COLUMNS))


_MISREAD_COLUMNS = (
    *("hook_point", "position", "prompt_id", "category", "is_harmful", "text"),
    *("projection", "margin"),
)


def transfer_table(
    activations: Activations,
    prompts: Sequence[Prompt],
    folds: Int[Tensor, " n_prompts"],
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
    method: str = DIFFERENCE_OF_MEANS,
) -> pd.DataFrame:
    """Fit on one category of harmful prompts and test on another, at one place.

    Both use all harmless prompts, of which the tested ones are held out by folds, as are the
    category's own: the diagonal is as honest as the rest.

    Returns:
        One row a pair: `kind` (category), `fit_on`, `test_on`, the place, `auroc`, `separation`.
        Empty with fewer than two categories.
    """
    values, labels = activations.values[:, 0, 0], activations.is_harmful
    categories = fit_categories(values, labels, prompts).categories
    if len(categories) < 2:
        return pd.DataFrame(columns=list(_TRANSFER_COLUMNS))
    projected = torch.full((len(values), len(categories)), torch.nan, dtype=torch.float64)
    for fold in range(int(folds.max()) + 1):
        is_held_out = folds == fold
        kept = (~is_held_out).nonzero().flatten().tolist()
        fitted = fit_categories(values[kept], labels[kept], [prompts[row] for row in kept], method)
        unit = normalise(clip(fitted.vectors, clip_quantile))
        # A category whose prompts all lie in this fold but one has no direction here.
        columns = [categories.index(name) for name in fitted.categories]
        rows = is_held_out.nonzero().flatten()
        projected[rows[:, None], torch.tensor(columns)] = values[rows].double() @ unit.T
    cosines = projected / values.double().norm(dim=-1, keepdim=True)
    rows = []
    for test_on in categories:
        mine = torch.tensor([prompt.category == test_on for prompt in prompts]) & labels
        for column, fit_on in enumerate(categories):
            scores = _score_pair(projected[:, column], cosines[:, column], mine, ~labels)
            place = {"hook_point": activations.hook_points[0], "position": activations.positions[0]}
            rows.append({"kind": "category", "fit_on": fit_on, "test_on": test_on} | place | scores)
    return pd.DataFrame(rows, columns=list(_TRANSFER_COLUMNS))


_TRANSFER_COLUMNS = (
    *("kind", "fit_on", "test_on", "hook_point", "position", "auroc", "separation"),
)


def _score_pair(
    values: Float[Tensor, " n_prompts"],
    cosines: Float[Tensor, " n_prompts"],
    is_harmful: Bool[Tensor, " n_prompts"],
    is_harmless: Bool[Tensor, " n_prompts"],
) -> dict[str, float]:
    is_tested = (is_harmful | is_harmless) & ~values.isnan()
    apart = cosines[is_harmful & is_tested].mean() - cosines[is_harmless & is_tested].mean()
    return {
        "auroc": auroc(values[is_tested], is_harmful[is_tested]).item(),
        "separation": apart.item(),
    }
