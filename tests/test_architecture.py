"""The data flows one way: a room imports only rooms before it, a module only modules before it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import refusal_lens

PACKAGE = Path(refusal_lens.__file__).parent
GROUND = ["errors", "files", "journal", "progress", "config", "config_files"]
ROOMS = {
    "prompts": "contrast groups parquet files chat_format tokens positions",
    "models": "backends hook_points torch_defaults unembedding layout gguf_files checkpoint parity "
    "known_budgets batching placement hugging_face conversion loading matmul packed fast_forward "
    "decoding captured generation",
    "activations": "pooled moments collection shards store batch_reader shard_reader sides "
    "provenance collector ray_cluster ray_worker ray_driver engines",
    "directions": "methods direction kernel guard subspaces formats files",
    "validation": "thresholds frames units scores shares crossfit many_fits separation behaviour "
    "best_place nulls planning learning_curve stability nested_choice confounds coordinates "
    "categories cosines densities",
    "experiments": "interventions arms answers outcomes judges answer_lengths refusal "
    "first_tokens refusal_states hand_labels forked effects candidates causal_choice resampling "
    "verdicts causal_scores dose_response side_effects attribution token_readout",
    "plots": "style parts text tables histogram_data histogram_traces histogram profile shapes "
    "curves choices breakdown comparison causal behaviour attribution picture_files",
    "runs": "checksums folder tables decision diagnosis figures compare compare_page",
    "report": "evidence tables drawings answer page",
    "explorer": "runs view overview_figures moves place_figures scene drawing layout callbacks "
    "server",
    "stages": "outlook terminal fit study attribute experiment judging export",
    "cli": "base study new directions experiments explore",
}
"""A room imports only rooms above it; inside a room, a module only modules before it."""

ORDER = {
    module: place
    for place, module in enumerate(
        [
            *GROUND,
            *(f"{room}.{name}" for room, names in ROOMS.items() for name in names.split()),
        ]
    )
}


def module_of(path: Path) -> str:
    """`cli/base.py` is `cli.base`; what lies deeper belongs to the folder in its room."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts[:2])


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(PACKAGE.name):
            continue
        parts = node.module.split(".")[1:]
        names = [[*parts, name.name] for name in node.names]
        found |= {".".join(each[: 1 if each[0] in GROUND else 2]) for each in names}
    # `from refusal_lens import plots` reaches the room as a whole: its last module.
    last = {room: f"{room}.{names.split()[-1]}" for room, names in ROOMS.items()}
    return {name if name in ORDER else last[name.split(".")[0]] for name in found}


def test_the_root_holds_the_ground_and_rooms():
    names = {path.stem for path in PACKAGE.iterdir() if not path.name.startswith("_")}
    assert names - {"py"} == {*GROUND, *ROOMS}
    assert not names & {*refusal_lens.__all__} - {"plots"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_its_place(room):
    names = {path.stem for path in (PACKAGE / room).glob("[!_]*")}
    assert names - {"README", "assets", "templates"} == set(ROOMS[room].split())


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("[!_]*.py")), ids=module_of)
def test_every_module_says_where_it_is_tested(path):
    """By a test file of its name in its room's folder, or by a line of its docstring."""
    tests, module = Path(__file__).parent, path.relative_to(PACKAGE)
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    told = re.findall(r"^Tested in tests/(\S+\.py)\.$", docstring, re.MULTILINE)
    named = module.with_name(f"test_{module.name}")
    assert all((tests / name).is_file() for name in told)
    # A line beside a file of the name would be one more thing to keep.
    assert bool(told) != (tests / named).is_file(), f"{module}: tests/{named}, or say where"


LATE = {"config": {"models.loading"}}
"""What a module reaches only once it is asked: settings that are read load no model."""


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("[!_]*.py")), ids=module_of)
def test_modules_import_only_what_stands_before_them(path):
    module = module_of(path)
    known = {module} | LATE.get(module, set())
    later = {name for name in imports_of(path) - known if ORDER[name] >= ORDER[module]}
    assert not later


def code_lines(function: ast.FunctionDef) -> int:
    """Count the lines of a function from `def` on, without its docstring: docs may be long."""
    docstring = function.body[0] if ast.get_docstring(function) else None
    n_doc = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
    return function.end_lineno - function.lineno + 1 - n_doc


def test_functions_stay_short():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node) <= 60, f"{path.name}: {node.name}"


def test_functions_take_at_most_eight_parameters():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                options = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                named = [option for option in options if option.arg not in ("self", "cls")]
                assert len(named) <= 8, f"{path.name}: {node.name}"


ERRANDS = {
    "a fitting method": ("directions", {"directions/methods.py": "METHODS", "config.py": "Method"}),
    "a position": ("activations", {"prompts/positions.py": "normalise_position token_span MEANS"}),
    "a figure": ("plots", {"plots/__init__.py": "__all__", "runs/figures.py": "FIGURES"}),
    "a fast path": ("models", {"models/fast_forward.py": "why_not_fast"}),
    "an intervention": (
        "experiments",
        {"experiments/interventions.py": "ablate", "experiments/arms.py": "INTERVENTIONS"},
    ),
    "a format": ("directions/formats", {"directions/formats/__init__.py": "FORMATS _find_format"}),
    "a model source": (
        "models",
        {
            "models/checkpoint.py": "find_checkpoint",
            "models/hugging_face.py": "read_weights read_tokenizer",
            "models/loading.py": "_describe_origin",
        },
    ),
}
"""What is added most often: the README that says how, the files to touch, and what to find there.
A figure and a format have a module of their own besides."""


@pytest.mark.parametrize("errand", ERRANDS)
def test_an_errand_touches_three_files_that_its_readme_names(errand):
    room, files = ERRANDS[errand]
    readme = (PACKAGE / room / "README.md").read_text(encoding="utf-8")
    assert len(files) + (errand in ("a figure", "a format")) <= 3
    for file, names in files.items():
        assert Path(file).name in readme
        code = (PACKAGE / file).read_text(encoding="utf-8")
        for name in names.split():
            assert re.search(rf"^(?:def |class )?{name}\b", code, re.MULTILINE), name
            assert name in readme or name in ("ablate", "__all__")


JUDGING = [
    *(f"experiments/{name}" for name in ("verdicts", "causal_choice", "refusal_states")),
    *(f"validation/{name}" for name in ("best_place", "stability", "confounds")),
    *("runs/diagnosis", "report/answer", "report/tables", "stages/terminal/scores"),
]


@pytest.mark.parametrize("module", JUDGING)
def test_limits_of_verdicts_stand_in_thresholds(module):
    """What is left is counted (N_), shown (MAX_ROWS) or private to a formula."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    numbers = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, int | float)
    }
    left = {name for name in numbers if not name.startswith(("N_", "_"))}
    assert left <= {"MAX_ROWS", "MIN_OF_CATEGORY", "LAYER_DRAWS"}


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_is_light():
    assert not modules_after("import refusal_lens") & {"torch", "plotly", "pandas", "pydantic"}


def test_settings_are_light():
    assert not modules_after("import refusal_lens.config") & {"torch", "plotly", "pandas"}


def test_command_line_is_light():
    assert not modules_after("import refusal_lens.cli") & {"torch", "plotly", "pandas"}


def test_every_public_name_exists():
    for name in refusal_lens.__all__:
        assert getattr(refusal_lens, name) is not None


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_every_name_that_a_room_offers_exists(path):
    module = ".".join((PACKAGE.name, *path.parent.relative_to(PACKAGE).parts))
    room = importlib.import_module(module)
    for name in getattr(room, "__all__", ()):
        assert hasattr(room, name), name
