"""What Hugging Face calls a model's type, which some files name.

Knows one table of transformers.

Tested in tests/directions/test_formats.py.
"""

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from refusal_lens.directions.direction import Direction


def model_type_of(direction: Direction) -> str:
    """Return the model type (`qwen2`) of what a direction was fitted to; `unknown` if untold."""
    model = direction.provenance.get("model", {})
    imported = direction.provenance.get("imported", {})
    by_class = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
    return by_class.get(model.get("architecture"), imported.get("model_type") or "unknown")
