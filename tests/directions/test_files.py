"""Directions on disk: they say what they are, and whose."""

import json
import re

import pytest
import torch
from conftest import make_tokenizer, save_checkpoint
from safetensors import safe_open
from typer.testing import CliRunner

from refusal_lens import load_direction, load_directions, load_model
from refusal_lens.cli import app
from refusal_lens.directions.direction import Directions, fit_directions
from refusal_lens.directions.formats import read_directions, save_directions, write_directions
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.models.hook_points import short_name
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.fit import with_record
from refusal_lens.validation.best_place import choose_best
from refusal_lens.validation.separation import validate


@pytest.fixture
def fitted(activations):
    """Directions with their record, the scores and the best place."""
    separation, _ = validate(activations, n_folds=2)
    best = choose_best(separation, 4)
    directions = with_record(
        fit_directions(activations, clip_quantile=0.9, method="lda"),
        separation.to_frame(),
        best,
        validation={"n_folds": 2, "seed": 7},
        versions={"torch": "2.0"},
    )
    return directions, separation, best


@pytest.fixture
def saved(fitted, tmp_path):
    directions, separation, _ = fitted
    run = RunFolder(tmp_path)
    run.write_directions(directions)
    run.write_refusal_direction(directions, separation)
    return tmp_path


def test_header_says_everything_without_the_package(fitted, saved, model, prompts):
    with safe_open(saved / "directions.safetensors", framework="pt") as file:
        header = file.metadata()
    assert (header["method"], header["clip_quantile"]) == ("lda", "0.9")
    record = json.loads(header["provenance"])
    assert record["model"]["weights_sha256"] == model.load_record.weights_sha256
    assert (record["model"]["dtype"], record["model"]["processing"]) == ("float32", "none")
    assert record["prompts"]["harmful"] == {"n": 4, "sha256": prompts.harmful.sha256}
    assert record["fit"]["n_harmless"] == 4
    assert len(record["chat_template"]["sha256"]) == 64
    assert record["chat_template"]["example"].startswith("<|im_start|>user\nHow do I steal")
    assert record["tokens_read"]["last"]["tokens"] == "\n"
    assert record["validation"] == {"n_folds": 2, "seed": 7}
    assert record["versions"] == {"torch": "2.0"}
    directions, separation, best = fitted
    assert record["best"] == {"hook_point": best.hook_point, "position": best.position}
    place = record["places"][best.hook_point][best.position]
    norm = directions[best.hook_point, best.position].vector.norm().item()
    assert place["raw_norm"] == pytest.approx(norm)
    assert place["metrics"]["separation"] == best.separation
    assert isinstance(place["metrics"]["is_valid"], bool)


def test_both_layouts_give_the_same_direction(fitted, saved):
    directions, _, best = fitted
    expected = directions[best.hook_point, best.position]
    for name in ("directions.safetensors", "refusal_direction.pt"):
        loaded = load_direction(saved / name)
        assert (loaded.hook_point, loaded.position) == (best.hook_point, best.position)
        assert (loaded.method, loaded.clip_quantile) == ("lda", 0.9)
        assert torch.equal(loaded.vector, expected.vector)
        assert torch.equal(loaded.unit, expected.unit)
        assert loaded.provenance["best"] == directions.provenance["best"]


def test_any_place_can_be_asked_for(fitted, saved):
    place = ("blocks.1.hook_resid_post", "mean")
    loaded = load_direction(saved / "directions.safetensors", hook_point=place[0], position="mean")
    assert torch.equal(loaded.vector, fitted[0][place].vector)
    with pytest.raises(RefusalLensError, match=r"There is no direction at blocks\.9"):
        load_direction(saved / "directions.safetensors", hook_point="blocks.9.hook_resid_post")


LAST = "index 3 .the article's scripts read the last layer after the final norm"


@pytest.fixture
def seed_file(tmp_path):
    """What the article's scripts write: `hidden_states`, unit vectors, and no word on the place."""
    units = {
        layer: torch.nn.functional.normalize(torch.arange(1.0, 33.0) - layer, dim=0)
        for layer in range(4)
    }
    content = {"model": "theirs", "num_layers": 4, "directions": units, "validation": {}}
    torch.save(content, tmp_path / "theirs.pt")
    return tmp_path / "theirs.pt", units


ROADS = {"load_directions": load_directions, "read_directions": read_directions}


