"""Figures of a run: which it has, which file each needs, the best place, and what is missing."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import planted
import pytest
import torch

from refusal_lens.config_files import load_config
from refusal_lens.directions.direction import Directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.plots.picture_files import export
from refusal_lens.plots.style import THEMES
from refusal_lens.prompts.contrast import ContrastSet, Prompt, PromptSet
from refusal_lens.runs import figures
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.crossfit import Projections

N_LAYERS, N_PROMPTS, D_MODEL = 4, 40, 6
FROM_FIT = [
    *("projection_histogram", "ridgeline", "layer_profile", "place_heatmap"),
    *("roc", "direction_components"),
]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """What fit leaves, without tables or activations."""
    run_folder = RunFolder(tmp_path_factory.mktemp("run"))
    run_folder.write_config(load_config(None, []))
    run_folder.write_provenance({"model": {"n_layers": N_LAYERS}})
    sides = [
        PromptSet(name, tuple(Prompt(f"{name}-{i}", f"A {name} text {i}.", "c") for i in range(20)))
        for name in ("harmful", "harmless")
    ]
    run_folder.write_prompts(ContrastSet(*sides))
    scores = planted.separation(N_LAYERS)
    scores.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    hook_points = tuple(dict.fromkeys(scores["hook_point"]))
    is_harmful = torch.arange(N_PROMPTS) < 20
    generator = torch.Generator().manual_seed(0)
    cosines = torch.rand(N_PROMPTS, N_LAYERS, 2, generator=generator).double()
    cosines = cosines / 2 + 0.4 * is_harmful[:, None, None]
    thresholds = 10 * cosines.mean(dim=0)
    run_folder.write_projections(
        Projections(
            10 * cosines,
            cosines,
            10 * cosines > thresholds,
            thresholds,
            is_harmful,
            hook_points,
            ("last", "mean"),
            True,
        )
    )
    vectors = torch.randn(N_LAYERS, 2, D_MODEL, generator=generator)
    is_kept = torch.ones(N_LAYERS, 2, dtype=torch.bool)
    run_folder.write_directions(Directions(vectors, is_kept, hook_points, ("last", "mean")))
    return run_folder


@pytest.fixture(scope="module")
def full(bare: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run after every other stage, but for activations."""
    run_folder = RunFolder(tmp_path_factory.mktemp("full"))
    for file in bare.path.iterdir():
        (run_folder.path / file.name).write_bytes(file.read_bytes())
    for name, table in planted.every_table(N_LAYERS).items():
        run_folder.write_table(name, table)
    rates = {
        "plain_rate": 0.9,
        "refusal_rate": 0.5,
        "refusal_rate_low": 0.4,
        "refusal_rate_high": 0.6,
    }
    arms = [("ablate", "fitted", True), ("ablate", "random", True), ("add", "fitted", False)]
    columns = ["intervention", "direction", "is_harmful"]
    table = pd.DataFrame(arms, columns=pd.Index(columns)).assign(n_prompts=64, **rates)
    run_folder.write_table("interventions", table)
    return run_folder


def test_every_figure_says_what_it_needs_and_what_it_shows():
    for name, figure in figures.FIGURES.items():
        assert figure.needs, name
        assert figure.title, name
        assert figure.sentence.endswith("."), name
    assert sum(not figure.folded for figure in figures.FIGURES.values()) <= 8


