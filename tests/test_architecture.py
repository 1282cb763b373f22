"""The data flows one way: a module imports only modules that stand before it."""

import ast
import subprocess
import sys
from pathlib import Path

import refusal_lens

PACKAGE = Path(refusal_lens.__file__).parent
FLOW = """
errors files progress config config_files prompts prompt_files conversion models tokens hook_points
positions survey batching products fast_forward moments activations shards store reader
shard_reader collection_record collector cluster workers distributed engines methods directions kernel
thresholds frames crossfit scores refits validation selection nulls learning stability nested interventions
generation judges verdicts refusal effects candidates causal_choice causal dose subspaces confounds
coordinates categories comparison direction_files attribution readout diagnosis artifacts
interop run_tables distributions plots figures export report terminal compare_runs
comparison_page fitting attributing exchange study experiments explorer cli
"""
ORDER = FLOW.split()


def files_of(module: str) -> list[Path]:
    """A module is one file, or a folder of files."""
    folder = PACKAGE / module
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{module}.py"]


def imports_of(module: str) -> set[str]:
    sources = [path.read_text(encoding="utf-8") for path in files_of(module)]
    found = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and node.module == "refusal_lens":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("refusal_lens."):
            found.add(node.module.split(".")[1])
    return found - {module}


def test_every_module_has_its_place():
    names = {path.stem for path in PACKAGE.glob("[!_]*") if path.suffix in ("", ".py")}
    assert names == set(ORDER)


def test_modules_import_only_what_stands_before_them():
    for place, module in enumerate(ORDER):
        assert imports_of(module) <= set(ORDER[:place]), module


def test_functions_stay_short():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_is_light():
    assert not modules_after("import refusal_lens") & {"torch", "plotly", "pandas", "pydantic"}


def test_command_line_is_light():
    assert not modules_after("import refusal_lens.cli") & {"torch", "plotly", "pandas"}


def test_every_public_name_exists():
    for name in refusal_lens.__all__:
        assert getattr(refusal_lens, name) is not None
