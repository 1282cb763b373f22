"""What `import refusal_lens as rl` gives: names with types, and paths as text."""

import ast
import inspect
import typing
from pathlib import Path

import pytest
import torch

import refusal_lens as rl
from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.store import save_activations


def test_type_checkers_see_the_public_names_and_no_others():
    tree = ast.parse(Path(rl.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imported = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            # `as` with the same name is what makes an import public to a type checker.
            assert name.asname == name.name
            imported[name.name] = (node.module or "").removeprefix("refusal_lens").lstrip(".")
    assert imported.pop("plots") == ""
    assert imported == rl._PUBLIC


TAKES_A_PATH = [
    *(getattr(rl, name) for name in rl._PUBLIC if inspect.isfunction(getattr(rl, name))),
    *(rl.RunFolder.__init__, rl.RunFolder.open),
]


def path_options(function) -> dict[str, object]:
    hints = typing.get_type_hints(inspect.unwrap(function))
    hints.pop("return", None)
    return {name: hint for name, hint in hints.items() if "pathlib" in str(hint)}


def test_functions_that_take_a_path_are_found():
    found = {function.__name__ for function in TAKES_A_PATH if path_options(function)}
    assert {"collect", "load_model", "read_prompts", "read_scores", "save_directions"} <= found
    assert {"open", "load_hook_point", "write_directions"} <= found


@pytest.mark.parametrize("function", TAKES_A_PATH, ids=lambda each: each.__qualname__)
def test_whatever_takes_a_path_takes_text(function):
    for name, hint in path_options(function).items():
        assert str in typing.get_args(hint), f"{function.__qualname__}({name})"


def test_paths_as_text_work(tmp_path):
    values = torch.randn(8, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    place = ("blocks.0.hook_resid_post", "last")
    activations = Activations(values, torch.arange(8) < 4, (place[0],), (place[1],))
    save_activations(str(tmp_path / "store"), activations)
    folder = str(tmp_path / "store")
    assert torch.equal(rl.load_hook_point(folder, place[0]), values[:, 0])
    assert torch.equal(rl.load_activations(folder).values, values)
    directions = rl.fit_directions(activations)
    rl.save_directions(str(tmp_path / "a.safetensors"), directions)
    rl.write_directions(directions[place], str(tmp_path / "a.npz"))
    for name in ("a.safetensors", "a.npz"):
        assert torch.equal(rl.read_directions(str(tmp_path / name)).vectors, directions.vectors)
        assert torch.equal(rl.load_directions(str(tmp_path / name)).vectors, directions.vectors)
    (tmp_path / "scores.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(rl.RefusalLensError, match="scores.json"):
        rl.read_scores(str(tmp_path / "scores.json"))
    assert rl.RunFolder(str(tmp_path)).path == tmp_path
    with pytest.raises(rl.RefusalLensError, match="is not a run folder"):
        rl.RunFolder.open(str(tmp_path))
