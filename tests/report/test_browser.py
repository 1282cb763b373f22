"""The report in a real browser, opened from disk with the network off."""

import json
from itertools import pairwise

import pytest
from browser import serious_violations, sideways_overflow
from planted_run import HOSTILE, learning_curve, make_run, misread, nulls, stability

from refusal_lens.report import build_report
from refusal_lens.report.tables import readable
from refusal_lens.runs import figures

pytestmark = pytest.mark.browser

TAMED = "One of the prompts got out of its quotes"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    harmless = [f"good {i}" for i in range(len(HOSTILE))]
    run_folder = make_run(folder, texts=(HOSTILE, harmless), categories=HOSTILE, n_refused=6)
    for name, table in {
        "misread": misread(run_folder),
        "nulls": nulls(0.001),
        "stability": stability(0.9),
        "learning_curve": learning_curve(),
    }.items():
        run_folder.write_table(name, table)
    build_report(run_folder)
    return run_folder


@pytest.fixture
def open_report(open_page, run_folder):
    def open_(**options):
        return open_page(is_offline=True, **options).open(run_folder.path / "report.html")

    return open_


def drawn(page, name="projection_histogram"):
    """Scroll a figure into view, wait for it, and return a handle on it."""
    plot = page.locator(f".plot[data-name={name}]")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector(f".plot[data-name={name}][data-is-drawn=yes]")
    return plot


def shown_data(plot) -> list[dict]:
    """What the figure shows: of each visible trace its name, numbers and text."""
    content = plot.evaluate(
        "plot => JSON.stringify(plot.data.filter(trace => trace.visible !== false)"
        ".map(({name, x, y, text}) => ({name, x, y, text})))"
    )
    return json.loads(content)


def expected_data(run_folder, hook_point: str, position: str) -> list[dict]:
    """The same, of a figure that python draws there at once."""
    from refusal_lens import plots
    from refusal_lens.validation.separation import Separation

    figure = plots.projection_histogram(
        run_folder.read_projections(),
        Separation.from_frame(run_folder.read_separation(), 5),
        run_folder.read_prompts().prompts,
        initial=(hook_point, position),
        nulls=run_folder.read_table("nulls"),
    )
    traces = [trace.to_plotly_json() for trace in figure.data if trace.visible is not False]
    keys = ("name", "x", "y", "text")
    plain = [{key: trace[key] for key in keys if key in trace} for trace in traces]
    return json.loads(json.dumps(plain))


# ---- figures ----


def test_figures_are_drawn_when_they_come_near(open_report):
    page = open_report()
    assert page.locator("[data-is-drawn]").count() < page.locator(".plot").count() or (
        page.locator(".plot").count() <= 2
    )
    folded = page.locator("details.folded")
    assert folded.locator("[data-is-drawn]").count() == 0
    folded.evaluate_all("all => all.forEach(details => { details.open = true; })")
    for plot in page.locator(".plot").all():
        drawn(page, plot.get_attribute("data-name"))
        assert plot.locator("svg.main-svg").first.bounding_box()["height"] > 100


def test_the_first_figure_begins_above_the_fold(open_report):
    page = open_report(width=1400)
    assert page.locator(".plot").first.bounding_box()["y"] < page.viewport_size["height"]
    assert page.locator("#answer .plot").count() == 1


def test_a_link_unfolds_the_figure_that_it_leads_to(open_report):
    page = open_report()
    page.locator(".index a[href='#figure-stability']").click()
    page.wait_for_selector(".plot[data-name=stability][data-is-drawn=yes]")


def test_slider_shows_another_layer_and_menu_another_position(open_report, run_folder):
    page = open_report()
    plot = drawn(page)
    figure = page.locator("#figure-projection_histogram")
    assert shown_data(plot) == expected_data(run_folder, "blocks.3.hook_resid_post", "last")
    slider = figure.get_by_role("slider")
    slider.focus()
    slider.press("ArrowLeft")
    slider.press("ArrowLeft")
    page.wait_for_function(
        "plot => plot.data.some(trace => `${trace.text}`.includes('resid_post 1 '))",
        arg=plot.element_handle(),
    )
    assert shown_data(plot) == expected_data(run_folder, "blocks.1.hook_resid_post", "last")
    assert slider.get_attribute("aria-valuetext") == "resid_post 1"
    figure.get_by_label("position").select_option("mean")
    page.wait_for_function(
        "plot => plot.data.some(trace => trace.visible !== false && "
        "`${trace.text}`.includes('position mean'))",
        arg=plot.element_handle(),
    )
    assert shown_data(plot) == expected_data(run_folder, "blocks.1.hook_resid_post", "mean")


