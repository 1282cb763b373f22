"""The run folder: the article's layout, and everything read back as it was written."""

import dataclasses

import pandas as pd
import pytest
import torch

from refusal_lens.config_files import load_config
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.runs.folder import RunFolder, article_layout
from refusal_lens.validation.best_place import choose_best
from refusal_lens.validation.nulls import draw_nulls
from refusal_lens.validation.separation import Separation, validate


@pytest.fixture
def run_folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def fitted(activations):
    separation, _ = validate(activations, n_folds=2)
    return fit_directions(activations), separation, choose_best(separation, 4)


def test_refusal_direction_opens_with_plain_torch_in_the_articles_layout(run_folder, fitted):
    directions, separation, best = fitted
    run_folder.write_refusal_direction(directions, separation, best)
    saved = torch.load(run_folder.direction_path, weights_only=True)
    assert saved["num_layers"] == 4
    assert isinstance(saved["model"], str)
    assert list(saved["directions"]) == [0, 1, 2, 3]
    assert list(saved["validation"]) == [0, 1, 2, 3]
    for layer, vector in saved["directions"].items():
        place = (f"blocks.{layer}.hook_resid_post", best.position)
        assert vector.shape == (32,)
        assert vector.dtype == torch.float32
        assert torch.equal(vector, directions[place].unit)
        assert vector.untyped_storage().nbytes() == 32 * 4  # not a view of the whole grid
        torch.testing.assert_close(saved["raw_directions"][layer], directions[place].vector)
        row, column = separation.hook_points.index(place[0]), separation.positions.index(place[1])
        scores = saved["validation"][layer]
        assert scores["separation"] == separation.separation[row, column].item()
        assert scores["accuracy"] == separation.accuracy[row, column].item()
        assert scores["separation_in_sample"] == (
            separation.separation_in_sample[row, column].item()
        )
        assert scores["is_valid"] is bool(separation.is_valid[row, column])
    assert saved["best_layer"] == best.layer


def test_every_score_and_p_value_stands_in_the_saved_file(fitted, activations):
    directions, separation, best = fitted
    nulls = draw_nulls(activations, n_folds=2, n_permutations=19)
    saved = article_layout(directions, separation, best, nulls.p_values())
    place = (f"blocks.2.{saved['site']}", saved["position"])
    scores = saved["validation"][2]
    column = separation.positions.index(place[1])
    assert scores["auroc"] == separation.auroc[2, column].item()
    assert scores["auroc_low"] <= scores["auroc"] <= scores["auroc_high"]
    assert 0.05 <= scores["p_value"] <= scores["p_value_corrected"] <= 1
    assert {"balanced_accuracy", "cohens_d_in_sample"} < set(scores)


def test_layer_without_a_direction_is_left_out(fitted):
    directions, separation, best = fitted
    directions.is_kept[2] = False
    saved = article_layout(directions, separation, best)
    assert list(saved["directions"]) == list(saved["validation"]) == [0, 1, 3]


def test_directions_come_back(run_folder, fitted):
    directions = fitted[0]
    run_folder.write_directions(directions)
    loaded = run_folder.read_directions()
    assert torch.equal(loaded.vectors, directions.vectors)
    assert (loaded.hook_points, loaded.positions, loaded.clip_quantile) == (
        *(directions.hook_points, directions.positions, directions.clip_quantile),
    )
    assert loaded.provenance["fit"] == directions.provenance["fit"]


def test_prompts_and_config_come_back(run_folder, prompts):
    run_folder.write_prompts(prompts)
    assert run_folder.read_prompts().prompts == prompts.prompts
    config = load_config(None, ["collect.positions=[mean]"])
    run_folder.write_config(config)
    assert run_folder.read_config() == config


def test_separation_is_a_csv(run_folder, fitted):
    separation = fitted[1]
    run_folder.write_separation(separation)
    frame = run_folder.read_separation()
    assert frame["separation"].tolist() == pytest.approx(separation.separation.flatten().tolist())


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RefusalLensError, match=r"is not a run folder \(it has no config.yaml\)"):
        RunFolder.open(tmp_path)


def test_missing_stage_is_named(run_folder):
    with pytest.raises(RefusalLensError, match="has no directions.safetensors yet. Run the stage"):
        run_folder.read_directions()
    assert run_folder.read_refusal() is None


def test_scores_and_projections_are_read_back_as_they_were(tmp_path, activations):
    separation, projections = validate(activations, n_folds=4)
    run = RunFolder(tmp_path)
    run.write_separation(separation)
    run.write_projections(projections)
    again = Separation.from_frame(run.read_separation(), separation.n_folds)
    pd.testing.assert_frame_equal(again.to_frame(), separation.to_frame())
    for field in dataclasses.fields(projections):
        was, came = getattr(projections, field.name), getattr(run.read_projections(), field.name)
        assert torch.equal(was, came) if isinstance(was, torch.Tensor) else was == came
