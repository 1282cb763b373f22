"""What `import refusal_lens as rl` gives: names with types, and paths as text."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest
import torch
from conftest import save_activations

import refusal_lens as rl
from refusal_lens.activations.pooled import Activations

PUBLIC = [name for name in rl.__all__ if name != "plots"]


def _modules(names: list[str]) -> list:
    return [importlib.import_module(f"refusal_lens.{name}") for name in names]


FOR_USERS = [
    *("activations.engines", "activations.collector", "activations.ray_driver", "runs.folder"),
    *(
        "experiments.judges",
        "plots",
        "plots.picture_files",
        "report",
        "report.page",
        "runs.compare",
    ),
    *("explorer", "explorer.runs", "explorer.server"),
]
"""Modules that a README names functions of, beside the public names."""


def functions_of(holder) -> list:
    """List the public functions of a module or class, and of the classes in it."""
    names = [name for name in vars(holder) if not name.startswith("_") or name == "__init__"]
    found = []
    for each in (inspect.getattr_static(holder, name) for name in names):
        each = getattr(each, "__func__", each)
        if inspect.isfunction(each):
            found.append(each)
        elif inspect.isclass(each) and inspect.ismodule(holder):
            found += functions_of(each)
    home = holder.__name__ if inspect.ismodule(holder) else holder.__module__
    return [each for each in found if each.__module__.startswith(home)]


TAKES_A_PATH = {
    f"{function.__module__}.{function.__qualname__}": function
    for holder in (*_modules(FOR_USERS), *(getattr(rl, name) for name in PUBLIC))
    for function in ([holder] if inspect.isfunction(holder) else functions_of(holder))
}


def path_options(function) -> dict[str, object]:
    options = inspect.signature(inspect.unwrap(function)).parameters.values()
    hints = {option.name: option.annotation for option in options}
    return {name: hint for name, hint in hints.items() if "pathlib" in str(hint)}


def test_functions_that_take_a_path_are_found():
    found = {function.__name__ for function in TAKES_A_PATH.values() if path_options(function)}
    assert {"collect", "load_model", "read_prompts", "read_scores", "save_directions"} <= found
    assert {"open", "load_hook_point", "write_directions"} <= found
    assert {"export", "judge_by_classifier", "build_app", "explore_runs", "record_files"} <= found


@pytest.mark.parametrize("name", TAKES_A_PATH)
def test_whatever_takes_a_path_takes_text(name):
    for option, hint in path_options(TAKES_A_PATH[name]).items():
        assert "str" in re.sub(r"pathlib\S*", "", str(hint)), f"{name}({option})"


WRONG = """
import torch, refusal_lens as rl

model = rl.load_model("data/tiny-refuser", device="cpu")
sides = ["Rob a bank.", "Poison the dog."], ["Paint a bank.", "Wash the dog."]
found = rl.collect(model, *sides, "resid_post:3", "last", show_progress=False)
directions = rl.fit_directions(found)
place = "blocks.3.hook_resid_post", "last"
direction = directions[place]
calls = {
    "There is no backend 'hf'": lambda: rl.load_model("data/tiny-refuser", backend="hf"),
    "collect needs a model, but str": lambda: rl.collect("data/tiny-refuser", *sides),
    "collect has no option batch_size": lambda: rl.collect(model, *sides, batch_size=3),
    "There is no dtype 'int8'. Use float32": lambda: rl.collect(model, *sides, dtype="int8"),
    "There is no sinks 'maybe'": lambda: rl.collect(model, *sides, sinks="maybe"),
    "token_budget needs to be 1": lambda: rl.collect(model, *sides, token_budget=0),
    "There is no engine 'dask'": lambda: rl.collect(model, *sides, engine="dask"),
    "A place is a hook point and": lambda: found["resid_post:3"],
    "A place is a hook point and a": lambda: directions["resid_post:3"],
    "Directions are fitted to": lambda: rl.fit_directions(found.values),
    "A quantile to clip at": lambda: rl.fit_directions(found, clip_quantile=7)[place].unit,
    "validate needs Activations": lambda: rl.validate(directions),
    "Held-out scores need 2 folds": lambda: rl.validate(found, n_folds=1),
    "The direction has 5 components": lambda: rl.project(found[place], torch.ones(5)),
    "Interventions need a list": lambda: rl.ablate("resid_post:3", direction.unit),
    "Interventions need a list of": lambda: rl.ablate(["resid_post:3"], direction.unit),
    "An intervention needs a unit": lambda: rl.ablate([place[0]], direction),
    "Refusal is measured on a": lambda: rl.measure_refusal(model, sides),
}
for told, call in calls.items():
    try:
        call()
    except rl.RefusalLensError as error:
        assert str(error).startswith(told), error
    else:
        raise AssertionError(told)
"""


def test_wrong_calls_are_told_in_words():
    # In a process of its own: in this one the test tools look at types before we do.
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WRONG], capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr


def test_paths_as_text_work(tmp_path):
    values = torch.randn(8, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    place = ("blocks.0.hook_resid_post", "last")
    activations = Activations(values, torch.arange(8) < 4, (place[0],), (place[1],))
    save_activations(tmp_path / "store", activations)
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
