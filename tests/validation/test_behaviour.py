"""Harm and refusal told apart: planted directions come back, each for its own label."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import fit_directions
from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import ContrastSet, Prompt, PromptSet
from refusal_lens.validation.behaviour import Behaviour, Relabelling, quadrants, two_directions
from refusal_lens.validation.crossfit import assign_folds
from refusal_lens.validation.separation import validate
from refusal_lens.validation.units import topic_units

HOOK_POINTS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


def planted(angle: float, n: int = 400, seed: int = 0) -> tuple[Activations, list[str]]:
    """Harm along the first axis, refusal at an angle to it; at the first layer only harm shows.

    Three in four harmful prompts are refused and one in ten harmless; some are evaded.
    """
    generator = torch.Generator().manual_seed(seed)
    is_harmful = torch.arange(2 * n) < n
    chance = torch.rand(2 * n, generator=generator)
    is_refused = torch.where(is_harmful, chance < 0.75, chance < 0.1)
    values = torch.randn(2 * n, 2, 1, 40, generator=generator)
    values[..., 0] += 4 * is_harmful[:, None, None]
    toward = torch.zeros(40)
    toward[0], toward[1] = np.cos(angle), np.sin(angle)
    values[:, 1, 0] += 4 * is_refused[:, None] * toward
    outcomes = ["refused" if refused else "answered" for refused in is_refused.tolist()]
    outcomes[::17] = ["evaded"] * len(outcomes[::17])
    return Activations(values, is_harmful, HOOK_POINTS, ("last",)), outcomes


def found_in(angle: float):
    activations, outcomes = planted(angle)
    return activations, two_directions(activations, Behaviour.of(activations.is_harmful, outcomes))


def test_directions_are_the_least_squares_coefficients_of_both_labels():
    activations, outcomes = planted(0.9)
    behaviour = Behaviour.of(activations.is_harmful, outcomes)
    known = behaviour.is_known.numpy()
    labels = np.stack([behaviour.is_harmful, behaviour.is_refused, np.ones(len(known))], axis=1)
    values = activations.values[:, 1, 0].double().numpy()
    fitted = np.linalg.lstsq(labels[known].astype(float), values[known], rcond=None)[0]
    for number, of_harm in enumerate((True, False)):
        weights = behaviour.contrast(of_harm).numpy()
        np.testing.assert_allclose(weights @ values, fitted[number], rtol=1e-9, atol=1e-9)


def test_planted_directions_at_right_angles_come_back():
    _, found = found_in(np.pi / 2)
    harm, refusal = found.units[:, 1, 0]
    assert harm[0] > 0.9
    assert refusal[1] > 0.9
    table = found.to_frame().set_index("layer")
    assert abs(table.loc[1, "cosine"]) < 0.15
    assert table.loc[1, "ceiling"] > 0.6
    assert table.loc[1, "harm_auroc"] > 0.95
    assert table.loc[1, "refusal_auroc"] > 0.95
    # Neither says anything of the other's label, once its own is fixed.
    assert table.loc[1, "harm_tells_refusal"] == pytest.approx(0.5, abs=0.15)
    assert table.loc[1, "refusal_tells_harm"] == pytest.approx(0.5, abs=0.15)
    # Before: the plain difference of refused and answered prompts points along harm as well.
    activations, _ = planted(np.pi / 2)
    both = found.behaviour
    values = activations.values[:, 1, 0]
    plain = values[both.is_known & both.is_refused].mean(0) - values[
        both.is_known & ~both.is_refused
    ].mean(0)
    assert plain[0] / plain.norm() > 0.5


def test_one_direction_for_both_reaches_the_ceiling():
    table = found_in(0.0)[1].to_frame().set_index("layer")
    assert table.loc[1, "cosine"] == pytest.approx(table.loc[1, "ceiling"], abs=0.05)


def test_where_refusal_does_not_show_nothing_is_found():
    table = found_in(np.pi / 2)[1].to_frame().set_index("layer")
    assert table.loc[0, "refusal_auroc"] == pytest.approx(0.5, abs=0.15)


def test_labels_that_coincide_are_not_told_apart():
    activations, _ = planted(1.0)
    outcomes = ["refused" if harmful else "answered" for harmful in activations.is_harmful.tolist()]
    behaviour = Behaviour.of(activations.is_harmful, outcomes)
    assert two_directions(activations, behaviour) is None
    assert behaviour.to_frame()["refused"].tolist() == [400, 0]


def test_quadrants_hold_every_prompt_and_the_borderline_ones():
    activations, found = found_in(np.pi / 2)
    n = len(activations.is_harmful)
    ids, outcomes = [str(i) for i in range(n)], planted(np.pi / 2)[1]
    others = activations.take(slice(0, 3))
    table = quadrants(found, ids, outcomes, (others, ["b1", "b2", "b3"], ["refused"] * 3))
    assert table["class"].value_counts().to_dict() == {
        "harmful": n // 2,
        "harmless": n // 2,
        "borderline": 3,
    }
    assert set(table["refusal_hook_point"]) == {HOOK_POINTS[1]}
    refused = table[table["outcome"] == "refused"]
    assert (refused["refusal"] > 0).mean() > 0.9
    harmless = table[(table["class"] == "harmless")]
    assert (harmless["harm"] < 0).mean() > 0.9


def test_borderline_prompts_read_elsewhere_are_refused():
    activations, found = found_in(np.pi / 2)
    elsewhere = replace(activations.take(slice(0, 3)), positions=("mean",))
    with pytest.raises(RefusalLensError, match="read at blocks.0.hook_resid_post, mean; "):
        quadrants(found, [], [], (elsewhere, ["b1", "b2", "b3"], ["refused"] * 3))


def test_refused_against_answered_gives_the_direction_of_refusal():
    """The second axis is refusal's; harm lies along the first, and both go together."""
    activations, outcomes = planted(np.pi / 2)
    relabelling = Relabelling.of(outcomes)
    kept = relabelling.of_activations(activations)
    assert [outcomes[row] for row in relabelling.rows] == [
        "refused" if is_refused else "answered" for is_refused in kept.is_harmful.tolist()
    ]
    units = [fit_directions(each)[HOOK_POINTS[1], "last"].unit for each in (activations, kept)]
    # By harm the first axis leads, as planted; by behaviour the second.
    assert units[0][0] > units[0][1] + 0.2
    assert units[1][1] > units[1][0] + 0.2
    separation, _ = validate(kept, n_resamples=20, n_repeats=1, show_progress=False)
    assert separation.scores["auroc"].value[1, 0] > 0.95


