"""The rule that chooses by effect: what the paper chose, edges, and reasons."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from refusal_lens import RefusalLensError
from refusal_lens.directions.formats.refusal_direction import read_scores
from refusal_lens.experiments.causal_choice import CausalRule, choose_causal

PUBLISHED = Path(__file__).parents[1] / "data" / "arditi_2024"
COLUMNS = ["position", "layer", "bypass_score", "induce_score", "kl"]
MODELS = {"gemma-2b-it": ("-2", 10), "qwen-1_8b-chat": ("-2", 15), "yi-6b-chat": ("-5", 20)}


def read_published(model: str, folder: Path) -> tuple[pd.DataFrame, int]:
    """Write the published scores as their project writes them, and read them as users do."""
    content = json.loads((PUBLISHED / f"{model}.json").read_text(encoding="utf-8"))
    assert content["columns"] == COLUMNS
    theirs = ("position", "layer", "refusal_score", "steering_score", "kl_div_score")
    rows = [dict(zip(theirs, row, strict=True)) for row in content["candidates"]]
    rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    path = folder / "direction_evaluations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return read_scores(path), content["n_layers"]


@pytest.mark.parametrize(("model", "place"), MODELS.items())
def test_rule_chooses_what_the_paper_chose(model, place, tmp_path):
    scores, n_layers = read_published(model, tmp_path)
    chosen = choose_causal(scores, n_layers).chosen
    assert (chosen.position, chosen.hook_point) == (place[0], f"blocks.{place[1]}.hook_resid_pre")
    # Before: without the thresholds something else would be chosen.
    lax = CausalRule(max_layer_share=1.0, max_kl=math.inf, min_induce=-math.inf)
    unruled = choose_causal(scores, n_layers, lax).chosen
    assert (unruled.position, unruled.hook_point) != (chosen.position, chosen.hook_point)


@pytest.mark.parametrize(("model", "place"), MODELS.items())
def test_a_stream_is_chosen_alike_by_either_of_its_names(model, place, tmp_path):
    """The input of block k is the output of block k - 1; the rule once took them for two layers.

    With the scores of Yi-6B it chose another direction then, one that the paper drops.
    """
    scores, n_layers = read_published(model, tmp_path)
    renamed = scores[scores["layer"] > 0].assign(
        hook_point=lambda table: [f"blocks.{k - 1}.hook_resid_post" for k in table["layer"]]
    )
    chosen = choose_causal(renamed, n_layers).chosen
    assert (chosen.position, chosen.hook_point) == (
        place[0],
        f"blocks.{place[1] - 1}.hook_resid_post",
    )


def one(layer: int, bypass: float, induce: float, kl: float, site: str = "resid_pre") -> dict:
    place = {"hook_point": f"blocks.{layer}.hook_{site}", "position": "last"}
    return place | {"bypass": bypass, "induce": induce, "kl": kl}


def choose(*rows: dict):
    return choose_causal(pd.DataFrame(rows, columns=list(one(0, 0.0, 0.0, 0.0))), 10)


def test_thresholds_are_where_the_paper_has_them():
    at_the_edge = one(7, -1.0, 0.0, 0.1)
    assert choose(at_the_edge).chosen.hook_point == at_the_edge["hook_point"]
    for dropped in (
        one(8, -1.0, 0.0, 0.1),
        one(7, -1.0, 0.0, 0.1, "resid_post"),
        one(7, -1.0, 0.0, 0.1, "mlp_out"),
        one(7, -1.0, -1e-9, 0.1),
        one(7, -1.0, 0.0, 0.1001),
    ):
        assert choose(dropped).chosen is None


def test_where_nothing_passes_the_reasons_are_counted():
    choice = choose(
        one(9, -9.0, 1.0, 0.05),
        one(3, -5.0, -1.0, 0.3),
        one(4, -2.0, 1.0, 0.2),
        one(5, math.nan, 1.0, 0.0),
    )
    assert choice.chosen is None
    assert (choice.n_candidates, choice.n_eligible) == (4, 0)
    assert choice.dropped == {
        "KL of the first token is above 0.1": 2,
        "block 8 or a later one reads it": 1,
        "induce score is below 0": 1,
        "a score is not a number": 1,
    }
    names = [miss.hook_point for miss, _ in choice.near_misses]
    assert names == [f"blocks.{layer}.hook_resid_pre" for layer in (9, 4, 3)]
    assert choose().chosen is None


def test_what_is_no_table_of_scores_is_told():
    with pytest.raises(RefusalLensError, match="this table lacks kl"):
        choose_causal(pd.DataFrame([one(1, 0.0, 0.0, 0.0)]).drop(columns="kl"), 4)
    with pytest.raises(RefusalLensError, match="A place has several rows"):
        choose(one(1, 0.0, 0.0, 0.0), one(1, 1.0, 0.0, 0.0))
