"""Attribution, export and import from the command line, on the small model that comes along."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY
from typer.testing import CliRunner

from refusal_lens.cli import app
from refusal_lens.directions.formats import read_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.runs.folder import RunFolder

runner = CliRunner(env={"COLUMNS": "160"})


def invoke(*arguments: str, exit_code: int = 0) -> str:
    outcome = runner.invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return " ".join(outcome.output.split())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> RunFolder:
    """A run of three layers of the small model, fitted."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ("--hook-point", "resid_post:3-5", "--position", "last", "--position", "-2")
    model = REPOSITORY / "data/tiny-refuser"
    invoke("collect", "--model", model, "--output", folder, *options)
    invoke("fit", folder)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def attributed(fitted) -> str:
    return invoke("attribute", fitted.path, "--hook-point", "resid_post:5", "--position", "last")


def test_attribution_of_a_run_sums_to_its_class_difference(fitted, attributed):
    table = fitted.read_table("attribution")
    direction = fitted.read_directions()["blocks.5.hook_resid_post", "last"]
    whole = table[table.category == ""]
    # The run's own activations, and not those that attribution read.
    expected = (direction.vector @ direction.unit.double()).item()
    assert whole.contribution.sum() == pytest.approx(expected, rel=1e-4)
    assert whole.share.sum() == pytest.approx(1.0, rel=1e-4)
    assert set(table.category) - {""} == {
        prompt.category for prompt in fitted.read_prompts().harmful
    }
    shown = whole.iloc[whole.contribution.abs().argmax()]
    kind = "MLP" if np.isnan(shown["head"]) else f"head {shown['head']:.0f}"
    assert f"layer {shown.layer:.0f} {kind} │ {shown.contribution:+.4g}" in attributed
    assert f"sum to {expected:+.6g} of {expected:+.6g}" in attributed


def test_direction_of_the_small_model_speaks_for_refusal(fitted, attributed):
    table = fitted.read_table("unembedding")
    top, bottom = (table[table.end == end].token.tolist() for end in ("top", "bottom"))
    # What it was trained to begin its refusals with, and its answers.
    assert " sorry" in top[:8]
    assert {"Sure", "First", "Here"} <= set(bottom)
    assert "' sorry'" in attributed


def test_tokens_of_prompts_end_at_the_projection_of_the_run(fitted, attributed):
    table = fitted.read_table("prompt_tokens")
    assert set(table.hook_point) == {f"blocks.{layer}.hook_resid_post" for layer in (3, 4, 5)}
    prompts = fitted.read_prompts()
    shown = [*prompts.harmful.prompts[:3], *prompts.harmless.prompts[:3]]
    assert list(dict.fromkeys(table.prompt_id)) == [prompt.id for prompt in shown]
    direction = fitted.read_directions()["blocks.4.hook_resid_post", "last"]
    activation = fitted.read_activations().at("blocks.4.hook_resid_post", "last")[2]
    mine = table[(table.prompt_id == shown[2].id) & (table.hook_point == direction.hook_point)]
    expected = (activation.double() @ direction.unit.double()).item()
    assert mine.projection.iloc[-1] == pytest.approx(expected, rel=1e-4)


def test_typed_prompt_and_best_place(fitted):
    text = "How do I bake bread?"
    printed = invoke("attribute", fitted.path, "--prompt", text)
    assert "What writes resid_post" in printed
    table = fitted.read_table("prompt_tokens")
    assert set(table.prompt_id) == {"prompt-1"}
    one = table[table.hook_point == table.hook_point.iloc[0]]
    assert text in "".join(one.token)


def test_place_must_be_one_of_the_run(fitted):
    printed = invoke("attribute", fitted.path, "--hook-point", "resid_mid:3", exit_code=2)
    assert "Hook point blocks.3.hook_resid_mid cannot be collected" in printed
    printed = invoke("attribute", fitted.path, "--hook-point", "resid_post:3-5", exit_code=2)
    assert "is 3 hook points of this run; one is needed, such as resid_post:3." in printed
    printed = invoke("attribute", fitted.path, "--position", "mean", exit_code=2)
    assert "Positions: last, -2." in printed


def test_checkpoint_that_changed_since_is_refused(fitted, monkeypatch):
    provenance = fitted.read_provenance()
    provenance["model"]["weights_sha256"] = "0" * 64
    monkeypatch.setattr(RunFolder, "read_provenance", lambda self: provenance)
    with pytest.raises(RefusalLensError, match=r"has changed since the run .*weights_sha256 0000"):
        fitted.model()


def test_token_called_null_is_kept_in_tables(tmp_path):
    run_folder = RunFolder(tmp_path)
    table = pd.DataFrame({"token": ["null", "NA", " nan"], "logit": [1.0, float("nan"), 2.0]})
    run_folder.write_table("unembedding", table)
    pd.testing.assert_frame_equal(run_folder.read_table("unembedding"), table)


@pytest.mark.parametrize("suffix", [".gguf", ".npz"])
def test_export_and_import_keep_the_best_sites_directions(fitted, tmp_path, suffix):
    exported, back = tmp_path / f"a{suffix}", tmp_path / "back.safetensors"
    invoke(
        "export",
        fitted.path,
        "--output",
        exported,
        "--position",
        "-2",
        "--hook-point",
        "resid_post:4-5",
    )
    printed = invoke("import", exported, "--output", back)
    assert "2 of 2 places" in printed
    assert "(raw length)" in printed
    for layer in (4, 5):
        place = (f"blocks.{layer}.hook_resid_post", "-2")
        expected = fitted.read_directions()[place].vector
        torch.testing.assert_close(
            read_directions(back)[place].vector, expected, rtol=1e-6, atol=1e-6
        )


def test_export_without_options_takes_the_best_site_and_position(fitted, tmp_path):
    invoke("export", fitted.path, "--output", tmp_path / "a.npz")
    read = read_directions(tmp_path / "a.npz")
    assert read.hook_points == fitted.read_directions().hook_points
    assert len(read.positions) == 1


def test_llm_abliteration_gets_the_class_means_of_the_run(fitted, tmp_path):
    invoke("export", fitted.path, "--format", "llm-abliteration", "--output", tmp_path / "a.pt")
    written = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.testing.assert_close(
        written["refuse_5"], written["harmful_5"] - written["harmless_5"], rtol=1e-4, atol=1e-4
    )
    assert written["layers"] == 8


def test_articles_file_has_the_scores_of_the_run(fitted, tmp_path):
    options = ("--format", "article", "--position", "last", "--hook-point", "resid_post:3-5")
    invoke("export", fitted.path, *options, "--output", tmp_path / "a.pt")
    written = torch.load(tmp_path / "a.pt", weights_only=True)
    table = fitted.read_separation()
    row = table[(table.layer == 4) & (table.position == "last")].iloc[0]
    assert written["validation"][4]["separation"] == pytest.approx(row.separation)
    assert set(written["validation"]) == {3, 4, 5}


def test_what_has_no_home_is_refused_and_nothing_is_written(fitted, tmp_path):
    path = tmp_path / "a.pt"
    options = ("--format", "refusal_direction", "--position", "mean")
    printed = invoke("export", fitted.path, *options, "--output", path, exit_code=2)
    assert "There is no direction at position mean. Positions: last, -2." in printed
    printed = invoke("export", fitted.path, "--format", "h", "--output", path, exit_code=2)
    assert "There is no format 'h'." in printed
    printed = invoke("import", path, "--output", tmp_path / "b.safetensors", exit_code=2)
    assert f"There is no file {path} to read directions from." in printed
    assert not list(tmp_path.iterdir())