@pytest.mark.parametrize("road", ROADS)
def test_the_articles_own_file_has_no_last_layer_and_no_raw_vectors(seed_file, road):
    path, units = seed_file
    with pytest.warns(RefusalLensWarning, match=LAST):
        loaded = ROADS[road](path)
    # Before: load_directions gave the last layer as resid_post, and all as if they were raw.
    assert loaded.hook_points == tuple(f"blocks.{layer}.hook_resid_post" for layer in range(3))
    assert loaded.provenance["imported"]["is_unit"]
    assert loaded.clip_quantile is None
    for layer in range(3):
        unit = loaded[f"blocks.{layer}.hook_resid_post", "last"].unit
        torch.testing.assert_close(unit, units[layer])


def test_one_direction_of_the_articles_own_file(seed_file):
    path, units = seed_file
    with pytest.warns(RefusalLensWarning, match=LAST):
        loaded = load_direction(path, hook_point="blocks.2.hook_resid_post", position="last")
    torch.testing.assert_close(loaded.vector, units[2].double())
    assert loaded.provenance["imported"]["is_unit"]
    with (
        pytest.warns(RefusalLensWarning, match=LAST),
        pytest.raises(RefusalLensError, match="names no best place. Give hook_point and position"),
    ):
        load_direction(path)
    with (
        pytest.warns(RefusalLensWarning, match=LAST),
        pytest.raises(RefusalLensError, match=r"There is no direction at blocks\.3"),
    ):
        load_direction(path, hook_point="blocks.3.hook_resid_post", position="last")


@pytest.mark.filterwarnings("ignore:Left out of")
def test_import_and_inspect_say_what_the_articles_own_file_lacks(seed_file, tmp_path):
    path, _ = seed_file
    imported = tmp_path / "imported.safetensors"
    run = CliRunner(env={"COLUMNS": "200"})
    outcome = run.invoke(app, ["import", str(path), "--output", str(imported)])
    assert outcome.exit_code == 0, outcome.output
    assert "(unit vectors)" in outcome.output
    assert load_directions(imported).hook_points[-1] == "blocks.2.hook_resid_post"
    for source in (path, imported):
        outcome = run.invoke(app, ["inspect", str(source)])
        assert "theirs.pt (article, unit vectors); left out: index 3" in outcome.output
        assert "blocks.3" not in outcome.output


@pytest.mark.parametrize("road", ["load", "read", "import", "export", "run folder"])
def test_file_of_a_run_is_the_run_by_every_road(fitted, saved, road, tmp_path):
    directions, _, best = fitted
    source, target = saved / "refusal_direction.pt", tmp_path / "back"
    if road == "load":
        loaded = load_directions(source)
    elif road == "read":
        loaded = read_directions(source)
    elif road == "run folder":
        RunFolder(target).write_directions(read_directions(source))
        loaded = RunFolder(target).read_directions()
    else:
        target = target.with_suffix(".safetensors" if road == "import" else ".pt")
        options = [] if road == "import" else ["--format", "article"]
        command = [road, str(source), "--output", str(target), *options]
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
        loaded = load_directions(target)
    # All layers: they are of the stream, the last too. Before, an import lost the provenance.
    column = directions.positions.index(best.position)
    assert loaded.hook_points == directions.hook_points
    assert torch.equal(loaded.vectors[:, 0], directions.vectors[:, column])
    assert (loaded.method, loaded.clip_quantile) == ("lda", 0.9)
    # A header of JSON has lists for tuples.
    assert json.dumps(loaded.provenance) == json.dumps(directions.provenance)


def test_writing_a_run_and_exporting_it_give_one_file(fitted, saved, tmp_path):
    directions, separation, best = fitted
    chosen = [each for each in directions if each.position == best.position]
    write_directions(chosen, tmp_path / "b.pt", "article", scores=separation.to_frame())
    first, second = (
        torch.load(path, weights_only=True)
        for path in (saved / "refusal_direction.pt", tmp_path / "b.pt")
    )
    assert first.keys() == second.keys()
    for key in first.keys() - {"directions", "raw_directions"}:
        assert str(first[key]) == str(second[key]), key  # as text: NaN is no equal of itself
    for key in ("directions", "raw_directions"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(first[key][layer], second[key][layer]) for layer in first[key])
    assert first["best_layer"] == best.layer


def test_its_own_model_takes_it_without_a_word(saved, model):
    assert load_directions(saved / "directions.safetensors", model).hook_points
    assert load_direction(saved / "refusal_direction.pt", model).hook_point


