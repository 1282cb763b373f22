"""Selectors become names that exist and fire, or are refused with what exists."""

import pytest
import torch
from conftest import save_checkpoint

from refusal_lens.errors import RefusalLensError
from refusal_lens.models.hook_points import (
    collectable_hook_points,
    head_of,
    hooks_at,
    layer_of,
    place_index,
    read_at,
    resolve_hook_points,
    resolve_of_one_width,
    select_hook_points,
    short_name,
    site_of,
    stop_layer,
    width_of,
)
from refusal_lens.models.loading import load_model

WIDE = "it does not hold one vector a token"


def posts(*layers: int) -> tuple[str, ...]:
    return tuple(f"blocks.{layer}.hook_resid_post" for layer in layers)


def heads(site: str, layer: int, *indices: int) -> tuple[str, ...]:
    return tuple(f"blocks.{layer}.attn.{site}.{head}" for head in indices)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("hook_z:2.3", heads("hook_z", 2, 3)),
        ("hook_z:2", heads("hook_z", 2, 0, 1, 2, 3)),
        ("blocks.2.attn.hook_z", heads("hook_z", 2, 0, 1, 2, 3)),
        ("blocks.2.attn.hook_z.1", heads("hook_z", 2, 1)),
        ("blocks.[01].attn.hook_z.3", heads("hook_z", 0, 3) + heads("hook_z", 1, 3)),
        ("hook_result:0.1,3.0", heads("hook_result", 0, 1) + heads("hook_result", 3, 0)),
        ("attn.hook_result:1-1", heads("hook_result", 1, 0, 1, 2, 3)),
        ("hook_post:3", ("blocks.3.mlp.hook_post",)),
        ("ln1.hook_normalized:3", ("blocks.3.ln1.hook_normalized",)),
        ("resid_post", posts(0, 1, 2, 3)),
        ("resid_post:1-2", posts(1, 2)),
        ("resid_post:3", posts(3)),
        ("resid_post:0,2-3", posts(0, 2, 3)),
        ("blocks.*.hook_resid_post", posts(0, 1, 2, 3)),
        ("blocks.[01].hook_resid_post", posts(0, 1)),
        ("blocks.2.hook_resid_post", posts(2)),
        ("hook_embed", ("hook_embed",)),
        (["resid_post:1", "blocks.*.hook_resid_post"], posts(1, 0, 2, 3)),
        (["attn_out:1", "resid_post:0"], ("blocks.1.hook_attn_out", *posts(0))),
    ],
)
def test_selectors(model, selector, expected):
    assert resolve_hook_points(model, selector) == expected


def test_everything_collectable_fires_and_is_as_wide_as_it_is_said_to_be(model):
    names = collectable_hook_points(model)
    seen = {}
    for name in names:
        hook_name, read = read_at(model, name)
        model.run_with_hooks(
            torch.tensor([[1, 2, 3]]),
            fwd_hooks=[(hook_name, lambda x, hook: seen.update({name: read(x).shape}))],  # noqa: B023
        )
    assert seen == {name: (1, 3, width_of(model, name)) for name in names}
    assert {"blocks.0.hook_mlp_out", "hook_embed", "ln_final.hook_normalized"} <= set(names)
    assert {width_of(model, name) for name in names} == {32, 8, 48}


def test_hook_points_of_two_widths_are_no_one_run(model):
    with pytest.raises(RefusalLensError) as caught:
        resolve_of_one_width(model, ["resid_post:1", "hook_result:1", "hook_z:0-1"])
    assert str(caught.value) == (
        "One run holds hook points of one width, and blocks.1.hook_resid_post has 32 components, "
        "blocks.0.attn.hook_z.0 has 8 components. Collect each width in a run of its own."
    )
    assert len(resolve_of_one_width(model, ["resid_post:1", "hook_result:1", "hook_embed"])) == 6


def test_what_was_collected_of_some_heads_is_found_by_their_selectors():
    stored = heads("hook_z", 1, 0, 2)
    assert select_hook_points(stored, "hook_z:1", "") == stored
    assert place_index(stored, ["last"], ("hook_z:1.2", "last"), "") == (1, 0)
    with pytest.raises(RefusalLensError, match=r"Nearest that can: blocks.1.attn.hook_z.[02]"):
        select_hook_points(stored, "hook_z:1.1", "")