def test_prompts_that_depend_on_each_other_still_do_when_relabelled():
    activations, outcomes = planted(np.pi / 2, n=40)
    pair = torch.arange(80) % 40
    groups = replace(activations.groups, pair=pair, topic=pair // 4)
    relabelling = Relabelling.of(outcomes)
    kept = relabelling.of_activations(replace(activations, groups=groups))
    rows = list(relabelling.rows)
    assert kept.groups.pair.tolist() == [pair[row] for row in rows]
    folds = assign_folds(kept.is_harmful, 4, 0, topic_units(kept.is_harmful, kept.groups))
    topics = kept.groups.component.tolist()
    assert len(set(zip(topics, folds.tolist(), strict=True))) == len(set(topics))


def test_too_few_refused_are_no_class_of_their_own():
    outcomes = ["answered"] * 40 + ["refused"] * 9 + ["evaded"] * 3
    with pytest.raises(RefusalLensError, match="at least 10 refused.*of 52 only 9 were refused"):
        Relabelling.of(outcomes)
    with pytest.raises(RefusalLensError, match="only 0 were answered"):
        Relabelling.of(["refused"] * 30)


def test_one_id_in_both_files_is_named_before_it_means_two_prompts():
    sides = [
        PromptSet(side, tuple(Prompt(str(i), f"{side} {i}", "") for i in range(30)))
        for side in ("harmful", "harmless")
    ]
    relabelling = Relabelling.of((["refused"] * 10 + ["answered"] * 20) * 2)
    with pytest.raises(RefusalLensError, match="the id '0' is in both"):
        relabelling.of_prompts(ContrastSet(*sides))
