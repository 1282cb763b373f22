"""The shipped prompts in a real model: what 30 pairs say of fresh ones, and topics without harm."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from pretrained import Unavailable, fetch

from refusal_lens import collect, load_model
from refusal_lens.activations.pooled import Activations
from refusal_lens.directions.direction import fit_directions
from refusal_lens.prompts.files import read_contrast
from refusal_lens.prompts.groups import Groups
from refusal_lens.validation.nulls import draw_nulls
from refusal_lens.validation.scores import auroc
from refusal_lens.validation.separation import validate

pytestmark = pytest.mark.pretrained

N_PAIRS, N_DRAWS = 30, 60
N_SPLITS = 25


@pytest.fixture(scope="module")
def shipped(request) -> Activations:
    """All of the shipped prompts in SmolLM2-135M-Instruct, where it tells them apart."""
    if "pretrained" not in request.config.option.markexpr:
        pytest.skip("fetches a model: asked for by -m pretrained")
    try:
        path = fetch("smollm2")
    except Unavailable as error:
        pytest.skip(str(error))
    data = REPOSITORY / "data"
    prompts = read_contrast(data / "harmful_prompts.json", data / "harmless_prompts.json")
    return collect(load_model(Path(path), device="cpu"), prompts, "resid_post:15", "last")


def held_out_and_fresh(activations: Activations, seed: int) -> tuple[float, float]:
    """Return the AUROC that some pairs give themselves, and that of their direction on the rest."""
    pair = activations.groups.pair
    chosen = np.random.default_rng(seed).permutation(int(pair.max()) + 1)[:N_PAIRS]
    is_drawn = torch.isin(pair, torch.from_numpy(chosen))
    drawn, rest = activations.take(is_drawn), activations.take(~is_drawn)
    separation, _ = validate(drawn, n_resamples=10, seed=seed)
    vector = fit_directions(drawn).vectors[0, 0].float()
    fresh = auroc(rest.values[:, 0, 0] @ vector, rest.is_harmful)
    return separation.auroc.item(), fresh.item()


def test_thirty_pairs_have_the_auroc_of_fresh_ones(shipped):
    found, true = np.mean([held_out_and_fresh(shipped, seed) for seed in range(N_DRAWS)], axis=0)
    assert found == pytest.approx(true, abs=0.03)
    # The twins held out alone, their partners in the fit: what the tool has to keep from.
    alone = replace(shipped, groups=Groups.independent(len(shipped.is_harmful)))
    apart = validate(alone.take(first_pairs(shipped)), n_resamples=10)[0].auroc.item()
    assert apart < true - 0.1


def first_pairs(activations: Activations) -> torch.Tensor:
    """Say which prompts are of the first pairs."""
    return activations.groups.pair < N_PAIRS


def test_harmless_topics_against_each_other_are_seldom_significant(shipped):
    harmless = shipped.take(~shipped.is_harmful)
    topic = harmless.groups.topic.unique(return_inverse=True)[1]
    n_topics = int(topic.max()) + 1
    assert n_topics == 16
    found = 0
    for seed in range(N_SPLITS):
        first = np.random.default_rng(seed).permutation(n_topics)[: n_topics // 2]
        split = replace(harmless, is_harmful=torch.isin(topic, torch.from_numpy(first)))
        nulls = draw_nulls(split, n_permutations=200, seed=seed)
        found += nulls.p_values()["p_value_corrected"].item() <= 0.05
    # More than 4 of 25 have a chance of 0.7 % at a rate of 5 %.
    assert found <= 4
