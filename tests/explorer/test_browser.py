"""The explorer in a real browser: what is drawn, chosen, dragged, selected, sent and kept."""

import json
import threading
import time
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest
from browser import serious_violations, sideways_overflow
from explored_run import HOSTILE, make_run

from refusal_lens.explorer import build_app, open_server
from refusal_lens.explorer.runs import explore_runs
from refusal_lens.explorer.view import View

pytestmark = pytest.mark.browser

GRAPHS = ("histogram", "heatmap", "ridgeline", "scatter")
DRAWN = f"""() => {json.dumps(GRAPHS)}.every((id) => {{
    const graph = document.querySelector(`#${{id}} .js-plotly-plot`);
    return graph && graph._fullLayout && graph.querySelector('.trace, .hm');
}}) && document.querySelector('#count')?.textContent"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "planted"
    return make_run(path, sites=("resid_post", "mlp_out"), texts=HOSTILE).path


@pytest.fixture(scope="module")
def address(folder):
    with open_server(build_app([folder]), port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def explore(open_page, address):
    """A function that opens the explorer and waits until all figures are drawn."""

    def explore_(search: str = "", **options):
        page = open_page(**options).open(address + search)
        until(page, DRAWN, seconds=120)
        return page

    return explore_


def until(page, expression: str, seconds: float = 20):
    """Wait until an expression holds. Playwright's own wait needs an eval that the page forbids."""
    end = time.monotonic() + seconds
    while not (value := page.evaluate(expression)):
        assert time.monotonic() < end, f"{expression} never held; headline: {headline(page)}"
        page.wait_for_timeout(30)
    return value


def headline(page) -> str:
    return page.evaluate("document.querySelector('#headline')?.textContent")


def says(page, name: str, text: str) -> None:
    until(page, f"document.querySelector('#{name}').textContent.includes({json.dumps(text)})")


def traces(page, graph: str) -> list[dict]:
    """Return what a figure has drawn: names, numbers and selected points of its traces."""
    return page.evaluate(
        f"""() => document.querySelector('#{graph} .js-plotly-plot')._fullData.map((trace) => ({{
            name: trace.name, type: trace.type, selected: trace.selectedpoints ?? null,
            x: Array.from(trace.x || []), y: Array.from(trace.y || []),
            rows: Array.from(trace.customdata || [])}}))"""
    )


def marks(page, graph: str) -> list[dict]:
    """Return the marks of each trace of a figure: where they are, and where they are to be.

    `drawn` and `due` are sorted pixels; `alike` is how many there are of each opacity and diameter.
    """
    return page.evaluate(
        """(id) => {
            const graph = document.querySelector(`#${id} .js-plotly-plot`);
            const sorted = (places) => places.sort(([a, b], [c, d]) => a - c || b - d);
            const ours = graph.calcdata.filter(([{trace}]) => trace.marker?.maxdisplayed);
            return ours.map((points) => {
                const {uid, xaxis, yaxis} = points[0].trace;
                const {xaxis: x, yaxis: y} = graph._fullLayout._plots[xaxis + yaxis];
                const paths = [...graph.querySelectorAll(`.trace${uid} .marks`)], alike = {};
                const drawn = paths.flatMap((path) => {
                    const [, ...places] = path.getAttribute('d').split('L');
                    const shape = path.previousSibling.firstChild;
                    const {height} = shape.getBBox(), opacity = shape.getAttribute('fill-opacity');
                    alike[`${opacity} ${height.toFixed(1)}`] = places.length - 1;
                    return places.slice(0, -1).map((place) => place.split(',').map(Number));
                });
                const due = points.filter((point) => point.x !== false).map((point) =>
                    [x.c2p(point.x), y.c2p(point.y)].map((pixel) => Number(pixel.toFixed(1))));
                return {alike, drawn: sorted(drawn), due: sorted(due)};
            });
        }""",
        graph,
    )


def assert_marks_are_in_place(page, graph: str, *counts: int) -> None:
    found = marks(page, graph)
    assert [len(each["drawn"]) for each in found] == list(counts)
    assert all(each["drawn"] == each["due"] for each in found)