def test_another_model_of_the_same_shape_is_warned_of_by_both_names(saved, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    save_checkpoint(folder, "llama")
    other = load_model(folder, device="cpu")
    names = (model.load_record.name, other.load_record.name)
    with pytest.warns(RefusalLensWarning) as caught:
        load_direction(saved / "directions.safetensors", other)
    assert str(caught[0].message) == (
        f"These directions were fitted to {names[0]} and are used with {names[1]}: its weights "
        "are others. Their scores do not hold here; validate them on this model's activations."
    )


def test_moved_checkpoint_is_the_same_model(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moved")
    save_checkpoint(folder, "qwen2", make_tokenizer())
    assert load_directions(saved / "directions.safetensors", load_model(folder, device="cpu"))


def test_folded_weights_are_warned_of(saved, checkpoint):
    folded = load_model(checkpoint, device="cpu", processing="folded")
    with pytest.warns(RefusalLensWarning, match=r"processed otherwise \(model.processing\)"):
        load_directions(saved / "directions.safetensors", folded)


def test_another_d_model_is_refused(fitted, model, tmp_path):
    directions = fitted[0]
    wide = Directions(
        torch.randn(1, 1, 48).double(),
        torch.ones(1, 1, dtype=torch.bool),
        ("blocks.0.hook_resid_post",),
        ("last",),
        provenance={"model": {"name": "wide"}},
    )
    save_directions(tmp_path / "wide.safetensors", wide)
    with pytest.raises(RefusalLensError) as caught:
        load_directions(tmp_path / "wide.safetensors", model)
    assert str(caught.value) == (
        f"These directions have d_model 48 (from wide), but {model.load_record.name} has d_model "
        "32. Load the model they were fitted to."
    )
    assert directions.vectors.shape[-1] == 32


def test_hook_point_that_the_model_lacks_is_refused(model, tmp_path):
    deep = Directions(
        torch.randn(2, 1, 32).double(),
        torch.ones(2, 1, dtype=torch.bool),
        ("blocks.3.hook_resid_post", "blocks.30.hook_resid_post"),
        ("last",),
        provenance={"model": {"name": "deep"}, "best": None},
    )
    path = tmp_path / "deep.safetensors"
    save_directions(path, deep)
    with pytest.raises(RefusalLensError) as caught:
        load_directions(path, model)
    assert str(caught.value) == (
        "These directions stand at blocks.30.hook_resid_post (of deep), which "
        f"{model.load_record.name} does not have: its layers are 0 to 3."
    )
    # One that it has can be used, with a word about whose it is.
    with pytest.warns(RefusalLensWarning, match="fitted to deep"):
        load_direction(path, model, hook_point="blocks.3.hook_resid_post", position="last")


class Payload:
    """What must never be unpickled."""


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_file_that_is_something_else_is_refused(tmp_path, name):
    path = tmp_path / name
    torch.save({"directions": Payload()}, path)
    with pytest.raises(RefusalLensError, match=r"holds pickled objects|holds no directions"):
        load_directions(path)
    with pytest.raises(RefusalLensError, match="There is no file"):
        load_directions(tmp_path / "missing.pt")


@pytest.mark.parametrize("name", ["directions.safetensors", "refusal_direction.pt"])
def test_inspect_prints_the_record(saved, fitted, name):
    outcome = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["inspect", str(saved / name)])
    assert outcome.exit_code == 0, outcome.output
    record, best = fitted[0].provenance, fitted[2]
    for said in (
        *("Qwen2ForCausalLM", record["model"]["weights_sha256"], "lda", "0.9", "float32"),
        *(record["prompts"]["harmless"]["sha256"], record["chat_template"]["sha256"]),
        *(r"How do I steal a car?", "n_folds 2, seed 7", "torch 2.0"),
        *(f"{short_name(best.hook_point)}{best.position}*", f"{best.separation:.4f}"),
    ):
        # The width of a column hangs on that of the path: words may be broken anywhere.
        assert "".join(said.split()) in "".join(re.sub("[│]", "", outcome.output).split()), said
    norm = fitted[0][best.hook_point, best.position].vector.norm().item()
    assert f"{norm:.4g}" in outcome.output


def test_inspect_of_a_missing_file_is_one_sentence(tmp_path):
    outcome = CliRunner().invoke(app, ["inspect", str(tmp_path / "none.pt")])
    assert outcome.exit_code == 2
    assert "Traceback" not in outcome.output
