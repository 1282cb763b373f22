"""Directions for experiments: fitted on some of the prompts, so that others are left to test on.

Knows how prompts are dealt to fitting, selection and test, and what an experiment needs beside a
direction. Does not run the model.

Tested in tests/experiments/test_dose_response.py.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import CLIP_QUANTILE, Directions, fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.arms import Arm
from refusal_lens.models.hook_points import is_residual, site_of
from refusal_lens.prompts.contrast import ContrastSet
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.units import pair_units, topic_units

FIT, SELECT, TEST = 0, 1, 2
"""Parts of the prompts: directions are fitted on the first, chosen on the second, and what the
chosen one does is measured on the third."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A direction fitted on the first part of the prompts, with what experiments need beside it.

    `harmful_mean` and `mean` are the class means there, `mean` the harmless one.
    """

    hook_point: str
    position: str
    unit: Float[Tensor, " d_model"]
    vector: Float[Tensor, " d_model"]
    mean: Float[Tensor, " d_model"]
    harmful_mean: Float[Tensor, " d_model"]

    def arm(self, intervention: str, strength: float = 1.0) -> Arm:
        """Return the intervention with this direction."""
        return Arm(intervention, self.hook_point, self.unit, self.vector, self.mean, strength)

    def random(self, seed: int) -> "Candidate":
        """Return the same place with a random direction, as long as the difference."""
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(self.vector.shape, generator=generator)
        unit = random / random.norm()
        return replace(self, unit=unit, vector=unit * self.vector.norm())


def deal_parts(activations: Activations, seed: int = 0) -> Int[Tensor, " n_prompts"]:
    """Deal the prompts to fitting, selection and test: a third of each class to each.

    Topics stay whole where each class has three or more, and twins always: what is measured on the
    third part then holds for topics that neither fit nor choice has seen. The same seed gives the
    same parts.

    Raises:
        RefusalLensError: A class has fewer than two prompts.
    """
    is_harmful, groups = activations.is_harmful, activations.groups
    units = topic_units(is_harmful, groups)
    if units is None or min(units.n_per_class) < 3:
        units = pair_units(is_harmful, groups)
    return assign_folds(is_harmful, 3, seed, units)


def take_prompts(prompts: ContrastSet, parts: Int[Tensor, " n_prompts"], part: int) -> list[int]:
    """Return the indices, within both classes together, of the prompts of one part."""
    return [i for i in range(len(prompts.prompts)) if int(parts[i]) == part]


def fit_candidates(
    activations: Activations,
    parts: Int[Tensor, " n_prompts"],
    *,
    clip_quantile: float | None = CLIP_QUANTILE,
) -> list[Candidate]:
    """Fit a direction at every place on the fitting part alone."""
    fitting = activations.take(parts == FIT)
    return make_candidates(fitting, fit_directions(fitting, clip_quantile=clip_quantile))


def make_candidates(activations: Activations, directions: Directions) -> list[Candidate]:
    """Put class means beside each direction; refuse one that is not of the residual stream."""
    outside = [name for name in directions.hook_points if not is_residual(name)]
    if outside:
        rest = dict.fromkeys(map(site_of, filter(is_residual, directions.hook_points)))
        raise RefusalLensError(
            "Interventions act on the residual stream (resid_pre, resid_mid, resid_post, attn_out, "
            f"mlp_out), and {outside[0]} is not in it. "
            + (
                f"Take those that are: directions.hook_points=[{', '.join(rest)}]."
                if rest
                else "Run them on a collection at one of these sites."
            )
        )
    candidates = []
    for direction in directions:
        values = activations.at(direction.hook_point, direction.position).double()
        candidates.append(
            Candidate(
                direction.hook_point,
                direction.position,
                direction.unit,
                direction.vector.float(),
                values[~activations.is_harmful].mean(dim=0).float(),
                values[activations.is_harmful].mean(dim=0).float(),
            )
        )
    return candidates
