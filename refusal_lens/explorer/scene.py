"""The numbers of a view: what stands at its place, what its threshold does, which prompts it lists.

Knows runs and views. Draws nothing, and knows no page.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from refusal_lens.explorer.place_figures import Marks
from refusal_lens.explorer.runs import ExploredRun, Projected
from refusal_lens.explorer.view import View
from refusal_lens.models.hook_points import site_of
from refusal_lens.plots.parts import Parts
from refusal_lens.validation.densities import Ridges, ridges


@dataclass(frozen=True, eq=False)
class Scene:
    """A settled view over its run. Every number is of held-out prompts."""

    run: ExploredRun
    view: View

    @cached_property
    def projected(self) -> Projected:
        """The projections of the view's method."""
        return self.run.projected(self.view.method)

    @cached_property
    def numbers(self) -> Float[Tensor, " n_prompts"]:
        """Every prompt at the place, on the view's scale."""
        return self.projected.numbers(
            self.view.hook_point, self.view.position, is_cosine=self.view.is_cosine
        )

    @cached_property
    def other_numbers(self) -> Float[Tensor, " n_prompts"]:
        """Every prompt at the place compared with, on the view's scale."""
        return self.projected.numbers(
            self.view.other_hook_point, self.view.other_position, is_cosine=self.view.is_cosine
        )

    @cached_property
    def ridges(self) -> Ridges:
        """All parts at every layer of the place's site."""
        return ridges(
            self.projected.projections,
            self.site_hook_points,
            self.view.position,
            is_cosine=self.view.is_cosine,
            labels=self.parts.labels,
        )

    @property
    def parts(self) -> Parts:
        """What figures tell prompts apart by."""
        return self.run.splits[self.view.split]

    @cached_property
    def site_hook_points(self) -> tuple[str, ...]:
        """The hook points of the place's site, layers ascending."""
        return self.run.hook_points_of(site_of(self.view.hook_point))

    @cached_property
    def fitted_threshold(self) -> float:
        """The threshold before it is moved."""
        return self.projected.threshold(
            self.view.hook_point, self.view.position, is_cosine=self.view.is_cosine
        )

    @property
    def threshold(self) -> float:
        """The threshold shown."""
        moved = self.view.threshold
        return self.fitted_threshold if moved is None else moved

    @cached_property
    def is_flipped(self) -> Bool[Tensor, " n_prompts"]:
        """The prompts that the moved threshold calls otherwise than the fitted one."""
        return (self.numbers > self.threshold) != (self.numbers > self.fitted_threshold)

    @cached_property
    def is_misread(self) -> Bool[Tensor, " n_prompts"]:
        """The prompts on the wrong side of the threshold shown."""
        is_wrong = (self.numbers > self.threshold) != self.run.is_harmful
        return is_wrong & ~self.numbers.isnan()

    @cached_property
    def is_matching(self) -> Bool[Tensor, " n_prompts"]:
        """The prompts that pass the filter: of the category, with the text in any case.

        The text may stand in the answer too.
        """
        wanted = self.view.text.casefold()
        texts = [prompt.text for prompt in self.run.prompts]
        if self.run.answers:
            texts = [f"{p}\n{a.answer}" for p, a in zip(texts, self.run.answers, strict=True)]
        return torch.tensor(
            [
                self.view.category in ("", prompt.category) and wanted in text.casefold()
                for prompt, text in zip(self.run.prompts, texts, strict=True)
            ]
        )

    @cached_property
    def marks(self) -> Marks:
        """What figures say of the prompts besides where they are."""
        return Marks(self.run.is_harmful, self.parts, self.is_matching, self.view.selected)

    def accuracy(self, threshold: float) -> float:
        """Return the share of prompts on the right side of a threshold; NaN without direction."""
        if bool(self.numbers.isnan().any()):
            return float("nan")
        return ((self.numbers > threshold) == self.run.is_harmful).double().mean().item()

    def correlation(self) -> float:
        """Return Pearson's correlation of the two places compared; NaN where one has no spread."""
        with np.errstate(invalid="ignore", divide="ignore"):
            pair = np.stack([self.numbers.numpy(), self.other_numbers.numpy()])
            return float(np.corrcoef(pair)[0, 1])

    @cached_property
    def listed_rows(self) -> list[int]:
        """The rows of the prompts listed, those nearest the threshold first."""
        is_on = self.is_matching.clone()
        if self.view.listed == "selected":
            chosen = torch.zeros_like(is_on)
            chosen[list(self.view.selected)] = True
            is_on &= chosen
        elif self.view.listed != "all":
            is_on &= self.is_flipped if self.view.listed == "flipped" else self.is_misread
        rows = is_on.nonzero().flatten()
        away = (self.numbers[rows] - self.threshold).abs().nan_to_num()
        return rows[away.argsort(stable=True)].tolist()

    def table(self) -> pd.DataFrame:
        """Return the prompts listed, one row each, as they are exported."""
        rows = self.listed_rows
        prompts = [self.run.prompts[row] for row in rows]
        return pd.DataFrame(
            {
                "prompt_id": [prompt.id for prompt in prompts],
                "category": [prompt.category for prompt in prompts],
                "is_harmful": self.run.is_harmful[rows].tolist(),
                "text": [prompt.text for prompt in prompts],
                "value": self.numbers[rows].tolist(),
                "threshold": self.threshold,
                "is_called_harmful": (self.numbers > self.threshold)[rows].tolist(),
                "is_flipped": self.is_flipped[rows].tolist(),
                "other_value": self.other_numbers[rows].tolist(),
                "scale": self.view.scale,
                "run": self.run.name,
                "method": self.view.method,
                "hook_point": self.view.hook_point,
                "position": self.view.position,
                "other_hook_point": self.view.other_hook_point,
                "other_position": self.view.other_position,
            }
        )