def test_a_run_has_the_figures_whose_files_it_has(bare, full):
    assert figures.available(bare) == FROM_FIT
    assert figures.available(full) == [
        # Without activations; the two matrices are drawn in test_plots_comparison.
        n
        for n in figures.FIGURES
        if n not in ("activation_plane", "cosine_heatmap", "embedding", "transfer_matrix")
        and n != "refusal_by_topic"  # no answers
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_of_a_run_is_drawn(full, theme):
    for name in figures.available(full):
        figure = figures.draw_figure(full, name, theme)
        assert len(figure.data) > 0, name
        assert figure.layout.height >= 200, name
        assert figure.layout.template == THEMES[theme], name
        if name != "projection_histogram":
            assert figure.layout.title.text, name


def test_an_unknown_figure_names_the_known_ones(bare):
    with pytest.raises(RefusalLensError) as caught:
        figures.draw_figure(bare, "nonsense")
    assert str(caught.value) == (
        f"There is no figure 'nonsense'. There are: {', '.join(figures.FIGURES)}."
    )
    with pytest.raises(RefusalLensError) as caught:
        figures.draw_figure(bare, "roc", "plotly_dark")
    assert str(caught.value) == "There is no theme 'plotly_dark'. There are: light, dark."


def test_a_missing_table_names_the_stage_that_writes_it(bare):
    with pytest.raises(RefusalLensError) as caught:
        figures.draw_figure(bare, "dose_response")
    assert str(caught.value) == (
        f"Figure dose_response needs tables/dose_response.csv, which {bare.path} does not have. "
        f"Write it first: refusal-lens ablate {bare.path}"
    )


def test_tables_of_many_places_are_drawn_at_the_best_one(full):
    # The layer with the highest separation within the near-tie rule, at position last.
    figure = figures.draw_figure(full, "category_breakdown")
    assert "resid_post 3 · position last" in figure.layout.title.text
    assert len(figure.data[0].x) + len(figure.data[2].x) == len(planted.CATEGORIES)
    methods = figures.draw_figure(full, "method_comparison")
    assert all(list(line.x) == list(range(N_LAYERS)) for line in methods.data)


def test_positions_that_look_like_numbers_stay_names(full):
    table = planted.learning_curve().assign(position="-1")
    full.write_table("learning_curve", table)
    figure = figures.draw_figure(full, "learning_curve")
    assert figure.data[-1].name == "resid_post 5, -1, foretold"


def test_a_best_place_without_misread_prompts_shows_no_other_place_s(full):
    misread = full.read_table("misread")
    full.write_table("misread", misread.assign(position="mean"))
    figure = figures.draw_figure(full, "misread_prompts")
    full.write_table("misread", misread)
    assert not figure.data
    (note,) = figure.layout.annotations
    assert note.text == "every prompt is on its own side of the threshold"


def test_bars_of_refusal_stand_beside_their_intervals(full, tmp_path: Path):
    run_folder = RunFolder(tmp_path)
    answers = [
        Answer(f"{topic}{i}", topic, topic == "arson", "q", "a", outcome, 0.0)
        for topic, outcomes in {"tea": ["answered"] * 4, "arson": ["refused"] * 3}.items()
        for i, outcome in enumerate(outcomes)
    ]
    run_folder.write_refusal(RefusalReport(tuple(answers), ("I",)))
    harmful, harmless = figures.draw_figure(run_folder, "refusal_by_topic").data
    assert (list(harmful.x), list(harmless.x)) == ([100], [0])
    assert harmful.y == ("arson (3) ",)
    removed, added = figures.draw_figure(full, "refusal_by_intervention").data
    assert (removed.name, added.name) == ("harmful", "harmless")
    assert list(removed.y) == [
        "no intervention (64) ",
        *("ablate, fitted (64) ", "ablate, random (64) "),
    ]
    assert removed.x[0] == 90
    np.testing.assert_allclose(added.error_x.array, [math.nan, 10])


def test_the_area_of_the_roc_is_told_with_its_interval(bare):
    best = bare.best()
    row = bare.read_separation().query("hook_point == @best.hook_point")
    row = row[row["position"] == best.position].iloc[0]
    told = figures.draw_figure(bare, "roc").layout.title.subtitle.text
    assert told.endswith(
        f"AUROC {row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
    )


def test_ridgeline_starts_at_the_best_site_and_position(full):
    figure = figures.draw_figure(full, "ridgeline")
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    assert labels == ["resid_post, last", "resid_post, mean"]


def test_causal_scores_shade_the_last_fifth(full):
    figure = figures.draw_figure(full, "causal_scores")
    (band,) = [shape for shape in figure.layout.shapes if shape.type == "rect"][:1]
    # The output of block 2 is the input of block 3, which is int(0.8 * 4).
    assert (band.x0, band.x1) == (1.5, 3.5)


def test_limits_are_drawn_where_the_run_s_settings_have_them(full):
    settings = full.read_config()
    full.write_config(full.read_config(["causal.max_kl=0.25", "causal.min_induce=1.5"]))
    figure = figures.draw_figure(full, "causal_scores")
    full.write_config(settings)
    notes = {note.text for note in figure.layout.annotations}
    assert {"at least 1.5", "at most 0.25"} <= notes


# ---- files ----


def test_data_and_pages_are_written_whole(bare, tmp_path: Path):
    figure = figures.draw_figure(bare, "direction_components", "dark")
    export({str(tmp_path / "new" / "a.json"): figure, str(tmp_path / "a.html"): figure})
    read = json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8"))
    assert read["data"][0]["y"] == list(figure.data[0].y)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "margin: 0; height: 100%; background: rgb(17,17,17)" in page
    assert "cdn.plot.ly" not in page.split("plotly.js v")[0]
    assert sorted(file.name for file in tmp_path.rglob("*") if file.is_file()) == [
        "a.html",
        "a.json",
    ]


def test_other_formats_are_refused(bare, tmp_path: Path):
    figure = figures.draw_figure(bare, "direction_components")
    with pytest.raises(RefusalLensError) as caught:
        export({tmp_path / "a.eps": figure})
    assert str(caught.value) == (
        "Figures can be written as png, svg, pdf, html, json, but a.eps asks for eps. "
        "Give the file one of these endings."
    )


def test_without_a_browser_a_picture_says_what_to_install(bare, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "nowhere"))
    figure = figures.draw_figure(bare, "direction_components")
    with pytest.raises(RefusalLensError) as caught:
        export({tmp_path / "a.png": figure})
    assert str(caught.value) == (
        "A picture needs Chrome or Chromium, and none was found. Install one (Debian and Ubuntu: "
        "apt-get install chromium; anywhere: kaleido_get_chrome), or say where it is in "
        "BROWSER_PATH. Formats html and json need none."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_may_be_given_by_its_folder(bare):
    one, same = (figures.draw_figure(run, "layer_profile") for run in (bare, str(bare.path)))
    assert one.to_json() == same.to_json()


@pytest.mark.browser
def test_pictures_have_the_size_asked_for(bare, tmp_path: Path):
    figure = figures.draw_figure(bare, "direction_components")
    paths = [tmp_path / f"a.{ending}" for ending in ("png", "svg", "pdf")]
    export(dict.fromkeys(paths, figure), width=400, scale=1.5)
    png, svg, pdf = (path.read_bytes() for path in paths)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 600
    assert int.from_bytes(png[20:24], "big") == 1.5 * figure.layout.height
    assert b"Largest coordinates of the direction" in svg
    assert pdf.startswith(b"%PDF")


@pytest.mark.browser
def test_pictures_have_neither_slider_nor_menus_which_pages_keep(bare, tmp_path: Path):
    figure = figures.draw_figure(bare, "projection_histogram")
    export({tmp_path / "a.svg": figure})
    svg = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "slider-container" not in svg
    assert "updatemenu-container" not in svg
    assert figure.layout.sliders
    assert figure.layout.updatemenus
