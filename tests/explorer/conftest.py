"""Two runs, opened by the explorer, and what it shows of the first."""

import pytest
from explored_run import HOSTILE, make_run

from refusal_lens.explorer.runs import ExploredRun, explore_runs
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import View, nearest_view
from refusal_lens.runs.folder import RunFolder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "one"
    return make_run(path, sites=("resid_post", "mlp_out"), texts=HOSTILE, is_answered=True)


@pytest.fixture(scope="session")
def runs(folder, tmp_path_factory) -> dict[str, ExploredRun]:
    other = make_run(tmp_path_factory.mktemp("runs") / "two", n=6, n_layers=2, positions=("-2",))
    return explore_runs([folder.path, other.path])


@pytest.fixture
def view(runs) -> View:
    return nearest_view(View(), runs)


@pytest.fixture
def scene(runs, view) -> Scene:
    return Scene(runs[view.run], view)
