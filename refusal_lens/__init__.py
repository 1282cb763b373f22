"""refusal_lens: find, check and look at the refusal direction of a chat model.

Public names are imported when they are first used, so that `import refusal_lens` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

# What editors and type checkers see; a test keeps both lists one.
if TYPE_CHECKING:
    from refusal_lens import plots as plots
    from refusal_lens.activations.collection import Collection as Collection
    from refusal_lens.activations.engines import collect as collect
    from refusal_lens.activations.engines import collect_moments as collect_moments
    from refusal_lens.activations.moments import ClassMoments as ClassMoments
    from refusal_lens.activations.moments import Moments as Moments
    from refusal_lens.activations.pooled import Activations as Activations
    from refusal_lens.activations.store import load_activations as load_activations
    from refusal_lens.activations.store import load_hook_point as load_hook_point
    from refusal_lens.config import Config as Config
    from refusal_lens.config import EngineConfig as EngineConfig
    from refusal_lens.config import ModelConfig as ModelConfig
    from refusal_lens.config import RefusalConfig as RefusalConfig
    from refusal_lens.config_files import load_config as load_config
    from refusal_lens.directions.direction import Direction as Direction
    from refusal_lens.directions.direction import Directions as Directions
    from refusal_lens.directions.direction import cosine_project as cosine_project
    from refusal_lens.directions.direction import fit_directions as fit_directions
    from refusal_lens.directions.direction import project as project
    from refusal_lens.directions.files import load_direction as load_direction
    from refusal_lens.directions.files import load_directions as load_directions
    from refusal_lens.directions.formats import from_steering_vector as from_steering_vector
    from refusal_lens.directions.formats import read_directions as read_directions
    from refusal_lens.directions.formats import read_scores as read_scores
    from refusal_lens.directions.formats import save_directions as save_directions
    from refusal_lens.directions.formats import to_steering_vector as to_steering_vector
    from refusal_lens.directions.formats import write_directions as write_directions
    from refusal_lens.directions.kernel import WeightKernel as WeightKernel
    from refusal_lens.directions.subspaces import Subspace as Subspace
    from refusal_lens.directions.subspaces import fit_subspace as fit_subspace
    from refusal_lens.errors import RefusalLensError as RefusalLensError
    from refusal_lens.errors import RefusalLensWarning as RefusalLensWarning
    from refusal_lens.experiments.attribution import Attribution as Attribution
    from refusal_lens.experiments.attribution import attribute as attribute
    from refusal_lens.experiments.causal_choice import CausalRule as CausalRule
    from refusal_lens.experiments.causal_choice import choose_causal as choose_causal
    from refusal_lens.experiments.causal_scores import CausalPlan as CausalPlan
    from refusal_lens.experiments.causal_scores import CausalScores as CausalScores
    from refusal_lens.experiments.causal_scores import causal_scores as causal_scores
    from refusal_lens.experiments.interventions import ablate as ablate
    from refusal_lens.experiments.interventions import add as add
    from refusal_lens.experiments.interventions import affine_ablate as affine_ablate
    from refusal_lens.experiments.interventions import clamp as clamp
    from refusal_lens.experiments.interventions import prompt_mask as prompt_mask
    from refusal_lens.experiments.interventions import residual_writes as residual_writes
    from refusal_lens.experiments.refusal import RefusalReport as RefusalReport
    from refusal_lens.experiments.refusal import measure_refusal as measure_refusal
    from refusal_lens.experiments.token_readout import project_prompts as project_prompts
    from refusal_lens.experiments.token_readout import project_tokens as project_tokens
    from refusal_lens.experiments.token_readout import read_unembedding as read_unembedding
    from refusal_lens.models.hook_points import resolve_hook_points as resolve_hook_points
    from refusal_lens.models.loading import load_model as load_model
    from refusal_lens.prompts.chat_format import ChatFormat as ChatFormat
    from refusal_lens.prompts.chat_format import set_chat_format as set_chat_format
    from refusal_lens.prompts.contrast import ContrastSet as ContrastSet
    from refusal_lens.prompts.contrast import Prompt as Prompt
    from refusal_lens.prompts.contrast import PromptSet as PromptSet
    from refusal_lens.prompts.files import read_contrast as read_contrast
    from refusal_lens.prompts.files import read_prompts as read_prompts
    from refusal_lens.prompts.groups import Groups as Groups
    from refusal_lens.prompts.groups import find_groups as find_groups
    from refusal_lens.prompts.tokens import Tokens as Tokens
    from refusal_lens.prompts.tokens import tokenise as tokenise
    from refusal_lens.runs.figures import draw_figure as draw_figure
    from refusal_lens.runs.folder import RunFolder as RunFolder
    from refusal_lens.validation.best_place import Choice as Choice
    from refusal_lens.validation.best_place import choose_best as choose_best
    from refusal_lens.validation.best_place import suggest_kernel as suggest_kernel
    from refusal_lens.validation.crossfit import Projections as Projections
    from refusal_lens.validation.separation import Separation as Separation
    from refusal_lens.validation.separation import validate as validate

_PUBLIC = {
    "Activations": "activations.pooled",
    "Attribution": "experiments.attribution",
    "CausalPlan": "experiments.causal_scores",
    "CausalRule": "experiments.causal_choice",
    "CausalScores": "experiments.causal_scores",
    "ChatFormat": "prompts.chat_format",
    "Choice": "validation.best_place",
    "ClassMoments": "activations.moments",
    "Collection": "activations.collection",
    "Config": "config",
    "ContrastSet": "prompts.contrast",
    "Direction": "directions.direction",
    "Directions": "directions.direction",
    "EngineConfig": "config",
    "Groups": "prompts.groups",
    "ModelConfig": "config",
    "Moments": "activations.moments",
    "Projections": "validation.crossfit",
    "Prompt": "prompts.contrast",
    "PromptSet": "prompts.contrast",
    "RefusalConfig": "config",
    "RefusalLensError": "errors",
    "RefusalLensWarning": "errors",
    "RefusalReport": "experiments.refusal",
    "RunFolder": "runs.folder",
    "Separation": "validation.separation",
    "Subspace": "directions.subspaces",
    "Tokens": "prompts.tokens",
    "WeightKernel": "directions.kernel",
    "ablate": "experiments.interventions",
    "add": "experiments.interventions",
    "affine_ablate": "experiments.interventions",
    "attribute": "experiments.attribution",
    "causal_scores": "experiments.causal_scores",
    "choose_best": "validation.best_place",
    "choose_causal": "experiments.causal_choice",
    "clamp": "experiments.interventions",
    "collect": "activations.engines",
    "collect_moments": "activations.engines",
    "cosine_project": "directions.direction",
    "draw_figure": "runs.figures",
    "find_groups": "prompts.groups",
    "fit_directions": "directions.direction",
    "fit_subspace": "directions.subspaces",
    "from_steering_vector": "directions.formats",
    "load_activations": "activations.store",
    "load_config": "config_files",
    "load_direction": "directions.files",
    "load_directions": "directions.files",
    "load_hook_point": "activations.store",
    "load_model": "models.loading",
    "measure_refusal": "experiments.refusal",
    "project": "directions.direction",
    "project_prompts": "experiments.token_readout",
    "project_tokens": "experiments.token_readout",
    "prompt_mask": "experiments.interventions",
    "read_contrast": "prompts.files",
    "read_directions": "directions.formats",
    "read_prompts": "prompts.files",
    "read_scores": "directions.formats",
    "read_unembedding": "experiments.token_readout",
    "residual_writes": "experiments.interventions",
    "resolve_hook_points": "models.hook_points",
    "save_directions": "directions.formats",
    "set_chat_format": "prompts.chat_format",
    "suggest_kernel": "validation.best_place",
    "to_steering_vector": "directions.formats",
    "tokenise": "prompts.tokens",
    "validate": "validation.separation",
    "write_directions": "directions.formats",
}

__version__ = "0.1.0"
__all__ = [*_PUBLIC, "plots"]  # pyright: ignore[reportUnsupportedDunderAll]


def _import(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "plots":
        return importlib.import_module("refusal_lens.plots")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refusal_lens.{_PUBLIC[name]}"), name)


if not TYPE_CHECKING:
    # Hidden from type checkers, to which every misspelt name would be right.
    __getattr__ = _import


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