def threshold(page) -> float:
    graph = "document.querySelector('#histogram .js-plotly-plot')"
    return page.evaluate(f"{graph}.layout.shapes[0].x0")


def along(page, x: float, y: float = 0.5) -> tuple[float, float]:
    """Return the pixel of a number along the histogram's axis, y from the marks' bottom to top."""
    return page.evaluate(
        """([x, y]) => {
            const graph = document.querySelector('#histogram .js-plotly-plot');
            graph.scrollIntoView({block: 'center'});
            const {xaxis, yaxis2} = graph._fullLayout, box = graph.getBoundingClientRect();
            const height = yaxis2._offset + (1 - y) * yaxis2._length;
            return [box.left + xaxis._offset + xaxis.d2p(x), box.top + height];
        }""",
        [x, y],
    )


def mark_of(page, row: int) -> tuple[float, float]:
    """Return the pixel of a prompt's mark in the histogram."""
    found = [trace for trace in traces(page, "histogram") if row in trace["rows"]]
    point = found[0]["rows"].index(row)
    return along(page, found[0]["x"][point], (found[0]["y"][point] + 0.6) / 2.2)


def hover_and_click(page, pixel: tuple[float, float]) -> None:
    """Click as people do: plotly takes a click for the point that was hovered before it."""
    page.mouse.move(pixel[0] - 5, pixel[1])
    page.wait_for_timeout(300)
    page.mouse.move(*pixel)
    page.wait_for_timeout(300)
    page.mouse.click(*pixel)


def drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    page.mouse.move(*start)
    page.mouse.down()
    for share in (0.3, 0.6, 1):
        page.mouse.move(*(a + share * (b - a) for a, b in zip(start, end, strict=True)))
        page.wait_for_timeout(30)
    page.mouse.up()


