"""The run folder: the article's layout, and everything read back as it was written."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from conftest import make_separation
from explored_run import make_run as make_explored
from planted_run import make_run

from refusal_lens.config_files import load_config
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.explorer.runs import ExploredRun
from refusal_lens.report.evidence import gather
from refusal_lens.runs.compare import open_runs
from refusal_lens.runs.decision import find_place
from refusal_lens.runs.figures import draw_figure
from refusal_lens.runs.folder import RunFolder, best_or_refuse
from refusal_lens.stages.fit import with_record
from refusal_lens.validation.best_place import choose_best
from refusal_lens.validation.nulls import draw_nulls
from refusal_lens.validation.separation import Separation, validate


@pytest.fixture
def run_folder(tmp_path):
    return RunFolder(tmp_path)


@pytest.fixture
def fitted(activations):
    separation, _ = validate(activations, n_folds=2)
    best = choose_best(separation, 4)
    directions = with_record(
        fit_directions(activations), separation.to_frame(), best, validation={}, versions={}
    )
    return directions, separation, best


def test_refusal_direction_opens_with_plain_torch_in_the_articles_layout(run_folder, fitted):
    directions, separation, best = fitted
    run_folder.write_refusal_direction(directions, separation)
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


def test_every_score_and_p_value_stands_in_the_saved_file(run_folder, fitted, activations):
    directions, separation, _ = fitted
    nulls = draw_nulls(activations, n_folds=2, n_permutations=19)
    run_folder.write_refusal_direction(directions, separation, nulls.p_values())
    saved = torch.load(run_folder.direction_path, weights_only=True)
    place = (f"blocks.2.{saved['site']}", saved["position"])
    scores = saved["validation"][2]
    column = separation.positions.index(place[1])
    assert scores["auroc"] == separation.auroc[2, column].item()
    # Four pairs are too few for an interval.
    assert math.isnan(scores["auroc_low"])
    assert math.isnan(scores["auroc_high"])
    assert 0.05 <= scores["p_value"] <= scores["p_value_corrected"] <= 1
    assert {"balanced_accuracy", "cohens_d_in_sample"} < set(scores)


def test_layer_without_a_direction_is_left_out(run_folder, fitted):
    directions, separation, _ = fitted
    directions.is_kept[2] = False
    run_folder.write_refusal_direction(directions, separation)
    saved = torch.load(run_folder.direction_path, weights_only=True)
    assert list(saved["directions"]) == list(saved["validation"]) == [0, 1, 3]
    directions.is_kept[:] = False
    run_folder.write_refusal_direction(directions, separation)
    assert not torch.load(run_folder.direction_path, weights_only=True)["directions"]


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
    with pytest.raises(RefusalLensError, match="has no directions.safetensors. Write it first"):
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


def make_close(highest: float) -> Separation:
    """Make four layers, the second within a near-tie of the first, which is highest."""
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))
    separation = torch.tensor([[highest], [highest - 0.01], [0.1], [0.2]]).double()
    accuracy = torch.full((4, 1), 0.9).double()
    return make_separation(separation, accuracy, separation, accuracy, names, ("-2",), 5)


def test_the_best_place_is_the_one_that_the_rule_chooses_of_the_written_scores(tmp_path):
    run_folder, separation = make_run(tmp_path), make_close(0.5)
    run_folder.write_separation(separation)
    best = run_folder.best()
    assert best == choose_best(separation, 8) == run_folder.best(separation)
    assert best is not None
    assert (best.hook_point, best.position) == ("blocks.0.hook_resid_post", "-2")
    run_folder.write_config(run_folder.read_config(["validation.best_by=article"]))
    best = run_folder.best()
    assert best == choose_best(separation, 8, "article")
    assert best is not None
    assert best.layer == 1


def test_every_reader_of_a_run_goes_to_the_same_best_place(tmp_path):
    folder = make_explored(tmp_path / "run", positions=("-2",))
    folder.write_separation(make_close(0.5))
    place = ("blocks.0.hook_resid_post", "-2")
    evidence = gather(folder).best
    assert evidence is not None
    assert (evidence.hook_point, evidence.position) == place
    run = open_runs([folder.path])[0]
    assert run.best == ExploredRun(run).best == place
    assert find_place(folder, None, None) == place


def test_a_run_without_a_direction_anywhere_has_no_best_place(tmp_path):
    run_folder = make_run(tmp_path)
    nothing = torch.full((4, 1), torch.nan).double()
    names = make_close(0.5).hook_points
    run_folder.write_separation(
        make_separation(nothing, nothing, nothing, nothing, names, ("last",), 5)
    )
    assert run_folder.best() is None
    with pytest.raises(RefusalLensError, match="has no direction anywhere"):
        best_or_refuse(run_folder)


def test_a_command_that_is_told_quotes_a_path_with_spaces(tmp_path):
    run_folder = RunFolder(tmp_path / "my run")
    run_folder.path.mkdir()
    with pytest.raises(RefusalLensError, match=f"refusal-lens fit '{tmp_path}/my run'$"):
        run_folder.read_separation()


def test_a_run_that_was_cut_off_while_it_answered_says_what_goes_on(tmp_path):
    # It said fit, which has nothing to fit yet.
    run_folder = RunFolder(tmp_path / "my run")
    run_folder.write_config(load_config(None, []))
    again = "interrupted .* Go on: refusal-lens run --resume --output '.*/my run'$"
    for read in (
        *(gather, RunFolder.read_directions, RunFolder.stored_activations),
        lambda run: draw_figure(run, "layer_profile"),
    ):
        with pytest.raises(RefusalLensError, match=again):
            read(run_folder)
