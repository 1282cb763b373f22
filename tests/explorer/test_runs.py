"""Runs as the explorer holds them: read, or fitted as `validate` does; nothing is written."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from explored_run import make_activations, make_run

from refusal_lens.errors import RefusalLensError
from refusal_lens.explorer.runs import N_RESAMPLES, explore_runs
from refusal_lens.prompts.groups import find_groups
from refusal_lens.runs.compare import open_runs
from refusal_lens.validation.separation import validate


def test_a_run_that_is_only_collected_is_fitted_to_what_validate_gives(tmp_path):
    run_folder = make_run(tmp_path / "run", is_fitted=False)
    projected = explore_runs([tmp_path / "run"])["run"].projected("difference_of_means")
    whole = make_activations(40, ("resid_post",), 4, ("last", "mean"), 16)
    # Twins and topics are held out as in the run's own fit.
    whole = replace(whole, groups=find_groups(run_folder.read_prompts()))
    separation, projections = validate(
        whole, clip_quantile=0.995, n_repeats=1, n_resamples=N_RESAMPLES
    )
    torch.testing.assert_close(projected.projections.values, projections.values)
    torch.testing.assert_close(projected.projections.thresholds, projections.thresholds)
    pd.testing.assert_frame_equal(projected.scores, separation.to_frame())


def test_a_fitted_run_is_read_and_not_fitted_again(folder, monkeypatch):
    monkeypatch.setattr("refusal_lens.explorer.runs.validate", None)
    (run,) = explore_runs([str(folder.path)]).values()
    assert run.projected(run.run_method).projections.is_held_out
    assert run.sites == ("resid_post", "mlp_out")
    assert run.best[0] in ("blocks.3.hook_resid_post", "blocks.3.hook_mlp_out")


def test_projections_of_other_prompts_are_refused(tmp_path):
    run_folder = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other", n=5)
    (run_folder.path / "prompts.json").write_bytes((other.path / "prompts.json").read_bytes())
    run_folder.record_files([run_folder.path / "prompts.json"])
    with pytest.raises(RefusalLensError, match=r"projections of other prompts .* \(80 and 10, or"):
        explore_runs([run_folder.path])


def test_runs_have_the_names_that_they_are_compared_under(folder, tmp_path):
    twins = [make_run(tmp_path / name / "one", n=4, n_layers=2).path for name in ("a", "b")]
    opened = explore_runs([folder.path, *twins])
    assert list(opened) == [run.name for run in open_runs([folder.path, *twins])]
    assert list(opened)[1:] == ["a/one", "b/one"]
    with pytest.raises(RefusalLensError, match="A run was given twice"):
        explore_runs([folder.path, folder.path / "."])
