"""The explorer without a browser: runs, views, moves, numbers, figures, server."""

import hashlib
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from explored_run import HOSTILE, make_activations, make_run
from scipy.stats import gaussian_kde

from refusal_lens import plots
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.explorer import build_app, open_server, overview_figures, place_figures
from refusal_lens.explorer.moves import move
from refusal_lens.explorer.place_figures import Marks
from refusal_lens.explorer.runs import N_RESAMPLES, ExploredRun, explore_runs
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import View, settle
from refusal_lens.runs.compare import open_runs
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.separation import validate


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> RunFolder:
    path = tmp_path_factory.mktemp("runs") / "one"
    return make_run(path, sites=("resid_post", "mlp_out"), texts=HOSTILE)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> dict[str, ExploredRun]:
    other = make_run(tmp_path_factory.mktemp("runs") / "two", n=6, n_layers=2, positions=("-2",))
    return explore_runs([folder.path, other.path])


@pytest.fixture
def view(runs) -> View:
    return settle(View(), runs)


@pytest.fixture
def scene(runs, view) -> Scene:
    return Scene(runs[view.run], view)


# --- runs --------------------------------------------------------------------------------------


def test_a_run_that_is_only_collected_is_fitted_to_what_validate_gives(tmp_path):
    make_run(tmp_path / "run", is_fitted=False)
    projected = explore_runs([tmp_path / "run"])["run"].projected("difference_of_means")
    whole = make_activations(40, ("resid_post",), 4, ("last", "mean"), 16)
    separation, projections = validate(
        whole, clip_quantile=0.995, n_repeats=1, n_resamples=N_RESAMPLES
    )
    torch.testing.assert_close(projected.projections.values, projections.values)
    torch.testing.assert_close(projected.projections.thresholds, projections.thresholds)
    pd.testing.assert_frame_equal(projected.scores, separation.to_frame())


def test_a_fitted_run_is_read_and_not_fitted_again(folder, monkeypatch):
    monkeypatch.setattr("refusal_lens.explorer.runs.validate", None)
    (run,) = explore_runs([folder.path]).values()
    assert run.projected(run.own_method).projections.is_held_out
    assert run.sites == ("resid_post", "mlp_out")
    assert run.best[0] in ("blocks.3.hook_resid_post", "blocks.3.hook_mlp_out")


def test_nothing_is_written_even_when_a_method_is_fitted(tmp_path):
    run_folder = make_run(tmp_path / "run", is_fitted=False)
    for path in [run_folder.path, *run_folder.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = fingerprint(run_folder.path)
    client = build_app([run_folder.path]).server.test_client()
    assert client.get("/").status_code == 200
    assert fingerprint(run_folder.path) == before


def test_projections_of_other_prompts_are_refused(tmp_path):
    run_folder = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other", n=5)
    (run_folder.path / "prompts.json").write_bytes((other.path / "prompts.json").read_bytes())
    run_folder.record_files([run_folder.path / "prompts.json"])
    with pytest.raises(RefusalLensError, match=r"projections of other prompts .* \(80 and 10, or"):
        explore_runs([run_folder.path])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RefusalLensError, match="is not a run folder"):
        build_app([tmp_path])


def test_runs_have_the_names_that_they_are_compared_under(folder, tmp_path):
    twins = [make_run(tmp_path / name / "one", n=4, n_layers=2).path for name in ("a", "b")]
    opened = explore_runs([folder.path, *twins])
    assert list(opened) == [run.name for run in open_runs([folder.path, *twins])]
    assert list(opened)[1:] == ["a/one", "b/one"]
    with pytest.raises(RefusalLensError, match="A run was given twice"):
        explore_runs([folder.path, folder.path / "."])


# --- views and addresses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"threshold": -0.25, "scale": "cosine", "listed": "flipped"},
        {"selected": (0, 1, 2, 7, 9), "listed": "selected"},
        {"text": "a&b=c%20?#é‮</script>", "category": "law"},
        {"hook_point": "blocks.1.hook_mlp_out", "position": "mean", "score": "accuracy"},
    ],
)
def test_an_address_holds_the_view(view, runs, changes):
    sent = replace(view, **changes)
    assert settle(View.from_search(sent.to_search()), runs) == sent


@pytest.mark.parametrize(
    "search",
    [
        "",
        "?",
        None,
        "?run=none&hook_point=x&position=9&threshold=high&selected=9999999,a-b",
        "?selected=5-1&scale=log&listed=some&method=magic&category=?",
        "?run",
        "?%zz=%",
    ],
)
def test_an_address_may_say_anything(view, runs, search):
    assert settle(View.from_search(search), runs) == view


