"""refusal_lens: find, check and look at the refusal direction of a chat model.

Public names are imported when they are first used, so that `import refusal_lens` is quick.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Activations": "activations.pooled",
    "Attribution": "experiments.attribution",
    "Choice": "validation.best_place",
    "Config": "config",
    "ContrastSet": "prompts.contrast",
    "ClassMoments": "activations.moments",
    "Direction": "directions.direction",
    "Directions": "directions.direction",
    "Projections": "validation.crossfit",
    "Moments": "activations.moments",
    "Prompt": "prompts.contrast",
    "PromptSet": "prompts.contrast",
    "RefusalLensError": "errors",
    "RefusalLensWarning": "errors",
    "RefusalReport": "experiments.refusal",
    "RunFolder": "runs.folder",
    "Separation": "validation.separation",
    "Subspace": "directions.subspaces",
    "Tokens": "prompts.tokens",
    "WeightKernel": "directions.kernel",
    "attribute": "experiments.attribution",
    "choose_best": "validation.best_place",
    "collect": "activations.engines",
    "collect_moments": "activations.engines",
    "cosine_project": "directions.direction",
    "fit_directions": "directions.direction",
    "fit_subspace": "directions.subspaces",
    "load_config": "config_files",
    "load_direction": "directions.files",
    "load_directions": "directions.files",
    "load_model": "models.loading",
    "measure_refusal": "experiments.refusal",
    "project": "directions.direction",
    "project_tokens": "experiments.token_readout",
    "read_contrast": "prompts.files",
    "read_directions": "directions.formats",
    "read_prompts": "prompts.files",
    "read_unembedding": "experiments.token_readout",
    "save_directions": "directions.formats",
    "resolve_hook_points": "models.hook_points",
    "suggest_kernel": "validation.best_place",
    "tokenise": "prompts.tokens",
    "validate": "validation.separation",
    "write_directions": "directions.formats",
    "CausalRule": "experiments.causal_choice",
    "CausalScores": "experiments.causal_scores",
    "ablate": "experiments.interventions",
    "add": "experiments.interventions",
    "affine_ablate": "experiments.interventions",
    "causal_scores": "experiments.causal_scores",
    "choose_causal": "experiments.causal_choice",
    "clamp": "experiments.interventions",
    "residual_writes": "experiments.interventions",
}

__version__ = "0.1.0"
__all__ = [*_PUBLIC, "plots"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "plots":
        return importlib.import_module("refusal_lens.plots")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"refusal_lens.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
