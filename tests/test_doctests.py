"""The examples in the docstrings run."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import refusal_lens

PACKAGE = Path(refusal_lens.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("[!_]*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, model, prompts, activations, tmp_path):
    module = importlib.import_module(f"refusal_lens.{name}")
    examples = {
        **vars(module),
        "torch": torch,
        "tiny_model": model,
        "prompts": prompts,
        "activations": activations,
        "tmp_path": tmp_path,
    }
    outcome = doctest.testmod(module, extraglobs=examples)
    assert outcome.failed == 0