def test_a_layer_that_is_not_there_becomes_the_nearest(runs):
    wanted = View(hook_point="blocks.17.hook_mlp_out")
    assert settle(wanted, runs).hook_point == "blocks.3.hook_mlp_out"


# --- moves -------------------------------------------------------------------------------------


def moved(view, runs, trigger, value, **others):
    return move(view, [trigger], {trigger: value, **others}, runs)


def test_slider_and_site_go_where_they_say(view, runs):
    down = moved(view, runs, "layer.value", 1)
    assert down.hook_point == view.hook_point.replace("blocks.3", "blocks.1")
    assert moved(down, runs, "site.value", "mlp_out").hook_point == "blocks.1.hook_mlp_out"


def test_a_cell_is_gone_to(view, runs):
    click = {"points": [{"x": "2", "y": "mlp_out, mean"}]}
    there = moved(view, runs, "heatmap.clickData", click)
    assert (there.hook_point, there.position) == ("blocks.2.hook_mlp_out", "mean")
    assert moved(view, runs, "heatmap.clickData", {"points": [{"x": "2", "y": "?"}]}) == view


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"shapes[0].x0": 1.5, "shapes[0].x1": 1.5, "shapes[0].y0": 0.1}, 1.5),
        ({"shapes[0].x0": 1.0, "shapes[0].x1": 2.0}, 1.5),
        ({"xaxis.range[0]": 1, "xaxis.range[1]": 2}, None),
        ({"autosize": True}, None),
        (None, None),
    ],
)
def test_only_the_line_moves_the_threshold(view, runs, change, expected):
    there = moved(view, runs, "histogram.relayoutData", change)
    assert there.threshold == expected
    assert there.listed == ("all" if expected is None else "flipped")


def test_a_threshold_is_bound_to_its_place_and_scale(view, runs):
    dragged = moved(view, runs, "threshold.value", 0.5)
    assert dragged.threshold == 0.5
    assert moved(dragged, runs, "text.value", "a").threshold == 0.5
    assert moved(dragged, runs, "scale.value", "cosine").threshold is None
    assert moved(dragged, runs, "position.value", "mean").threshold is None
    assert moved(dragged, runs, "reset.n_clicks", 1) == view


def test_selected_marks_are_rows_and_stay_selected_elsewhere(view, runs):
    box = {"points": [{"customdata": 7}, {"customdata": 3}, {"x": 1.0}]}
    picked = moved(view, runs, "histogram.selectedData", box)
    assert (picked.selected, picked.listed) == ((3, 7), "selected")
    assert moved(picked, runs, "layer.value", 0).selected == (3, 7)
    assert moved(picked, runs, "histogram.selectedData", {"points": []}) == picked
    assert moved(picked, runs, "scatter.selectedData", None) == picked
    assert moved(picked, runs, "clear.n_clicks", 1) == view
    assert moved(picked, runs, "run.value", list(runs)[1]).selected == ()


def test_a_control_changed_meanwhile_is_not_set_back(view, runs):
    both = moved(
        view, runs, "layer.value", 1, **{"position.value": "mean", "scale.value": "cosine"}
    )
    assert (both.position, both.scale) == ("mean", "cosine")


# --- numbers -----------------------------------------------------------------------------------


def test_accuracy_and_flips_by_hand(scene):
    numbers, is_harmful = scene.numbers.numpy(), scene.run.is_harmful.numpy()
    fitted = scene.fitted_threshold
    assert scene.accuracy(fitted) == np.mean((numbers > fitted) == is_harmful)
    assert not scene.is_flipped.any()
    ninth = np.sort(numbers)[8]
    moved_ = Scene(scene.run, replace(scene.view, threshold=float(ninth), listed="flipped"))
    expected = {row for row in range(80) if ninth < numbers[row] <= fitted}
    assert set(moved_.listed_rows) == expected
    assert len(expected) > 5
    assert moved_.accuracy(moved_.threshold) == np.mean((numbers > ninth) == is_harmful)


def test_held_out_accuracy_differs_from_chance_only_with_signal(runs, view):
    first = Scene(runs[view.run], replace(view, hook_point="blocks.0.hook_resid_post"))
    last = Scene(runs[view.run], replace(view, hook_point="blocks.3.hook_resid_post"))
    assert first.accuracy(first.fitted_threshold) < 0.7
    assert last.accuracy(last.fitted_threshold) > 0.95


def test_cosines_start_midway_between_the_means(runs, view):
    scene = Scene(runs[view.run], replace(view, scale="cosine"))
    numbers, is_harmful = scene.numbers, scene.run.is_harmful
    midway = (numbers[is_harmful].mean() + numbers[~is_harmful].mean()) / 2
    assert scene.fitted_threshold == pytest.approx(midway.item())
    assert numbers.abs().max() <= 1