def test_a_dragged_slider_ends_where_it_was_left(open_report, run_folder):
    page = open_report()
    plot = drawn(page)
    slider = page.locator("#figure-projection_histogram").get_by_role("slider")
    slider.evaluate(
        "input => [0, 1, 2, 3, 2, 1, 0].forEach(step => "
        "{ input.value = step; input.dispatchEvent(new Event('input')); })"
    )
    page.wait_for_function(
        "plot => plot.data.some(trace => `${trace.text}`.includes('resid_post 0 '))",
        arg=plot.element_handle(),
    )
    assert shown_data(plot) == expected_data(run_folder, "blocks.0.hook_resid_post", "last")


@pytest.mark.parametrize("index", [0, 1, 4])
def test_hover_shows_a_hostile_prompt_as_text(open_report, index):
    page = open_report()
    plot = drawn(page)
    plot.evaluate(
        "(plot, index) => { const at = plot.data.findIndex(trace => trace.visible !== false && "
        "trace.hovertext?.length && trace.name === 'harmful');"
        "Plotly.Fx.hover(plot, [{curveNumber: at, pointNumber: index}], ['xy2']); }",
        index,
    )
    page.wait_for_selector(".hoverlayer .hovertext text")
    said = "".join(plot.locator(".hoverlayer .hovertext").all_text_contents())
    text = " ".join(HOSTILE[index].split())[:20]
    assert text.replace(" ", "") in "".join(said.split())
    assert plot.locator(".hoverlayer a").count() == 0
    assert page.title() != "stolen"


def test_dark_readers_get_dark_figures_and_may_change_their_mind(open_report):
    page = open_report(color_scheme="dark")
    plot = drawn(page)
    colour = "plot => plot._fullLayout.font.color"
    dark = plot.evaluate(colour)
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "([plot, dark]) => plot._fullLayout.font.color !== dark", arg=[plot.element_handle(), dark]
    )
    assert (dark, plot.evaluate(colour)) == ("#f2f5fa", "#2a3f5f")


# ---- tables ----


def column(page, table: str, heading: int) -> list[str]:
    return page.locator(f"#table-{table} tbody tr td:nth-child({heading})").all_inner_texts()


def numbers_of(page) -> list[float]:
    """The separations, without their intervals."""
    cells = column(page, "separation", 3)
    return [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in cells]


def test_tables_are_sorted_by_click_and_by_key(open_report):
    page = open_report()
    head = page.locator("#table-separation th").nth(2)
    numbers = numbers_of(page)
    head.get_by_role("button").click()
    assert numbers_of(page) == sorted(numbers)
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").press("Enter")
    assert numbers_of(page) == sorted(numbers)[::-1]
    assert head.get_attribute("aria-sort") == "descending"
    # Rows stay whole: the best place is still the one with the highest separation.
    best = page.locator("#table-separation tr.best td").all_inner_texts()
    assert best[:2] == ["blocks.3.hook_resid_post", "last"]
    assert best[2].split()[0] == f"{max(numbers):.3f}"
    page.locator("#table-separation th").nth(1).get_by_role("button").press("Space")
    assert head.get_attribute("aria-sort") is None
    assert column(page, "separation", 2) == ["last"] * 4 + ["mean"] * 4


def test_hook_points_sort_by_depth_and_missing_numbers_stay_below(open_page, tmp_path):
    run_folder = make_run(tmp_path / "run", n_layers=12)
    frame = run_folder.read_separation().sample(frac=1, random_state=0)
    frame = frame.sort_values("layer", kind="stable")
    frame.loc[frame["layer"] == 5, ["accuracy", "accuracy_low", "accuracy_high"]] = float("nan")
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    page = open_page(is_offline=True).open(build_report(run_folder))
    for n_clicks in (1, 2):
        page.locator("#table-separation th").nth(4).get_by_role("button").click()
        assert column(page, "separation", 5)[-2:] == ["–", "–"], n_clicks
    page.locator("#table-separation th").nth(0).get_by_role("button").click()
    layers = [text.split(".")[1] for text in column(page, "separation", 1)]
    assert layers == [str(layer) for layer in range(12) for _ in range(2)]


# ---- hostile prompts, sizes, access, print ----