def query(page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def numbers_of(folder, hook_point: str):
    (run,) = explore_runs([folder]).values()
    return run, run.projected(run.run_method).numbers(hook_point, "last", is_cosine=False)


def widest_gap(ordered) -> float:
    """Return the middle of the widest gap, so that a pixel more or less does not matter."""
    at = int(ordered.diff().argmax())
    return ordered[at : at + 2].mean().item()


def folder_prompts(folder):
    (run,) = explore_runs([folder]).values()
    return run.prompts


# --- places ------------------------------------------------------------------------------------


def test_arrow_keys_slider_and_cells_go_from_place_to_place(explore, folder):
    page = explore("?hook_point=blocks.2.hook_resid_post&position=last")
    assert "resid_post 2 · position last" in headline(page)
    page.keyboard.press("ArrowRight")
    says(page, "headline", "resid_post 3 · position last")
    until(page, "new URLSearchParams(location.search).get('hook_point').startsWith('blocks.3.')")
    page.focus("#layer [role=slider]")
    page.keyboard.press("Home")
    says(page, "headline", "resid_post 0 · position last")
    _, numbers = numbers_of(folder, "blocks.0.hook_resid_post")
    drawn = until(page, "document.querySelector('#histogram .js-plotly-plot').data[3].x")
    until(
        page,
        f"document.querySelector('#histogram .js-plotly-plot').data[3].x[0].toFixed(2)"
        f" === '{numbers[0]:.2f}'",
    )
    assert len(drawn) == 40
    cell = page.evaluate(
        """() => {
            const graph = document.querySelector('#heatmap .js-plotly-plot');
            graph.scrollIntoView({block: 'center'});
            const {xaxis, yaxis} = graph._fullLayout, box = graph.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.d2p('1'),
                    box.top + yaxis._offset + yaxis.d2p('mlp_out, mean')];
        }"""
    )
    hover_and_click(page, cell)
    says(page, "headline", "mlp_out 1 · position mean")
    assert query(page)["hook_point"] == "blocks.1.hook_mlp_out"


def test_the_address_brings_the_view_back_and_back_goes_back(explore, address):
    page = explore()
    assert urlsplit(page.url).query == ""
    first = headline(page)
    page.keyboard.press("ArrowLeft")
    until(page, f"document.querySelector('#headline').textContent !== {json.dumps(first)}")
    until(page, "location.search !== ''")
    second, sent = headline(page), page.url
    page.wait_for_timeout(600)
    assert page.url == sent
    page.evaluate("history.back()")
    says(page, "headline", first)
    assert urlsplit(page.url).query == ""
    page.evaluate("history.forward()")
    says(page, "headline", second)
    other = explore(sent.removeprefix(address))
    assert headline(other) == second
    assert other.url == sent


def test_an_address_that_does_not_exist_is_told_and_stays_told(explore):
    page = explore("nonsense?hook_point=blocks.99.hook_foo&colour=red")
    says(page, "notice", "page /nonsense, hook_point blocks.99.hook_foo, colour red")
    page.wait_for_timeout(1500)  # the figures have found their size
    says(page, "notice", "page /nonsense")
    page.keyboard.press("ArrowLeft")
    until(page, "document.querySelector('#notice').textContent === ''")


# --- threshold ---------------------------------------------------------------------------------


def test_dragging_the_threshold_says_accuracy_and_what_flips(explore, folder):
    page = explore("?hook_point=blocks.3.hook_resid_post&position=last")
    run, numbers = numbers_of(folder, "blocks.3.hook_resid_post")
    fitted = threshold(page)
    wanted = numbers.sort().values[50].item() + 0.01
    drag(page, along(page, fitted, 3.0), along(page, wanted, 3.4))
    says(page, "readout", "flipped")
    moved = threshold(page)
    assert moved == pytest.approx(wanted, abs=0.3)
    accuracy = ((numbers > moved) == run.is_harmful).double().mean().item()
    flips = ((numbers > moved) != (numbers > fitted)).sum().item()
    assert flips >= 5
    says(page, "readout", f"Accuracy {accuracy:.1%}")
    says(page, "readout", f"{flips} prompts flipped")
    says(page, "count", f"{flips} prompts of 80")
    until(page, f"document.querySelectorAll('#prompts tbody tr').length === {flips}")
    shape = "document.querySelector('#histogram .js-plotly-plot').layout.shapes[0]"
    assert page.evaluate(f"[{shape}.x0 === {shape}.x1, {shape}.y0, {shape}.y1]") == [True, 0, 1]
    crosses = traces(page, "histogram")[4]["x"]
    assert len(crosses) == round(80 * (1 - accuracy))
    page.click("#reset")
    says(page, "readout", "the fitted threshold")
    assert threshold(page) == pytest.approx(fitted)


# --- marks -------------------------------------------------------------------------------------


def test_every_prompt_has_a_mark_in_its_place_wherever_the_page_goes(explore, folder):
    page = explore("?hook_point=blocks.0.hook_resid_post&position=last")
    run, numbers = numbers_of(folder, "blocks.0.hook_resid_post")
    misread = int(((numbers > threshold(page)) != run.is_harmful).sum())
    assert misread > 10
    assert_marks_are_in_place(page, "histogram", 40, 40, misread)
    assert_marks_are_in_place(page, "scatter", 40, 40)
    assert marks(page, "histogram")[0]["alike"] == {"0.8 7.0": 40}
    page.keyboard.press("ArrowRight")
    says(page, "headline", "resid_post 1 ")
    there = marks(page, "histogram")[0]["due"]
    page.locator("#histogram [data-title='Zoom in']").click()
    until(page, "document.querySelector('#histogram .js-plotly-plot').layout.xaxis.range")
    assert marks(page, "histogram")[0]["due"] != there
    assert_marks_are_in_place(page, "histogram", 40, 40, len(traces(page, "histogram")[4]["x"]))
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(1000)
    assert_marks_are_in_place(page, "histogram", 40, 40, len(traces(page, "histogram")[4]["x"]))


def test_a_mark_names_its_prompt_and_a_box_dims_the_others_while_it_is_drawn(explore, folder):
    page = explore("?hook_point=blocks.3.hook_resid_post&position=last")
    _, numbers = numbers_of(folder, "blocks.3.hook_resid_post")
    for row in (int(numbers.argmax()), int(numbers.argmin())):
        prompt = folder_prompts(folder)[row]
        page.mouse.move(*mark_of(page, row))
        until(
            page,
            "document.querySelector('#histogram .hovertext')?.textContent"
            f".includes({json.dumps(prompt.id)})",
        )
    ordered = numbers.sort().values
    low, high = widest_gap(ordered[3:15]), widest_gap(ordered[25:38])
    page.mouse.move(*along(page, low, 0.04))
    page.mouse.down()
    for share in (0.3, 0.6, 1):
        page.mouse.move(*along(page, low + share * (high - low), 0.04 + 0.92 * share))
        page.wait_for_timeout(150)
    inside = int(((numbers > low) & (numbers < high)).sum())
    while_drawn = marks(page, "histogram")[0]["alike"]
    page.mouse.up()
    says(page, "count", f"{inside} prompts of 80")
    assert while_drawn == {"0.12 7.0": 40 - inside, "1 11.0": inside}
    assert marks(page, "histogram")[0]["alike"] == while_drawn


# --- prompts -----------------------------------------------------------------------------------


def test_a_box_selects_marks_lists_them_and_exports_them(explore, folder, tmp_path):
    page = explore("?hook_point=blocks.3.hook_resid_post&position=last")
    run, numbers = numbers_of(folder, "blocks.3.hook_resid_post")
    ordered = numbers.sort().values
    low, high = widest_gap(ordered[3:15]), widest_gap(ordered[25:38])
    drag(page, along(page, low, 0.04), along(page, high, 0.96))
    expected = {row for row in range(80) if low < numbers[row] < high}
    says(page, "count", f"{len(expected)} prompts of 80")
    ids = {run.prompts[row].id for row in expected}
    until(page, f"document.querySelectorAll('#prompts tbody tr').length === {len(ids)}")
    shown = page.eval_on_selector_all("#prompts tbody th", "all => all.map(e => e.textContent)")
    assert set(shown) == ids
    for graph in ("histogram", "scatter"):
        data = f"document.querySelector('#{graph} .js-plotly-plot')._fullData"
        until(page, f"{data}.some((trace) => trace.selectedpoints?.length)")
        marks = [trace for trace in traces(page, graph) if trace["rows"]]
        assert {trace["rows"][p] for trace in marks for p in trace["selected"]} == expected
    with page.expect_download() as started:
        page.click("#export")
    started.value.save_as(tmp_path / "selection.csv")
    table = pd.read_csv(tmp_path / "selection.csv")
    assert set(table["prompt_id"]) == ids
    assert started.value.suggested_filename == "planted-selected.csv"
    page.evaluate("dash_clientside.set_props('layer', {value: 0})")
    says(page, "headline", "resid_post 0")
    says(page, "count", f"{len(expected)} prompts of 80")
    page.click("#clear")
    says(page, "count", "80 prompts of 80")
    assert "selected" not in query(page)


def test_filters_list_what_they_say(explore, folder):
    page = explore()
    page.fill("#text", "request number 1")
    found = [p for p in folder_prompts(folder) if "request number 1" in p.text]
    says(page, "count", f"{len(found)} prompts of 80")
    page.click("#category")
    page.locator(".dash-options-list-option", has_text="law").click()
    says(page, "count", f"{sum(p.category == 'law' for p in found)} prompts of 80")
    assert query(page)["category"] == "law"
    assert query(page)["text"] == "request number 1"


def test_hostile_prompts_are_text(explore):
    page = explore()
    page.fill("#text", HOSTILE[0])
    says(page, "count", "1 prompt of 80")
    until(page, "document.querySelectorAll('#prompts tbody tr').length === 1")
    cell = page.inner_text("#prompts tbody td.text")
    assert cell == HOSTILE[0]
    page.fill("#text", "")
    says(page, "count", "80 prompts of 80")
    until(page, "document.querySelectorAll('#prompts tbody tr').length > 1")
    texts = page.eval_on_selector_all("#prompts td.text", "all => all.map(e => e.textContent)")
    assert set(HOSTILE) <= set(texts)
    assert page.query_selector("#prompts img, #prompts a, #prompts script") is None
    page.mouse.move(*along(page, 0.0, 0.7))
    for _ in range(20):
        page.mouse.move(*(part + 2 for part in along(page, _ / 4, 0.7)))
    assert page.title() == "refusal_lens"


# --- the page ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_it_fits_is_named_and_is_readable(explore, width, scheme):
    page = explore(width=width, color_scheme=scheme)
    assert sideways_overflow(page) == 0
    until(
        page, "document.querySelectorAll('.control [role=slider]:not([aria-label])').length === 0"
    )
    assert serious_violations(page) == []
    names = page.eval_on_selector_all(
        ".control [role=slider]", "all => all.map(e => e.getAttribute('aria-label'))"
    )
    assert names == ["Layer 3", "Threshold"]
    for graph in GRAPHS:
        inside = page.evaluate(
            """(id) => {
                const box = document.getElementById(id).getBoundingClientRect();
                const panel = document.getElementById(id).closest('.panel').getBoundingClientRect();
                return box.height > 300 && box.bottom <= panel.bottom && box.right <= panel.right;
            }""",
            graph,
        )
        assert inside, graph
    ink = page.evaluate(
        "document.querySelector('#histogram .js-plotly-plot')._fullLayout.font.color"
    )
    assert (ink == "#f2f5fa") == (scheme == "dark")
    # Plotly's own "Share chart" would send the prompts to plotly's site.
    buttons = page.eval_on_selector_all(
        ".modebar-btn", "all => all.map(e => e.getAttribute('data-title'))"
    )
    assert "Lasso Select" in buttons
    assert not [title for title in buttons if "hare" in title or "loud" in title]


def test_a_narrow_page_shows_the_texts_of_prompts_whole(explore):
    page = explore(width=400)
    until(page, "document.querySelectorAll('#prompts tbody tr').length")
    table = page.locator("#prompts")
    assert table.evaluate("table => table.scrollWidth <= table.clientWidth")
    shown = page.locator("#prompts tbody tr").first
    assert shown.locator(".text").bounding_box()["width"] > 300
    labels = shown.locator("td").evaluate_all("all => all.map(e => e.dataset.label)")
    assert labels == ["category", "class", "called", "projection", "text"]


def test_every_control_can_be_reached_by_keyboard(explore):
    page = explore("?hook_point=blocks.3.hook_resid_post")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') || document.activeElement.id"
            )
        )
    wanted = {"reset", "clear", "export", "text", "Prompts listed", "Threshold", "Layer 3"}
    assert wanted <= reached
    assert {"site", "position", "method", "category", "score"} <= reached
    assert page.get_by_role("button", name="Site resid_post").count() == 1
    before = threshold(page)
    page.focus("#threshold [role=slider]")
    page.keyboard.press("PageUp")
    line = "document.querySelector('#histogram .js-plotly-plot').layout.shapes[0].x0"
    until(page, f"{line} > {before}")
    assert float(query(page)["threshold"]) > before


@pytest.mark.slow
def test_a_step_sends_only_the_place_shown(open_page, tmp_path):
    """48 layers, 2 positions, 500 prompts: what a step of the slider costs the server."""
    run = make_run(tmp_path / "large", n=250, n_layers=48, d_model=16).path
    with open_server(build_app([run]), port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = open_page().open(f"http://127.0.0.1:{server.port}/")
        until(page, DRAWN, seconds=120)
        page.evaluate("performance.clearResourceTimings()")
        for layer in (3, 30, 12, 44, 20):
            page.evaluate("(value) => dash_clientside.set_props('layer', {value})", layer)
            says(page, "headline", f"resid_post {layer} ")
            page.wait_for_timeout(500)
        sizes = page.evaluate(
            "performance.getEntriesByType('resource').filter(e => e.name.includes('update'))"
            ".map(e => e.transferSize)"
        )
        server.shutdown()
    # Only the place shown travels, and the list of prompts: all places would be 500 KB.
    assert max(sizes) < 100_000
    assert View.from_search(urlsplit(page.url).query).hook_point == "blocks.20.hook_resid_post"