def test_filters_and_export(runs, view):
    wanted = replace(view, category="law", text="REQUEST NUMBER 1")
    table = Scene(runs[view.run], wanted).table()
    expected = [
        prompt.id
        for prompt in runs[view.run].prompts
        if prompt.category == "law" and "request number 1" in prompt.text
    ]
    assert sorted(table["prompt_id"]) == sorted(expected)
    assert set(table["category"]) == {"law"}
    away = (table["value"] - table["threshold"]).abs()
    assert away.is_monotonic_increasing


def test_exported_texts_come_back_as_they_were(runs, view, tmp_path):
    everything = Scene(runs[view.run], view).table()
    everything.to_csv(tmp_path / "a.csv", index=False)
    read = pd.read_csv(tmp_path / "a.csv", lineterminator="\n", keep_default_na=False)
    assert set(HOSTILE) <= set(read["text"])


def test_correlation_is_pearsons(scene):
    expected = np.corrcoef(scene.numbers, scene.other_numbers)[0, 1]
    assert scene.correlation() == pytest.approx(expected)


# --- figures -----------------------------------------------------------------------------------


def patched(figure: go.Figure, changes: dict) -> dict:
    place_figures._apply(figure, changes)
    return figure.to_plotly_json()


def test_what_changes_is_all_that_differs(scene):
    """A figure given another place's changes is the other place's figure: nothing stays behind."""
    prompts, is_harmful = scene.run.prompts, scene.run.is_harmful
    everyone = torch.ones(80, dtype=torch.bool)
    plain = Marks(is_harmful, everyone)
    fancy = Marks(is_harmful, torch.arange(80) % 3 == 0, (1, 50))
    nowhere = torch.full((80,), torch.nan, dtype=torch.float64)
    states = [
        (scene.numbers, 1.0, fancy),
        (nowhere, float("nan"), plain),
        (scene.other_numbers, 0.0, plain),
        (scene.numbers * 1e-3, 1e-4, plain),
    ]
    for old in states:
        for new in states:
            figure = place_figures.place_histogram(*old, prompts)
            changed = patched(figure, place_figures.histogram_changes(*new))
            fresh = place_figures.place_histogram(*new, prompts).to_plotly_json()
            for one, other in zip(changed["data"], fresh["data"], strict=True):
                # Where nothing is drawn, what marks and labels look like may stay.
                looked_at = set(one) | set(other) if len(other["x"]) else {"x"}
                assert {k: str(one.get(k)) for k in looked_at} == {
                    k: str(other.get(k)) for k in looked_at
                }
            for key in ("shapes", "annotations"):
                assert changed["layout"].get(key, ()) == fresh["layout"].get(key, ())


def test_every_prompt_is_a_mark_and_every_misread_one_a_cross(scene):
    is_harmful = scene.run.is_harmful
    marks = Marks(is_harmful, torch.ones(80, dtype=torch.bool), (3, 60))
    threshold = scene.numbers.sort().values[30].item()
    figure = place_figures.place_histogram(scene.numbers, threshold, marks, scene.run.prompts)
    bars, dots, crosses = figure.data[:2], figure.data[2:4], figure.data[4]
    assert [sum(trace.y) for trace in bars] == [40, 40]
    rows = [row for trace in dots for row in trace.customdata]
    along = {row: x for trace in dots for row, x in zip(trace.customdata, trace.x, strict=True)}
    assert sorted(rows) == list(range(80))
    assert along[17] == pytest.approx(scene.numbers[17].item(), abs=1e-3)
    wrong = (scene.numbers > threshold) != is_harmful
    assert sorted(crosses.x) == pytest.approx(sorted(scene.numbers[wrong].tolist()), abs=1e-3)
    picked = [trace.customdata[point] for trace in dots for point in trace.selectedpoints]
    assert sorted(picked) == [3, 60]
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == threshold


def test_hostile_prompts_are_text_on_hover(scene):
    marks = scene.marks
    figure = place_figures.projection_scatter(
        scene.numbers, scene.numbers, marks, scene.run.prompts
    )
    shown = " ".join(text for trace in figure.data for text in trace.hovertext)
    assert "&lt;/script&gt;" in shown
    assert not re.search(r"<(?!/?b>|br>)", shown)
    assert "$" not in shown


