"""Other projects' files, made by hand as those projects write them, come in at the right layers."""

import json
import pickle
import struct
import sys
import time
import types
import warnings
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import Direction, Directions, fit_directions, normalise
from refusal_lens.directions.formats import (
    FORMATS,
    from_steering_vector,
    read_directions,
    read_scores,
    take,
    to_steering_vector,
    write_directions,
)
from refusal_lens.errors import RefusalLensError, RefusalLensWarning

N_LAYERS, D_MODEL = 6, 16
RNG = torch.Generator().manual_seed(0)


def pre(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_pre"


def post(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def vector(seed: int, length: float = 5.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalise(torch.randn(D_MODEL, generator=generator, dtype=torch.float64)) * length


def grid(site: str, positions=("last",), provenance=None) -> Directions:
    """Directions of every layer; each vector knows its place."""
    vectors = torch.stack(
        [
            torch.stack([vector(100 * layer + column) for column in range(len(positions))])
            for layer in range(N_LAYERS)
        ]
    )
    return Directions(
        vectors,
        torch.ones(N_LAYERS, len(positions), dtype=torch.bool),
        tuple(f"blocks.{layer}.hook_{site}" for layer in range(N_LAYERS)),
        tuple(positions),
        clip_quantile=None,
        provenance=provenance
        or {
            "model": {"name": "m", "n_layers": N_LAYERS, "architecture": "Qwen2ForCausalLM"},
            "fit": {"method": "difference_of_means", "clip_quantile": None},
        },
    )


def quietly(do, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RefusalLensWarning)
        return do(*arguments, **options)


# --- refusal_direction ------------------------------------------------------------------------


def test_mean_differences_are_inputs_of_blocks_and_rows_are_positions_from_the_end(tmp_path):
    content = torch.randn(3, N_LAYERS, D_MODEL, dtype=torch.float64, generator=RNG)
    # At a template token nothing of the prompt has been read: a difference of rounding only.
    content[2, 0] = 1e-14
    torch.save(content, tmp_path / "mean_diffs.pt")
    read = read_directions(tmp_path / "mean_diffs.pt")
    assert read.hook_points == tuple(pre(layer) for layer in range(N_LAYERS))
    assert read.positions == ("last", "-2", "-3")
    for position, row in (("last", 2), ("-2", 1), ("-3", 0)):
        assert torch.equal(read[pre(4), position].vector, content[row, 4])
    assert read.is_kept[0].tolist() == [False, True, True]
    imported = read.provenance["imported"]
    assert (imported["format"], imported["file"]) == ("refusal_direction", "mean_diffs.pt")
    assert not imported["is_unit"]
    assert read.clip_quantile is None


def test_direction_with_its_metadata_leaves_the_storage_of_the_whole_behind(tmp_path):
    whole = torch.randn(5, 10, D_MODEL, dtype=torch.float64, generator=RNG)
    torch.save(whole[-2, 4], tmp_path / "direction.pt")
    (tmp_path / "direction_metadata.json").write_text('{\n    "pos": -2,\n    "layer": 4\n}')
    # Before: the file holds all of it.
    loaded = torch.load(tmp_path / "direction.pt", weights_only=True)
    assert loaded.untyped_storage().nbytes() == whole.numel() * 8
    read = read_directions(tmp_path / "direction.pt")
    (direction,) = read
    assert (direction.hook_point, direction.position) == (pre(4), "-2")
    assert torch.equal(direction.vector, whole[-2, 4])
    assert direction.vector.untyped_storage().nbytes() == D_MODEL * 8


def test_direction_without_metadata_needs_a_place(tmp_path):
    path = tmp_path / "direction.pt"
    torch.save(vector(1), path)
    with pytest.raises(RefusalLensError) as caught:
        read_directions(path)
    assert str(caught.value) == (
        f"The layer of {path} is in direction_metadata.json, which does not lie beside it. Put it "
        "there, or give hook_point and position (--hook-point, --position)."
    )
    (direction,) = read_directions(path, hook_point=post(2), position="-4")
    assert (direction.hook_point, direction.position) == (post(2), "-4")


def test_file_saved_on_a_gpu_opens_on_a_cpu(tmp_path):
    path, moved = tmp_path / "cpu.pt", tmp_path / "mean_diffs.pt"
    torch.save(torch.ones(1, 2, D_MODEL), path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(moved, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            # A pickled string: its opcode, its length, its letters.
            content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            target.writestr(name, content)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            torch.load(moved, weights_only=True)
    assert read_directions(moved).vectors.device.type == "cpu"


def test_published_scores_get_this_projects_names(tmp_path):
    path = tmp_path / "direction_evaluations.json"
    rows = [
        {
            "position": -1,
            "layer": 0,
            "refusal_score": 5.6,
            "steering_score": -13.9,
            "kl_div_score": 0.0,
        },
        {
            "position": -2,
            "layer": 10,
            "refusal_score": -10.5,
            "steering_score": 2.5,
            "kl_div_score": 0.07,
        },
    ]
    path.write_text(json.dumps(rows, indent=4))
    frame = read_scores(path)
    assert list(frame.columns) == [
        *("hook_point", "site", "layer", "position", "bypass", "induce", "kl")
    ]
    assert frame.iloc[1].tolist() == [pre(10), "resid_pre", 10, "-2", -10.5, 2.5, 0.07]
    assert frame.iloc[0].position == "last"
    path.write_text('{"layer": 3}')
    with pytest.raises(RefusalLensError, match=r"^direction_evaluations.json is a list of obj"):
        read_scores(path)


def test_output_of_a_block_is_written_as_the_input_of_the_next(tmp_path):
    directions = grid("resid_post", ("last", "-2"))
    with pytest.warns(RefusalLensWarning) as said:
        write_directions(directions, tmp_path / "mean_diffs.pt", "refusal_direction")
    written = torch.load(tmp_path / "mean_diffs.pt", weights_only=True)
    assert written.shape == (2, N_LAYERS, D_MODEL)
    assert written.dtype == torch.float64
    assert torch.equal(written[-1, 3], directions[post(2), "last"].vector)
    assert torch.equal(written[-2, 3], directions[post(2), "-2"].vector)
    assert written[:, 0].isnan().all()
    messages = {str(warning.message) for warning in said}
    assert messages == {
        f"Left out: {post(5)} has no home in refusal_direction: it ends with the input of the last "
        "block, and the last output is no block's input.",
        "No direction for rows 0: they are written as NaN.",
    }
    back = read_directions(tmp_path / "mean_diffs.pt")
    assert not back.is_kept[0].any()
    assert torch.equal(back[pre(3), "-2"].vector, directions[post(2), "-2"].vector)


def test_one_direction_is_written_with_its_metadata(tmp_path):
    direction = grid("resid_post", ("-2",))[post(3), "-2"]
    write_directions(direction, tmp_path / "direction.pt", "refusal_direction")
    written = torch.load(tmp_path / "direction.pt", weights_only=True)
    assert torch.equal(written, direction.vector)
    assert written.untyped_storage().nbytes() == D_MODEL * 8
    said = json.loads((tmp_path / "direction_metadata.json").read_text())
    assert said == {"pos": -2, "layer": 4}


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (
            ("mean", "last"),
            "Position mean has no home in refusal_direction, which counts from the end. Take last, "
            "-2, ...",
        ),
        (
            ("last", "-3"),
            "mean_diffs.pt holds the last positions without a gap, -n to -1; these are -3, -1. "
            "Collect those between, or export one direction.",
        ),
    ],
)
def test_positions_without_a_row(tmp_path, positions, expected):
    with pytest.raises(RefusalLensError) as caught:
        write_directions(grid("resid_pre", positions), tmp_path / "a.pt", "refusal_direction")
    assert str(caught.value) == expected
    assert not list(tmp_path.iterdir())


# --- llm-abliteration -------------------------------------------------------------------------


def test_llm_abliteration_comes_in(tmp_path):
    content = {"layers": N_LAYERS}
    for layer in range(N_LAYERS):
        harmful, harmless = vector(layer).float(), vector(50 + layer).float()
        content |= {f"harmful_{layer}": harmful, f"harmless_{layer}": harmless}
        content[f"refuse_{layer}"] = (harmful.double() - harmless.double()).float()
        content[f"refusenorm_{layer}"] = normalise(content[f"refuse_{layer}"])
    torch.save(content, tmp_path / "measured.pt")
    read = read_directions(tmp_path / "measured.pt")
    assert read.provenance["imported"]["format"] == "llm-abliteration"
    assert read.hook_points == tuple(pre(layer) for layer in range(N_LAYERS))
    assert torch.equal(read[pre(5), "last"].vector, content["refuse_5"].double())
    assert read.provenance["model"] == {"n_layers": N_LAYERS}


def planted(site: str) -> Activations:
    values = torch.randn(20, N_LAYERS, 1, D_MODEL, generator=RNG)
    is_harmful = torch.arange(20) < 10
    values[is_harmful] += 2
    names = tuple(f"blocks.{layer}.hook_{site}" for layer in range(N_LAYERS))
    provenance = {"model": {"name": "m", "n_layers": N_LAYERS}}
    return Activations(values, is_harmful, names, ("last",), provenance)


def test_llm_abliteration_goes_out_with_the_class_means(tmp_path):
    activations = planted("resid_pre")
    directions = fit_directions(activations)
    path = tmp_path / "measured.pt"
    write_directions(directions, path, "llm-abliteration", activations=activations)
    written = torch.load(path, weights_only=True)
    assert written["layers"] == N_LAYERS
    values = activations.at(pre(3), "last")
    torch.testing.assert_close(written["harmful_3"], values[:10].mean(0))
    torch.testing.assert_close(written["harmless_3"], values[10:].mean(0))
    torch.testing.assert_close(written["refuse_3"], written["harmful_3"] - written["harmless_3"])
    torch.testing.assert_close(written["refusenorm_3"], directions[pre(3), "last"].unit)
    assert {name.split("_")[-1] for name in written} == {"layers", *map(str, range(N_LAYERS))}
    with pytest.raises(RefusalLensError, match="holds the means of both classes"):
        write_directions(directions, path, "llm-abliteration")


# --- a row a layer ----------------------------------------------------------------------------


def test_persona_vectors_lose_the_row_after_the_final_norm(tmp_path):
    rows = torch.randn(N_LAYERS + 1, D_MODEL, generator=RNG)
    path = tmp_path / "evil_prompt_avg_diff.pt"
    torch.save(rows, path)
    with pytest.warns(RefusalLensWarning) as said:
        read = read_directions(path, "persona_vectors")
    assert str(said[0].message) == (
        f"Left out of {path}: index 6 (Hugging Face's last hidden state has gone through the final "
        "norm, and is no resid_post)."
    )
    assert read.hook_points == tuple(pre(layer) for layer in range(N_LAYERS))
    assert read.positions == ("mean",)
    assert torch.equal(read[pre(5), "mean"].vector, rows[5].double())
    with pytest.raises(RefusalLensError) as caught:
        read_directions(path, "persona_vectors", n_layers=7)
    assert str(caught.value) == (
        f"{path} has 7 rows, which is that of a model with 6 layers, and not of 7. Give the right "
        "file or format."
    )


def test_persona_vectors_go_out(tmp_path):
    directions = grid("resid_post")
    quietly(write_directions, directions, tmp_path / "a.pt", "persona_vectors")
    written = torch.load(tmp_path / "a.pt", weights_only=True)
    assert (written.shape, written.dtype) == ((N_LAYERS + 1, D_MODEL), torch.float32)
    # hidden_states[3] is what block 2 puts out.
    assert torch.equal(written[3], directions[post(2), "last"].vector.float())
    # The last output could only stand in the row that Hugging Face fills after the final norm.
    assert written[[0, N_LAYERS]].isnan().all()


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_assistant_axis_is_outputs_of_blocks(tmp_path, is_wrapped):
    rows = torch.randn(N_LAYERS, D_MODEL, generator=RNG).bfloat16()
    content = {"axis": rows, "metadata": {"model": "m", "n": 3}} if is_wrapped else rows
    torch.save(content, tmp_path / "axis.pt")
    read = read_directions(tmp_path / "axis.pt", None if is_wrapped else "assistant_axis")
    assert read.hook_points == tuple(post(layer) for layer in range(N_LAYERS))
    assert torch.equal(read[post(5), "last"].vector, rows[5].double())
    if is_wrapped:
        assert read.provenance["imported"]["metadata"] == {"model": "m", "n": 3}


def test_assistant_axis_goes_out(tmp_path):
    directions = grid("resid_pre")
    quietly(write_directions, directions, tmp_path / "axis.pt", "assistant_axis")
    written = torch.load(tmp_path / "axis.pt", weights_only=True)
    assert torch.equal(written["axis"][1], directions[pre(2), "last"].vector.float())
    assert written["axis"][N_LAYERS - 1].isnan().all()
    assert written["metadata"]["model"] == "m"


def test_bare_matrix_is_not_guessed_at(tmp_path):
    path = tmp_path / "rows.pt"
    torch.save(torch.ones(6, D_MODEL), path)
    with pytest.raises(RefusalLensError) as caught:
        read_directions(path)
    assert str(caught.value) == (
        f"{path} holds a tensor of shape [6, 16]: rows may be inputs of blocks (persona_vectors) "
        "or outputs (assistant_axis). Name the format (--format)."
    )


# --- activation-steering, steering-vectors ----------------------------------------------------


def svec(path, layers) -> dict:
    content = {
        "model_type": "llama",
        "directions": {str(k): normalise(vector(k)).tolist() for k in layers},
        "explained_variances": {str(k): 0.5 for k in layers},
    }
    path.write_text(json.dumps(content))
    return content


def test_svec_is_outputs_of_blocks_and_its_last_is_left_out(tmp_path):
    path = tmp_path / "a.svec"
    content = svec(path, range(N_LAYERS))
    with pytest.warns(RefusalLensWarning, match=r"index 5 .*after the final norm"):
        read = read_directions(path)
    assert read.hook_points == tuple(post(layer) for layer in range(N_LAYERS - 1))
    expected = torch.tensor(content["directions"]["4"], dtype=torch.float64)
    assert torch.equal(read[post(4), "last"].vector, expected)
    imported = read.provenance["imported"]
    assert imported["is_unit"]
    assert imported["explained_variances"]["3"] == 0.5
    # A file of some layers, of a model that is known to have more, loses nothing.
    svec(path, (2, 3))
    assert read_directions(path, n_layers=N_LAYERS).hook_points == (post(2), post(3))


def test_svec_goes_out_as_that_project_loads_it(tmp_path):
    directions = grid("resid_post")
    with pytest.warns(RefusalLensWarning, match=rf"{post(5)} has no home in svec"):
        write_directions(directions, tmp_path / "a.svec")
    content = json.loads((tmp_path / "a.svec").read_text())
    assert content["model_type"] == "qwen2"
    loaded = {int(k): np.array(v) for k, v in content["directions"].items()}
    assert {int(k) for k in content["explained_variances"]} == set(loaded) == {0, 1, 2, 3, 4}
    np.testing.assert_allclose(loaded[3], directions[post(3), "last"].unit.numpy())


@dataclass
class FakeSteeringVector:
    """Same fields as the library's own, which is no dependency."""

    layer_activations: dict
    layer_type: str = "decoder_block"


def test_steering_vector_objects_come_in_and_go_out(monkeypatch):
    activations = {2: vector(2).float(), 4: vector(4).float()}
    read = from_steering_vector(FakeSteeringVector(activations), position="-2")
    assert read.hook_points == (post(2), post(4))
    assert torch.equal(read[post(4), "-2"].vector, activations[4].double())
    with pytest.raises(RefusalLensError, match=r"layer type 'self_attn' have no certain home"):
        from_steering_vector(FakeSteeringVector(activations, "self_attn"))
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(RefusalLensError, match="pip install steering-vectors"):
        to_steering_vector(read)
    library = types.ModuleType("steering_vectors")
    library.SteeringVector = FakeSteeringVector
    monkeypatch.setitem(sys.modules, "steering_vectors", library)
    made = to_steering_vector(read)
    assert made.layer_type == "decoder_block"
    assert made.layer_activations.keys() == {2, 4}
    assert torch.equal(made.layer_activations[2], activations[2])


# --- GGUF -------------------------------------------------------------------------------------


def gguf_bytes(tensors: dict[str, np.ndarray], architecture: str = "controlvector") -> bytes:
    """Lay a GGUF file out by hand, from the format's description (version 3, little endian)."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("controlvector.model_hint") + struct.pack("<I", 8) + text("mistral"),
        text("controlvector.layer_count") + struct.pack("<II", 4, len(tensors)),
    ]
    infos, data = b"", b""
    for name, values in tensors.items():
        infos += text(name) + struct.pack("<I", values.ndim)
        infos += b"".join(struct.pack("<Q", size) for size in reversed(values.shape))
        infos += struct.pack("<IQ", 0, len(data))
        raw = values.astype("<f4").tobytes()
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    return head + b"\0" * (-len(head) % 32) + data


def test_control_vector_comes_in(tmp_path):
    tensors = {f"direction.{n}": vector(n).float().numpy() for n in (3, 1, 5)}
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(tensors))
    read = read_directions(tmp_path / "a.gguf")
    assert read.hook_points == (post(1), post(3), post(5))
    assert torch.equal(read[post(5), "last"].vector, vector(5).float().double())
    assert read.provenance["imported"]["model_type"] == "mistral"


def test_control_vector_round_trip_at_raw_length(tmp_path):
    gguf = pytest.importorskip("gguf")
    directions = grid("resid_post", ("-2",))
    with pytest.warns(RefusalLensWarning) as said:
        write_directions(directions, tmp_path / "a.gguf")
    assert str(said[0].message) == (
        f"Left out: {post(0)} has no home in gguf: llama.cpp adds control vectors at the outputs "
        "of blocks from block 1 on."
    )
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "qwen2"
    assert fields["controlvector.layer_count"] == 5
    assert fields["refusal_lens.recommended_scale"] == pytest.approx(1 / 5)
    assert [tensor.name for tensor in reader.tensors] == [f"direction.{n}" for n in range(1, 6)]
    for tensor in reader.tensors:
        expected = directions[post(int(tensor.name[10:])), "-2"].vector.float().numpy()
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        np.testing.assert_array_equal(tensor.data, expected)
        assert np.linalg.norm(tensor.data) == pytest.approx(5.0)
    back = read_directions(tmp_path / "a.gguf")
    assert back.positions == ("-2",)
    assert torch.equal(back.vectors, directions.vectors[1:].float().double())


def test_input_of_a_block_is_added_at_the_output_before_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    direction = grid("resid_pre")[pre(4), "last"]
    write_directions(direction, tmp_path / "a.gguf")
    (tensor,) = gguf.GGUFReader(tmp_path / "a.gguf").tensors
    assert tensor.name == "direction.3"


@pytest.mark.parametrize(
    ("hook_point", "reason"),
    [
        (post(0), "llama.cpp adds control vectors at the outputs of blocks from block 1 on."),
        (pre(1), "llama.cpp adds control vectors at the outputs of blocks from block 1 on."),
        (pre(0), "llama.cpp adds control vectors at the outputs of blocks from block 1 on."),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused(tmp_path, hook_point, reason):
    with pytest.raises(RefusalLensError) as caught:
        write_directions(Direction(vector(1), hook_point, "last"), tmp_path / "a.gguf")
    assert str(caught.value) == f"{hook_point} has no home in gguf: {reason}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("site", ["resid_mid", "attn_out", "mlp_out"])
@pytest.mark.parametrize("name", ["gguf", "svec", "persona_vectors", "refusal_direction"])
def test_places_inside_a_block_have_no_home(tmp_path, site, name):
    with pytest.raises(RefusalLensError) as caught:
        write_directions(grid(site)[f"blocks.3.hook_{site}", "last"], tmp_path / "a", name)
    assert str(caught.value) == (
        f"blocks.3.hook_{site} has no home in {name}, which holds the stream between blocks only: "
        "resid_pre or resid_post."
    )


def test_unit_vectors_are_said_to_be_too_short_for_llama_cpp(tmp_path):
    svec(tmp_path / "a.svec", range(2, 5))
    read = quietly(read_directions, tmp_path / "a.svec", n_layers=8)
    with pytest.warns(RefusalLensWarning, match=r"^a.svec held unit vectors only"):
        write_directions(read, tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gguf_bytes({}, "llama"), "is a GGUF file of llama; a control vector's"),
        (gguf_bytes({"token_embd": np.ones(3)}), "holds token_embd of shape"),
        (gguf_bytes({"direction.2": np.ones((2, 3))}), r"holds direction.2 of shape \[2, 3\]"),
        (gguf_bytes({"direction.2": np.ones(300)})[:-800], "is no whole GGUF file"),
        (b"not a model", "is no whole GGUF file"),
    ],
)
def test_other_gguf_files_are_refused(tmp_path, content, expected):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(RefusalLensError, match=expected):
        read_directions(tmp_path / "a.gguf")


# --- NumPy, the article, this project ---------------------------------------------------------


def test_npz_round_trip_keeps_everything(tmp_path):
    directions = fit_directions(planted("resid_mid"), clip_quantile=0.9)
    write_directions(directions, tmp_path / "a.npz")
    arrays = np.load(tmp_path / "a.npz", allow_pickle=False)
    name = "blocks.2.hook_resid_mid"
    np.testing.assert_array_equal(arrays[name][0], directions[name, "last"].vector.numpy())
    back = read_directions(tmp_path / "a.npz")
    assert torch.equal(back.vectors, directions.vectors)
    assert torch.equal(back[name, "last"].unit, directions[name, "last"].unit)
    assert back.provenance["model"] == {"name": "m", "n_layers": N_LAYERS}


def test_npy_needs_a_place(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.stack([vector(1).numpy(), vector(2).numpy()]))
    with pytest.raises(RefusalLensError, match=r"shape \[2, 16\] and no word on where it stands"):
        read_directions(path)
    read = read_directions(path, hook_point=post(3), position="-2")
    assert (read.hook_points, read.positions) == ((post(3), post(4)), ("-2",))
    assert torch.equal(read[post(4), "-2"].vector, vector(2))
    direction = read[post(4), "-2"]
    write_directions(direction, path)
    np.testing.assert_array_equal(np.load(path), vector(2).numpy())
    with pytest.raises(RefusalLensError, match=r"^A .npy file holds one array"):
        write_directions(read, path)


def test_articles_file_keeps_any_site_and_its_clip(tmp_path):
    for site in ("resid_mid", "attn.hook_z"):
        read = Directions(
            torch.stack([vector(1), vector(2)])[:, None],
            torch.ones(2, 1, dtype=torch.bool),
            (f"blocks.0.hook_{site}", f"blocks.5.hook_{site}")
            if "." not in site
            else (f"blocks.0.{site}", f"blocks.5.{site}"),
            ("mean",),
            clip_quantile=0.5,
        )
        write_directions(read, tmp_path / "a.pt", "article", n_layers=N_LAYERS)
        back = read_directions(tmp_path / "a.pt")
        assert (back.hook_points, back.positions) == (read.hook_points, read.positions)
        assert torch.equal(back.vectors, read.vectors)
        # Before: a clip that no provenance told of was lost on the way.
        assert back.clip_quantile == 0.5


def test_own_file_round_trip(tmp_path):
    directions = grid("resid_post", ("last", "-2"))
    write_directions(directions, tmp_path / "a.safetensors")
    assert torch.equal(read_directions(tmp_path / "a.safetensors").vectors, directions.vectors)
    (tmp_path / "b.safetensors").write_bytes(b"nothing")
    with pytest.raises(RefusalLensError, match="b.safetensors"):
        read_directions(tmp_path / "b.safetensors")


# --- what is never done -----------------------------------------------------------------------


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["torch", "legacy torch", "pickle", "npz", "npy"])
def test_pickles_are_never_opened(tmp_path, kind):
    ran, path = tmp_path / "ran", tmp_path / "abliterator.pth"
    content = {"cache": Payload(str(ran)), "layers": 3}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    elif kind == "npz":
        path = tmp_path / "a.npz"
        np.savez(path, blocks=np.array([Payload(str(ran))], dtype=object))
    elif kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, np.array([Payload(str(ran))], dtype=object))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    ran.unlink(missing_ok=True)
    with pytest.raises(RefusalLensError, match="pickle"):
        read_directions(path)
    for name in FORMATS:
        with pytest.raises(RefusalLensError):
            read_directions(path, name, hook_point=post(1))
    assert not ran.exists()


def test_half_a_file_is_refused(tmp_path):
    path = tmp_path / "mean_diffs.pt"
    torch.save(torch.ones(2, 3, 400), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(RefusalLensError, match="is no file that torch.save wrote whole"):
        read_directions(path)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "llm-abliteration"])
def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch, name):
    path = tmp_path / f"a{FORMATS[name].suffixes[0]}"
    directions = take(grid("resid_post"), [post(3)], ["last"])
    quietly(write_directions, directions, path, name)
    before = path.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RefusalLensError, match="No space left"):
        quietly(write_directions, take(grid("resid_post"), [post(4)], ["last"]), path, name)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_same_place_twice_is_refused(tmp_path):
    twice = [Direction(vector(1), post(2), "last"), Direction(vector(2), pre(3), "last")]
    with pytest.raises(RefusalLensError) as caught:
        write_directions(twice, tmp_path / "a.gguf")
    assert str(caught.value) == (
        f"{post(2)} and {pre(3)} are the same place; gguf holds one direction there. Choose one "
        "site."
    )
    with pytest.raises(RefusalLensError, match=r"these are of last, mean. Choose one."):
        write_directions(grid("resid_post", ("last", "mean")), tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, r"a.pt may be of any of these formats: article, refusal_direction, .* Name one"),
        ("heretic", "There is no format 'heretic'. There are: article, refusal_direction"),
    ],
)
def test_format_that_is_not_known(tmp_path, name, expected):
    with pytest.raises(RefusalLensError, match=expected):
        write_directions(grid("resid_post"), tmp_path / "a.pt", name)


def test_number_of_layers_is_asked_for_where_it_matters(tmp_path):
    bare = grid("resid_pre", provenance={"nothing": True})
    with pytest.raises(RefusalLensError) as caught:
        write_directions(bare, tmp_path / "a.pt", "persona_vectors")
    assert str(caught.value) == (
        "persona_vectors needs to know how many layers the model has. Give n_layers (--n-layers)."
    )
    quietly(write_directions, bare, tmp_path / "a.pt", "persona_vectors", n_layers=N_LAYERS)
    assert torch.load(tmp_path / "a.pt", weights_only=True).shape[0] == N_LAYERS + 1


# --- files from anywhere ----------------------------------------------------------------------


def bomb(path, name):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(name, bytes(300 * 2**20))


def hostile(path, kind):
    """Write a file that is made to break its reader, and return its path."""
    many = {"layers": 10**12, "refuse_0": torch.ones(8)}
    named = {"blocks.1.hook_resid_post": np.ones((1, 8))}
    makers = {
        "layers.pt": lambda at: torch.save(many, at),
        "expanded.pt": lambda at: torch.save(torch.ones(1).expand(10**6, 10**6), at),
        "nan.pt": lambda at: torch.save(torch.full((2, 3, 8), torch.nan), at),
        "infinite.pt": lambda at: torch.save(torch.full((2, 3, 8), torch.inf), at),
        "complex.pt": lambda at: torch.save(torch.ones(2, 3, 8, dtype=torch.complex64), at),
        "empty.pt": lambda at: torch.save(torch.ones(2, 3, 0), at),
        "words.pt": lambda at: torch.save({"layers": 1, "refuse_0": "no"}, at),
        "strange.pt": lambda at: torch.save({"num_layers": "x", "directions": {"a": 1}}, at),
        "bomb.npz": lambda at: bomb(at, "blocks.1.hook_resid_post.npy"),
        "bomb.pt": lambda at: bomb(at, "archive/data.pkl"),
        "header.npz": lambda at: np.savez(at, header="[" * 50_000, **named),
        "words.npz": lambda at: np.savez(at, **{"blocks.1.hook_resid_post": ["a"]}),
        "complex.npz": lambda at: np.savez(at, **{"blocks.1.hook_resid_post": [[1j] * 8]}),
        "deep.svec": lambda at: at.write_text('{"directions":' * 50_000),
        "words.svec": lambda at: at.write_text('{"directions": {"1": [1, 2], "2": [3]}}'),
        "long.svec": lambda at: at.write_text(json.dumps({"directions": {"7" * 5000: [1.0]}})),
        "counts.gguf": lambda at: at.write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40) + bytes(100)
        ),
        "list.gguf": lambda at: at.write_bytes(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**40)
        ),
        "pointer.safetensors": lambda at: at.write_text(
            "version https://git-lfs.github.com/spec/v1"
        ),
        "cut.safetensors": lambda at: at.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
    }
    makers[kind](path / kind)
    return path / kind


KINDS = [
    *("layers.pt", "expanded.pt", "nan.pt", "infinite.pt", "complex.pt", "empty.pt", "words.pt"),
    *("strange.pt", "bomb.npz", "bomb.pt", "header.npz", "words.npz", "complex.npz", "deep.svec"),
    *("words.svec", "long.svec", "counts.gguf", "list.gguf", "pointer.safetensors"),
    "cut.safetensors",
]


@pytest.mark.parametrize("kind", KINDS)
def test_files_made_to_break_a_reader_are_refused_at_once(tmp_path, kind):
    path, begun = hostile(tmp_path, kind), time.monotonic()
    with pytest.raises(RefusalLensError) as caught:
        read_directions(path)
    assert time.monotonic() - begun < 5
    assert len(str(caught.value)) < 1000


def test_numbers_of_either_byte_order_are_honest(tmp_path):
    values = np.arange(8, dtype=">f8")[None]
    np.savez(tmp_path / "a.npz", **{"blocks.1.hook_resid_post": values})
    found = read_directions(tmp_path / "a.npz")["blocks.1.hook_resid_post", "last"]
    assert found.vector.tolist() == list(range(8))


def test_a_single_row_is_a_direction_where_its_place_is_told(tmp_path):
    torch.save(torch.arange(8.0)[None], tmp_path / "direction.pt")
    found = read_directions(tmp_path / "direction.pt", hook_point="blocks.2.hook_resid_pre")
    assert found["blocks.2.hook_resid_pre", "last"].vector.tolist() == list(range(8))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_file_copied_out_of_its_run_tells_a_changed_number(tmp_path, name):
    path = tmp_path / name
    directions = take(grid("resid_post"), [post(3)], ["last"])
    quietly(write_directions, directions, path, "article" if name == "a.pt" else None)
    read_directions(path)
    if name == "a.pt":
        saved = torch.load(path, weights_only=True)
        saved["raw_directions"][3][0] += 1e-6
        torch.save(saved, path)
    else:
        content = bytearray(path.read_bytes())
        content[-20] ^= 1
        path.write_bytes(content)
    with pytest.raises(RefusalLensError, match=r"a\.\w+ is not what was written"):
        read_directions(path)
