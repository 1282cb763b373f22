"""The numbers beside the figures, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from explored_run import HOSTILE

from refusal_lens.explorer.drawing import prompt_list
from refusal_lens.explorer.scene import Scene
from refusal_lens.explorer.view import View, nearest_view


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


def test_the_list_has_the_answers_of_a_run_that_has_any_and_finds_text_in_them(runs, view):
    scene = Scene(runs[view.run], replace(view, text="Answer: harmless request number 7"))
    assert scene.listed_rows == [47]
    _, table = prompt_list(scene)
    assert table["head"][-2:] == ["outcome", "answer"]
    (row,) = table["rows"]
    assert [text for text, _ in row["cells"]][-2:] == [
        "answered",
        "Answer: harmless request number 7",
    ]
    _, table = prompt_list(Scene(runs["two"], nearest_view(View(run="two"), runs)))
    assert table["head"][-1] == "text"