@pytest.mark.parametrize("scale", ["raw", "cosine"])
def test_ridges_are_those_of_plots_on_the_view_s_scale(runs, view, scale):
    scene = Scene(runs[view.run], replace(view, scale=scale, position="mean"))
    figure = overview_figures.ridgeline(scene.ridges, "plotly_white")
    expected = plots.ridgeline([scene.ridges])
    for trace, other in zip(figure.data, expected.data, strict=True):
        assert trace == other
    name = scene.site_hook_points[3]
    numbers = scene.projected.numbers(name, "mean", is_cosine=scale == "cosine")
    grid = scene.ridges.grids[3].numpy()
    exact = gaussian_kde(numbers[scene.run.is_harmful].numpy())(grid)
    np.testing.assert_allclose(scene.ridges.harmful[3], exact, rtol=1e-9)
    assert ("cosine" in figure.layout.xaxis.title.text) == (scale == "cosine")


def test_cells_know_their_places(runs, view):
    scores = Scene(runs[view.run], view).projected.scores
    cells = overview_figures.place_heatmap(scores, "accuracy", "plotly_white").data[0]
    for _, row in scores.iterrows():
        place = row["hook_point"], row["position"]
        shape = overview_figures.heatmap_highlight(scores, *place)[0]
        x, y = int(shape["x0"] + 0.5), int(shape["y0"] + 0.5)
        assert cells.z[y][x] == row["accuracy"]
        click = {"points": [{"x": cells.x[x], "y": cells.y[y]}]}
        there = moved(view, runs, "heatmap.clickData", click)
        assert (there.hook_point, there.position) == place


# --- the server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def app(folder):
    return build_app([folder.path])


def test_no_debug_mode_and_nothing_from_elsewhere(app):
    page = app.server.test_client().get("/")
    assert not app.server.debug
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert '<html lang="en">' in page.text


def test_other_hosts_only_when_told(app):
    with (
        pytest.raises(RefusalLensError, match=r"--host 0\.0\.0\.0 came, which other machines"),
        open_server(app, host="0.0.0.0", port=0),
    ):
        pass


def test_other_hosts_with_a_warning(folder):
    with (
        pytest.warns(RefusalLensWarning, match="whoever opens it sees all prompts"),
        open_server(build_app([folder.path]), host="0.0.0.0", port=0, allow_remote=True) as server,
    ):
        assert server.port > 0


def test_a_port_in_use_is_named_and_the_default_goes_on_to_the_next(app, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = f"Port {port} of 127.0.0.1 is in use, perhaps by another explorer."
        with pytest.raises(RefusalLensError, match=message), open_server(app, port=port):
            pass
        monkeypatch.setattr("refusal_lens.explorer.server.PORT", port)
        with open_server(app) as server:
            assert port < server.port < port + 20


def test_foreign_names_are_refused(app):
    with open_server(app, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.port}/"
        assert urllib.request.urlopen(url).status == 200
        foreign = urllib.request.Request(url, headers={"Host": "rebound.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(foreign)
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("missing", ["dash", "flask", "werkzeug"])
def test_the_command_says_which_extra_is_missing(monkeypatch, folder, missing):
    import sys

    from typer.testing import CliRunner

    from refusal_lens.cli import app as command_line

    for name in [name for name in sys.modules if name.startswith("refusal_lens.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setitem(sys.modules, f"{missing}.serving", None)
    monkeypatch.delattr("refusal_lens.explorer", raising=False)
    outcome = CliRunner().invoke(command_line, ["explore", str(folder.path)])
    assert outcome.exit_code == 2
    assert "pip install 'refusal-lens[explore]'" in outcome.output


def test_an_address_that_selects_ten_million_rows_is_answered_at_once(runs):
    begun = time.monotonic()
    search = "?selected=" + ",".join(["0-9999999"] * 20)
    assert len(View.from_search(search).selected) == 100_000
    assert View.from_search("?selected=5-7,2").selected == (2, 5, 6, 7)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"null",
        b'{"output": "a.b"}',
        b'{"output": 3, "inputs": []}',
        b'{"output": "heatmap.figure", "outputs": [], "inputs": [{"id": "view"}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_malformed_requests_are_refused_without_a_traceback(folder, body, capfd, caplog):
    client = build_app([folder.path]).server.test_client()
    answer = client.post(
        "/_dash-update-component", data=body, headers={"Content-Type": "application/json"}
    )
    assert 400 <= answer.status_code < 500
    printed = "".join(capfd.readouterr()) + caplog.text
    assert "Traceback" not in printed + answer.get_data(as_text=True)
    assert len(printed) < 1000


def test_pages_of_other_sites_are_refused(app):
    def status(origin: str | None) -> int:
        headers = {} if origin is None else {"Origin": origin}
        try:
            request = urllib.request.Request(f"http://{host}/", headers=headers)
            with urllib.request.urlopen(request) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    with open_server(app, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.port}"
        assert [status(origin) for origin in (None, f"http://{host}")] == [200, 200]
        foreign = ("http://evil.example", f"http://{host}.evil.example", "null", "")
        assert [status(origin) for origin in foreign] == [403] * 4
        server.shutdown()
