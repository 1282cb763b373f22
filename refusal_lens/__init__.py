"""refusal_lens: find, check and look at the refusal direction of a chat model.

Public names are imported when they are first used, so that `import refusal_lens` is quick.
"""

import importlib
from typing import Any

_PUBLIC = {
    "Activations": "activations",
    "Attribution": "attribution",
    "Choice": "selection",
    "Config": "config",
    "ContrastSet": "prompts",
    "ClassMoments": "moments",
    "Direction": "directions",
    "Directions": "directions",
    "Projections": "crossfit",
    "Moments": "moments",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "RefusalLensError": "errors",
    "RefusalLensWarning": "errors",
    "RefusalReport": "refusal",
    "RunFolder": "artifacts",
    "Separation": "validation",
    "Subspace": "subspaces",
    "Tokens": "tokens",
    "WeightKernel": "kernel",
    "attribute": "attribution",
    "choose_best": "selection",
    "collect": "engines",
    "collect_moments": "engines",
    "cosine_project": "directions",
    "fit_directions": "directions",
    "fit_subspace": "subspaces",
    "load_config": "config_files",
    "load_direction": "direction_files",
    "load_directions": "direction_files",
    "load_model": "models",
    "measure_refusal": "refusal",
    "project": "directions",
    "project_tokens": "readout",
    "read_contrast": "prompt_files",
    "read_directions": "interop",
    "read_prompts": "prompt_files",
    "read_unembedding": "readout",
    "save_directions": "direction_files",
    "resolve_hook_points": "hook_points",
    "suggest_kernel": "selection",
    "tokenise": "tokens",
    "validate": "validation",
    "write_directions": "interop",
    "CausalRule": "causal_choice",
    "CausalScores": "causal",
    "ablate": "interventions",
    "add": "interventions",
    "affine_ablate": "interventions",
    "causal_scores": "causal",
    "choose_causal": "causal_choice",
    "clamp": "interventions",
    "residual_writes": "interventions",
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