@pytest.mark.parametrize(
    ("selector", "reason"),
    [
        ("blocks.0.attn.hook_q", WIDE),
        ("hook_q", f"it is blocks.*.attn.hook_q here, and {WIDE}"),
        ("hook_q:8", f"it is blocks.*.attn.hook_q here, and {WIDE}"),
        ("hook_normalized", "it is written blocks.*.ln1.hook_normalized"),
        ("blocks.0.mlp.hook_pre", WIDE),
        ("blocks.0.attn.hook_z.4", "this model has no such hook point"),
        (
            "blocks.0.hook_mlp_in",
            "it fires only with cfg.use_hook_mlp_in on (model.set_use_hook_mlp_in(True))",
        ),
        ("mlp_in", "it fires only with cfg.use_hook_mlp_in on (model.set_use_hook_mlp_in(True))"),
        ("blocks.0.hook_resid_pots", "this model has no such hook point"),
    ],
)
def test_what_cannot_be_collected_is_refused_by_name(model, selector, reason):
    name = "blocks.0.hook_mlp_in" if selector == "mlp_in" else selector
    with pytest.raises(RefusalLensError) as caught:
        resolve_hook_points(model, selector)
    assert str(caught.value).startswith(f"Hook point {name} cannot be collected: {reason}. ")


def test_refusal_names_the_nearest_that_exist(model):
    with pytest.raises(RefusalLensError) as caught:
        resolve_hook_points(model, "blocks.0.hook_resid_pots")
    assert str(caught.value) == (
        "Hook point blocks.0.hook_resid_pots cannot be collected: this model has no such hook "
        "point. Nearest that can: blocks.0.hook_resid_post, blocks.0.hook_resid_pre, "
        "blocks.0.hook_resid_mid. Sites: resid_pre, resid_mid, resid_post, attn_out, mlp_out "
        "(layers 0 to 3)."
    )


def test_a_word_is_likely_a_misspelt_site(model):
    with pytest.raises(RefusalLensError, match="Nearest that can: resid_post, resid_"):
        resolve_hook_points(model, "resid_pots")


def test_gated_hook_point_is_taken_once_its_flag_is_on(checkpoint):
    model = load_model(checkpoint, device="cpu")
    model.set_use_hook_mlp_in(True)
    assert resolve_hook_points(model, "mlp_in:1") == ("blocks.1.hook_mlp_in",)


def test_parallel_blocks_have_no_resid_mid(tmp_path):
    save_checkpoint(tmp_path, "gptneox")
    model = load_model(tmp_path, device="cpu")
    with pytest.raises(RefusalLensError, match="attention and MLP run in parallel in this arch"):
        resolve_hook_points(model, "resid_mid")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (
            "resid_post:2-9",
            "Hook-point selector 'resid_post:2-9' asks for layers 2-9, but this model has layers "
            "0 to 3.",
        ),
        (
            "resid_post:a",
            "Hook-point selector 'resid_post:a' has layers that cannot be read. Write one layer "
            "(resid_post:3), a range (resid_post:8-15) or a list (resid_post:1,4-6); a single head "
            "is hook_z:8.3.",
        ),
        (
            "hook_z:1.4",
            "Hook-point selector 'hook_z:1.4' asks for head 4, but this model has heads 0 to 3.",
        ),
        ([], "At least one hook point is needed, for example resid_post."),
    ],
)
def test_selectors_that_cannot_be_read(model, selector, expected):
    with pytest.raises(RefusalLensError) as caught:
        resolve_hook_points(model, selector)
    assert str(caught.value) == expected


def test_glob_that_matches_nothing(model):
    with pytest.raises(RefusalLensError, match=r"'block\.\*\.x' matches nothing in"):
        resolve_hook_points(model, "block.*.x")


def test_names_take_apart():
    assert (layer_of("blocks.12.hook_attn_out"), layer_of("hook_embed")) == (12, None)
    assert (site_of("blocks.12.hook_attn_out"), site_of("hook_embed")) == ("attn_out", "embed")
    assert site_of("blocks.1.ln1.hook_normalized") == "ln1.hook_normalized"
    assert short_name("blocks.12.hook_attn_out") == "attn_out 12"
    assert (layer_of("blocks.9.attn.hook_z.3"), head_of("blocks.9.attn.hook_z.3")) == (9, 3)
    assert short_name("blocks.9.attn.hook_result.3") == "hook_result 9.3"
    assert head_of("blocks.9.hook_attn_out") is None


def test_stop_layer_runs_just_the_blocks_needed():
    assert stop_layer(["hook_embed"]) == 0
    assert stop_layer([*posts(0, 2), "hook_embed"]) == 3
    assert stop_layer(["ln_final.hook_normalized", *posts(0)]) is None


def test_hooks_are_gone_after_an_error_and_a_users_own_stay(model):
    points = [model.hook_dict[f"blocks.{layer}.hook_resid_post"] for layer in (0, 1)]

    def look(activation, hook):
        raise RuntimeError("planted")

    def own(activation, hook):
        return None

    hooks = [(point.name, look) for point in points]
    with model.hooks(fwd_hooks=[(points[0].name, own)]):
        with pytest.raises(RuntimeError, match="planted"), hooks_at(model, hooks):
            points[1](torch.zeros(1))
        assert [len(point.fwd_hooks) for point in points] == [1, 0]
    assert [len(point.fwd_hooks) for point in points] == [0, 0]
    assert model.context_level == 0