def test_hostile_prompts_are_text(open_report):
    page = open_report()
    page.locator("#table-misread summary").click()
    headings = page.locator("#table-misread th").all_inner_texts()
    cells = page.locator(f"#table-misread tbody td:nth-child({headings.index('text') + 1})")
    assert cells.evaluate_all("cells => cells.map(cell => cell.textContent)") == [
        readable(text) for text in HOSTILE
    ]
    assert page.title() == "model: refusal direction", TAMED
    assert page.locator("main img").count() == 0


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_page_is_never_wider_than_its_window(open_report, width):
    page = open_report(width=width, height=740)
    folded = page.locator("details.folded")
    assert folded.locator("[data-is-drawn]").count() == 0
    folded.evaluate_all("all => all.forEach(details => { details.open = true; })")
    for plot in page.locator(".plot").all():
        drawn(page, plot.get_attribute("data-name"))
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert sideways_overflow(page) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_nothing_serious_stands_in_the_way_of_access(open_report, scheme, width):
    page = open_report(width=width, color_scheme=scheme)
    folded = page.locator("details.folded")
    assert folded.locator("[data-is-drawn]").count() == 0
    folded.evaluate_all("all => all.forEach(details => { details.open = true; })")
    for plot in page.locator(".plot").all():
        drawn(page, plot.get_attribute("data-name"))
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert serious_violations(page) == []


def test_everything_that_acts_is_reached_by_keyboard(open_report):
    page = open_report()
    drawn(page)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(at => at.closest('.controls, thead, summary, nav, .skip, pre')"
                "?.className || at.tagName)(document.activeElement)"
            )
        )
    assert {"skip", "contents", "controls"} <= set(reached)
    # Behind the last thing that acts it goes on from the page's top, and nowhere is it lost.
    assert ("BODY", "BODY") not in pairwise(reached)
    page.keyboard.press("Home")
    page.locator(".skip").press("Enter")
    assert page.evaluate("location.hash") == "#answer"


def test_print_draws_every_figure_light_and_opens_every_table(open_report):
    page = open_report(color_scheme="dark", width=360, height=500)
    n_plots = page.locator(".plot").count()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_function(f"document.querySelectorAll('[data-is-drawn]').length === {n_plots}")
    for plot in page.locator(".plot").all():
        layout = plot.evaluate("({_fullLayout: all}) => [all.width, all.font.color]")
        assert layout == [690, "#2a3f5f"]
    assert page.locator("details.table:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_function(
        "[...document.querySelectorAll('.plot')].every(plot => "
        "plot._fullLayout.font.color === '#f2f5fa')"
    )
    assert page.locator("details.table:not([open])").count() > 0
    assert len(page.pdf()) > 10_000


def test_figure_names_are_those_of_the_registry(open_report):
    page = open_report()
    names = page.locator(".plot").evaluate_all("plots => plots.map(plot => plot.dataset.name)")
    assert set(names) <= set(figures.FIGURES)
    assert names[0] == "projection_histogram"


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory):
    """A run of thirty layers, with intervals of every score as a fit gives them."""
    run_folder = make_run(tmp_path_factory.mktemp("runs") / "deep", n_layers=30)
    frame = run_folder.read_separation().assign(
        n_units=8, n_units_new_topics=8, p_value=0.002, p_value_corrected=0.002
    )
    for score in ("separation", "accuracy", "balanced_accuracy", "auroc", "cohens_d"):
        frame[f"{score}_new_topics"] = frame[score]
        for name in (score, f"{score}_new_topics"):
            frame[f"{name}_low"], frame[f"{name}_high"] = -0.123, 0.987
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    build_report(run_folder)
    return run_folder


def test_scores_of_thirty_layers_need_no_sideways_scrolling(open_page, deep_run):
    # They once were 24 columns, and those of the best place lay beyond the window's edge.
    page = open_page(is_offline=True, width=1400).open(deep_run.path / "report.html")
    hidden = page.locator("#table-separation .scroll").evaluate(
        "each => each.scrollWidth - each.clientWidth"
    )
    assert hidden == 0


@pytest.mark.parametrize("name", ["projection_histogram", "place_heatmap", "layer_profile"])
def test_figures_fit_a_phone(open_page, deep_run, name):
    # They were 560 pixels wide in a window of 400: half of each lay behind a scroll bar.
    page = open_page(is_offline=True, width=400).open(deep_run.path / "report.html")
    plot = drawn(page, name)
    assert plot.evaluate("plot => plot.scrollWidth <= plot.closest('.scroll').clientWidth")
    assert plot.evaluate("plot => plot.layout.font.size") == 10
    if name == "place_heatmap":
        assert plot.evaluate("plot => plot.data.map(trace => trace.texttemplate || '')") == [""]
