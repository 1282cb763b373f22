"""The report: what it says of the numbers, and what of the numbers it shows."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import plotly.graph_objects as go
import pytest
from planted_run import (
    BEST,
    HOSTILE,
    causal_scores,
    confounds,
    learning_curve,
    make_run,
    misread,
    nested_choice,
    nulls,
    places,
    power,
    stability,
)
from rich.console import Console

from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.dose_response import Completion, evidence_of
from refusal_lens.experiments.verdicts import Verdict, decide_cause
from refusal_lens.report import build_report
from refusal_lens.report.answer import answer, reasons
from refusal_lens.report.drawings import draw_all, themes
from refusal_lens.report.evidence import gather
from refusal_lens.report.page import render
from refusal_lens.report.tables import MAX_ROWS, readable, shown_tables
from refusal_lens.runs import figures
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages.study import plot_stage
from refusal_lens.stages.terminal.experiments import show_verdict


def told(run_folder: RunFolder) -> list[tuple[str, str]]:
    return [(reply.verdict, reply.sentence) for reply in answer(gather(run_folder))]


def said(run_folder: RunFolder, kind: str) -> list[str]:
    return [reason.text for reason in reasons(gather(run_folder)) if reason.kind == kind]


def tables_of(run_folder: RunFolder) -> dict:
    return {table.name: table for table in shown_tables(gather(run_folder))}


def texts(table, heading: str) -> list[str]:
    column = table.headings.index(heading)
    return [f"{row[column].text} {row[column].ends}".strip() for row in table.rows]


@pytest.fixture
def run_folder(tmp_path):
    return make_run(tmp_path / "run")


def measured(run_folder: RunFolder, **changed: pd.DataFrame) -> RunFolder:
    """Give a run all that the answer can rest on."""
    good = {
        "nulls": nulls(0.001),
        "stability": stability(0.95),
        "confounds": confounds(0.7),
        "causal_scores": causal_scores("separates and causes"),
    }
    for name, table in {**good, **changed}.items():
        run_folder.write_table(name, table)
    return run_folder


# ---- the answer ----


def test_a_plain_run_answers_as_far_as_it_has_measured(run_folder):
    assert told(run_folder) == [
        (
            "Yes",
            "A direction tells harmful from harmless prompts that it has not seen (AUROC 1.00, "
            "accuracy 100%, separation 0.90). The model refuses 100% (91%-100%) of the harmful "
            "and 2% (0%-13%) of the harmless prompts.",
        ),
        (
            "Layer 3",
            "Of layers 0 to 7 take blocks.3.hook_resid_post at position last: highest d' "
            "(4.50) among 6 places with accuracy >= 0.7.",
        ),
        (
            "As a correlation",
            "It holds on prompts that it was not fitted to, but 4 things were not measured, among "
            "them whether acting on it changes what the model refuses.",
        ),
    ]


def test_a_run_whose_effect_alone_was_not_measured_says_so(run_folder):
    measured(run_folder)
    (run_folder.path / "tables" / "causal_scores.csv").unlink()
    assert told(run_folder)[2] == (
        "As a correlation",
        "It holds on prompts that it was not fitted to, but whether acting on it changes what the "
        "model refuses was not measured.",
    )


def test_everything_measured_and_good_is_trusted(run_folder):
    measured(run_folder)
    assert told(run_folder)[2] == (
        "Yes",
        "It holds on prompts that it was not fitted to, nothing measured here speaks against it, "
        "and acting on it changes what the model refuses.",
    )
    assert said(run_folder, "against") == said(run_folder, "open") == []
    assert said(run_folder, "for") == [
        "Accuracy is 100% on held-out prompts (95 % interval 90% to 100%) and 100% on those it was "
        "fitted to.",
        "Shuffled labels hardly ever do as well (p = 0.001, corrected for every place looked at).",
        "Two halves of the prompts give directions with cosine 0.95.",
        "A bag of words is the best trivial feature, and does worse (AUROC 0.70, the direction's "
        "0.99).",
        "Acting on it changes what the model refuses.",
    ]


@pytest.mark.parametrize(
    ("name", "table", "against"),
    [
        (
            "stability",
            stability(0.5),
            "Two halves of the prompts give directions with cosine 0.50.",
        ),
        (
            "confounds",
            confounds(0.98),
            "A bag of words alone tells the classes apart as well (AUROC 0.98, the direction's "
            "0.99).",
        ),
        (
            "causal_scores",
            causal_scores("separates only"),
            "Acting on it does not pass for the cause of refusal (separates only).",
        ),
        (
            "causal_scores",
            causal_scores("neither", chosen_layer=2),
            "Acting on it at resid_post 2, position last (the scores are of resid_post 3, "
            "last), does not pass for the cause of refusal (neither).",
        ),
    ],
)
def test_one_thing_against_it_is_named(run_folder, name, table, against):
    measured(run_folder, **{name: table})
    assert said(run_folder, "against") == [against]
    verdict, sentence = told(run_folder)[2]
    assert verdict == "With care"
    clause = against[0].lower() + against[1:]
    assert sentence == f"It separates prompts that it was not fitted to, but {clause}"


def test_scores_that_shuffled_labels_reach_are_no_direction(run_folder):
    measured(run_folder, nulls=nulls(0.3))
    (there, why), _, (trust, _) = told(run_folder)
    assert (there, trust) == ("Cannot tell", "No")
    assert "exchanged labels the best of all places does as well in 30% of the draws" in why
    # The page says it in the same words wherever it does.
    assert gather(run_folder).diagnosis.findings[0].cause == why
    assert told(measured(run_folder, nulls=nulls(0.3), power=power(0.65)))[0][0] == "No"


def test_the_corrected_p_value_of_the_best_place_counts(run_folder):
    table = nulls(0.001)
    elsewhere = table["hook_point"] != BEST["hook_point"]
    table.loc[elsewhere | (table["kind"] != "permutation"), "p_value_corrected"] = 0.9
    measured(run_folder, nulls=table)
    assert told(run_folder)[0][0] == "Yes"


def test_no_separation_is_no_direction(tmp_path):
    (there, why), (where, _), (trust, _) = told(make_run(tmp_path / "run", strength=0.0))
    assert (there, where, trust) == ("No", "Nowhere", "No")
    assert why.startswith("Nowhere does a direction tell harmful from harmless prompts that it has")


def test_middling_scores_are_a_weak_direction(tmp_path):
    assert told(make_run(tmp_path / "run", strength=0.12))[0][0] == "A weak one"


def test_a_model_that_never_refuses_has_a_direction_of_harm_only(tmp_path):
    verdict, sentence = told(make_run(tmp_path / "run", n_refused=0))[0]
    assert verdict == "Of harm, not of refusal"
    assert "the model refuses 0% (0%-9%) of the harmful and 2% (0%-13%) of the" in sentence


def test_refusal_that_was_not_measured_is_not_claimed(tmp_path):
    verdict, sentence = told(make_run(tmp_path / "run", n_refused=-1))[0]
    assert verdict == "Yes"
    assert sentence.endswith("; whether the model refuses was not measured.")


def test_a_place_without_any_direction_is_nowhere(run_folder):
    frame = run_folder.read_separation()
    frame[["separation", "accuracy", "separation_in_sample", "accuracy_in_sample"]] = float("nan")
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    assert [verdict for verdict, _ in told(run_folder)] == ["No", "Nowhere", "No"]
    assert "there is no direction" in render(run_folder)


def test_optimism_and_guessing_speak_against_it(run_folder):
    frame = run_folder.read_separation()
    frame["accuracy"], frame["accuracy_in_sample"] = 0.7, 1.0
    frame["accuracy_low"], frame["accuracy_high"] = 0.45, 0.9
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    assert said(run_folder, "against") == [
        "Its accuracy may be that of guessing (95 % interval 45% to 90%).",
        "Accuracy is 70% on held-out prompts (95 % interval 45% to 90%) and 100% on those it was "
        "fitted to: it has learned them by heart.",
    ]


def test_nested_choices_that_fell_on_the_place_are_counted(run_folder):
    run_folder.write_table("nested_choice", nested_choice())
    assert answer(gather(run_folder))[1].more == (
        "3 of the 4 hook points of this kind are valid, and 4 of 5 choices made on part of the "
        "prompts fell on it."
    )


def test_what_stands_behind_an_answer_is_folded_below_it(run_folder):
    reply = answer(gather(run_folder))[1]
    page = render(run_folder)
    place = page.index("<p>Of layers 0 to 7 take")
    more = page.index(f"<summary>More</summary>\n        <p>{reply.more}</p>")
    assert place < more < page.index("Can it be trusted?")
    assert page.count("<summary>More</summary>") == 1


# ---- tables ----


def test_intervals_stand_in_the_cell_of_their_value(run_folder):
    frame = run_folder.read_separation()
    frame["accuracy"] = 0.912
    frame["accuracy_low"], frame["accuracy_high"] = 0.85, 0.953
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    table = tables_of(run_folder)["separation"]
    assert table.headings == (
        *("hook point", "position", "separation", "separation in sample"),
        *("accuracy", "accuracy in sample", "balanced accuracy", "balanced accuracy in sample"),
        *("AUROC", "d'", "valid"),
    )
    assert set(texts(table, "accuracy")) == {"91.2% [85.0%, 95.3%]"}
    cell = table.rows[0][table.headings.index("accuracy")]
    assert cell.number == 0.912


@pytest.mark.parametrize(
    ("n_units", "reason"),
    [
        (3, "too few groups for an interval: 3 of at least 5"),
        (30, "too unsteady for an interval: without some prompts it is another direction"),
    ],
)
def test_a_score_without_an_interval_says_why_wherever_it_stands(run_folder, n_units, reason):
    frame = run_folder.read_separation()
    frame[["accuracy_low", "accuracy_high"]] = float("nan")
    frame["n_units"] = n_units
    frame.to_csv(run_folder.separation_path, index=False)
    run_folder.record_files([run_folder.separation_path])
    assert all(
        text.endswith(f"({reason})")
        for text in texts(tables_of(run_folder)["separation"], "accuracy")
    )
    assert any(f"on held-out prompts ({reason})" in text for text in said(run_folder, "for"))


def test_the_best_place_stands_out_once(run_folder):
    table = tables_of(run_folder)["separation"]
    assert [row[0].text for row, best in zip(table.rows, table.is_best, strict=True) if best] == [
        "blocks.3.hook_resid_post"
    ]


def test_positions_that_are_numbers_are_found_again(tmp_path):
    run_folder = make_run(tmp_path / "run", positions=("-1", "-2"))
    table = tables_of(run_folder)["separation"]
    assert sum(table.is_best) == 1
    assert set(texts(table, "position")) == {"-1", "-2"}


def test_misread_prompts_are_those_of_the_best_place_with_their_own_texts(tmp_path):
    run_folder = make_run(tmp_path / "run", texts=(HOSTILE, [f"good {i}" for i in range(8)]))
    run_folder.write_table("misread", misread(run_folder))
    table = tables_of(run_folder)["misread"]
    assert "hook point" not in table.headings
    assert texts(table, "text") == [readable(text) for text in HOSTILE]


def test_tables_of_the_best_place_hold_no_other(run_folder):
    measured(run_folder)
    table = tables_of(run_folder)["nulls"]
    assert len(table.rows) == 4
    assert set(texts(table, "p, corrected")) == {"0.001"}


def test_learning_curve_says_how_many_prompts_are_enough(run_folder):
    def sentence(**columns):
        run_folder.write_table("learning_curve", learning_curve().assign(**columns))
        return tables_of(run_folder)["learning_curve"].sentence

    # 15.8 degrees at 40 a side; its squared tangent falls as one over the number of prompts.
    assert sentence().endswith(
        "With 40 prompts a side the direction lies about 15.8° (14.2 to 17.4) from that of "
        "unlimited prompts; about 103 (83 to 126) are enough for 10°."
    )
    assert sentence(degrees_high=9.0).endswith("; they are enough for 10°.")
    assert sentence(degrees_high=85.0).endswith(
        "; how many are enough for 10°, these prompts cannot tell."
    )


def test_nested_choice_is_counted_by_place(run_folder):
    run_folder.write_table("nested_choice", nested_choice())
    table = tables_of(run_folder)["nested_choice"]
    assert texts(table, "times chosen") == ["4", "1"]
    assert texts(table, "hook point")[0] == "blocks.3.hook_resid_post"


def test_answers_against_the_class_are_listed(tmp_path):
    table = tables_of(make_run(tmp_path / "run", n_refused=38))["answers"]
    assert texts(table, "prompt") == ["harmful-039", "harmful-040", "harmless-001"]
    assert texts(table, "class") == ["harmful", "harmful", "harmless"]


def test_the_batches_that_were_found_are_part_of_the_command(run_folder):
    provenance = {**run_folder.read_provenance(), "collection": {"token_budget": 512}}
    run_folder.write_provenance(provenance)
    assert "--output reproduced --set collect.token_budget=512<" in render(run_folder)


def test_examples_are_ten_of_each_class_and_outcome(tmp_path):
    table = tables_of(make_run(tmp_path / "run", n_refused=38))["examples"]
    found = Counter(zip(texts(table, "class"), texts(table, "outcome"), strict=True))
    assert found["harmful", "refused"] == 10
    assert found["harmful", "answered"] == 2
    assert max(found.values()) == 10


def test_refusal_is_counted_by_topic(tmp_path):
    # Prompts are given to the topics in turn, and the last two of 40 are not refused.
    run_folder = make_run(tmp_path / "run", n_refused=38, categories=["a", "b"])
    table = tables_of(run_folder)["refusal_by_topic"]
    assert texts(table, "class")[:2] == ["harmful", "harmful"]
    assert texts(table, "refused rate")[:2] == ["95.0%", "95.0%"]
    assert texts(table, "n prompts") == ["20"] * 4
    assert "refusal_by_topic" not in tables_of(make_run(tmp_path / "one"))


def test_tokens_that_positions_read_are_told(run_folder):
    read = {"prompt_id": "harmful-001", "position": "last", "token_indices": "20"}
    provenance = {
        **run_folder.read_provenance(),
        "tokens_read": {"last": {**read, "token_ids": "201", "tokens": "\n"}},
    }
    run_folder.write_provenance(provenance)
    table = tables_of(run_folder)["positions_read"]
    assert texts(table, "tokens") == ["'\\n'"]


def test_long_tables_are_cut_and_say_so(run_folder):
    table = stability(0.9)
    rows = [{**table.iloc[0], **place} for place in places(300)]
    run_folder.write_table("stability", pd.DataFrame(rows))
    table = tables_of(run_folder)["stability"]
    assert (len(table.rows), table.n_more) == (MAX_ROWS, 600 - MAX_ROWS)
    assert "200 more rows are in <code>tables/stability.csv</code>" in render(run_folder)


def test_categories_called_nothing_are_categories(run_folder):
    names = ["None", "NA", "nan"]
    run_folder.write_table(
        "categories", pd.DataFrame({**BEST, "position": "last", "category": names, "n": 4.0})
    )
    table = tables_of(run_folder)["categories"]
    assert texts(table, "category") == names
    assert texts(table, "n") == ["4"] * 3


def test_columns_that_no_one_here_knows_are_shown(run_folder):
    run_folder.write_table("confounds", confounds(0.7).assign(odd_number=-1.5))
    table = tables_of(run_folder)["confounds"]
    assert texts(table, "odd number") == ["−1.500"] * 4


# ---- the page ----


class Outline(HTMLParser):
    """The elements of a page, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.within = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within not in ("script", "style"):
            self.text += data


def test_page_asks_for_nothing(run_folder):
    outline = Outline(render(run_folder))
    for tag, attributes in outline.elements:
        assert not {"src", "srcset", "action"} & set(attributes), tag
        assert attributes.get("href", "#").startswith("#"), tag
        assert tag != "link"
    policy = next(a["content"] for _, a in outline.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_hostile_texts_add_no_element(tmp_path):
    harmless = [f"good {i}" for i in range(len(HOSTILE))]
    tame = [f"bad {i}" for i in range(len(HOSTILE))]
    pages = []
    for name, given in (("tame", tame), ("hostile", HOSTILE)):
        run_folder = make_run(
            tmp_path / name, texts=(given, harmless), categories=given, n_refused=0
        )
        run_folder.write_table("misread", misread(run_folder))
        pages.append(Outline(render(run_folder)))
    assert [tag for tag, _ in pages[0].elements] == [tag for tag, _ in pages[1].elements]
    for text in HOSTILE:
        assert readable(text) in pages[1].text


def test_figures_survive_as_json(tmp_path):
    run_folder = make_run(tmp_path / "run", texts=(HOSTILE, [f"good {i}" for i in range(8)]))
    page = render(run_folder)
    found = re.findall(r'<script type="application/json" id="([\w-]+)">(.*?)</script>', page, re.S)
    contents = {name: json.loads(content) for name, content in found}
    assert (
        set(contents) == {"themes", *(f"data-{n}" for n in figures.available(run_folder))}
        if (hasattr(figures, "available"))
        else {"themes", *(f"data-{name}" for name in figures.FIGURES)}
    )
    assert "template" not in contents["data-projection_histogram"]["layout"]
    assert set(contents["themes"]) == {"light", "dark"}


def test_a_figure_that_lacks_its_stage_is_named_and_not_drawn(run_folder, monkeypatch):
    def lacking(*_):
        raise RefusalLensError("Run first: refusal-lens <select>")

    monkeypatch.setattr(figures, "draw_figure", lacking)
    page = render(run_folder)
    assert 'id="figures"' not in page
    told = {each[1] for each in draw_all(run_folder) if each[0] != "Embedding"}
    assert told == {"Run first: refusal-lens <select>"}


def test_signed_numbers_recede_into_either_page():
    for name, middle in (("light", "#f4f4f4"), ("dark", "#2e2e2e")):
        layout = themes()[name]["layout"]
        assert layout["colorscale"]["diverging"][1] == [0.5, middle]
        assert layout["paper_bgcolor"] == "rgba(0,0,0,0)"


def test_a_figure_leaves_its_title_to_the_page(run_folder, monkeypatch):
    def draw(_):
        return go.Figure(go.Bar(y=[1])).update_layout(title="What <b>it</b> is<br>then &amp; now")

    record = figures.Figure("One of a kind", "What there is.", draw, ())
    monkeypatch.setattr(figures, "FIGURES", {"one_of_a_kind": record})
    (shown,) = draw_all(run_folder)
    content = json.loads(shown.content)
    assert (shown.title, shown.caption) == ("One of a kind", "What there is. Here: then & now.")
    assert "title" not in content["layout"]


def test_a_figure_that_is_drawn_already_is_not_drawn_again(run_folder, tmp_path, monkeypatch):
    page = render(run_folder)
    drawn = plot_stage(run_folder, ["layer_profile"], folder=tmp_path)
    again = figures.FIGURES["layer_profile"]
    monkeypatch.setitem(figures.FIGURES, "layer_profile", replace(again, draw=lambda _: 1 / 0))
    assert render(run_folder, {path.stem: figure for path, figure in drawn.items()}) == page


def test_what_needs_an_extra_is_drawn_by_name_only(run_folder):
    told = dict(each for each in draw_all(run_folder) if isinstance(each, tuple))
    assert told["Embedding"].endswith(f"refusal-lens plot {run_folder.path} --figure embedding")


def test_what_a_killed_plot_left_in_another_folder_is_removed_by_the_next(run_folder, tmp_path):
    for name in (".projection_histogram.json.x1.partial", ".notes.json.x2.partial"):
        (tmp_path / name).write_text("half")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".projection_histogram.json.x3.partial").write_text("half")
    plot_stage(run_folder, ["projection_histogram"], ending="json", folder=tmp_path)
    # What others began is theirs.
    assert sorted(path.name for path in tmp_path.rglob("*.partial")) == [
        ".notes.json.x2.partial",
        ".projection_histogram.json.x3.partial",
    ]


def test_a_figure_more_is_a_row_more(run_folder, monkeypatch, tmp_path):
    record = figures.Figure(
        "How many prompts",
        "Counted by hand.",
        lambda run: go.Figure(go.Bar(y=[len(run.read_prompts().prompts)])),
        ("prompts.json",),
    )
    monkeypatch.setitem(figures.FIGURES, "n_prompts", record)
    assert figures.available(run_folder)[-1] == "n_prompts"
    (path,) = plot_stage(run_folder, ["n_prompts"], ending="json", folder=tmp_path)
    n_prompts = len(run_folder.read_prompts().prompts)
    assert json.loads(path.read_text())["data"][0]["y"] == [n_prompts]
    page = render(run_folder)
    assert all(text in page for text in ("How many prompts", "Counted by hand.", "data-n_prompts"))
    with pytest.raises(RefusalLensError, match=r"needs prompts\.json.*refusal-lens collect"):
        figures.draw_figure(RunFolder(tmp_path), "n_prompts")


def test_page_says_how_to_make_the_run_again(tmp_path):
    page = render(make_run(tmp_path / "a run"))
    assert f"refusal-lens run &#39;{tmp_path}/a run/config.yaml&#39; --output reproduced" in page
    # No index has refusal-lens itself: it is installed from a clone.
    assert "pip install -e . torch==2.9.0\n" in page
    assert "a clone of refusal_lens 0.1.0 in place of the dot" in page
    assert "2026-01-31 12:34 UTC" in page


@pytest.mark.parametrize("is_changed", [True, False])
def test_the_commit_that_made_a_run_is_cloned_to_make_it_again(run_folder, is_changed):
    code = {"repository": "https://a.b/c d", "commit": "0123456789abcdef", "is_changed": is_changed}
    run_folder.write_provenance({**run_folder.read_provenance(), "code": code})
    page = render(run_folder)
    clone = "git clone &#39;https://a.b/c d&#39; ./refusal_lens-0123456 &amp;&amp; git -C"
    assert f"{clone} ./refusal_lens-0123456 checkout 0123456789abcdef\n" in page
    assert "\npip install -e ./refusal_lens-0123456 torch==2.9.0\n" in page
    assert "in place of the dot" not in page
    assert ("Files differed from that commit" in page) == is_changed


def test_report_needs_scores(tmp_path):
    run_folder = make_run(tmp_path / "run")
    run_folder.separation_path.unlink()
    with pytest.raises(
        RefusalLensError, match=r"has no separation\.csv\. Write it first: refusal-lens fit"
    ):
        build_report(run_folder)


def test_report_stays_small(tmp_path):
    words = "with about as many words as people write to a model, and then some"
    given = [[f"{side} request {i} {words}" for i in range(160)] for side in ("bad", "good")]
    run_folder = make_run(tmp_path / "run", n_layers=48, texts=(given[0], given[1]))
    assert build_report(run_folder).stat().st_size < 10e6


def planted_trials(rates: tuple[float, float, float, float], n: int) -> pd.DataFrame:
    """Outcomes prompt by prompt, as `ablate` has them; random directions do nothing."""
    harmful, left, harmless, induced = rates
    arms = [("", "", 0, {True: harmful, False: harmless})]
    for name in ("affine_ablate", "add"):
        plain = {True: harmful, False: harmless}
        acted = {True: left} if name == "affine_ablate" else {False: induced}
        arms.append((name, "fitted", 0, plain | acted))
        arms += [(name, "random", seed, plain) for seed in range(20)]
    return pd.DataFrame(
        {
            "intervention": name,
            "direction": direction,
            "strength": float(bool(name)),
            "seed": seed,
            "prompt_id": f"{is_harmful}-{i}",
            "is_harmful": is_harmful,
            "outcome": "refused" if i < round(shares[is_harmful] * n) else "answered",
            "kl": 0.02,
            "loss_rise": 0.01,
        }
        for name, direction, seed, shares in arms
        for is_harmful in (True, False)
        for i in range(n)
    )


AT_BEST = {"hook_point": BEST["hook_point"], "position": "last"}


def planted_verdict(trials: pd.DataFrame, auroc: float = 0.95) -> Verdict:
    """Decide by the outcomes of prompts that have nothing to do with each other."""
    ids = dict.fromkeys(zip(trials["prompt_id"], trials["is_harmful"], strict=True))
    units = {key: number for number, key in enumerate(ids)}
    evidence = evidence_of(trials, units, auroc=auroc, auroc_p=1e-6 if auroc > 0.6 else 0.5)
    return decide_cause(evidence, max_kl=0.1)


@pytest.mark.parametrize(
    ("rates", "n", "word", "told_so"),
    [
        ((0.95, 0.03, 0.0, 0.9), 64, "separates and causes", "changes what the model refuses."),
        # 8 % refuse under addition, as does nobody else: no cause, at any usual number of prompts.
        ((0.95, 0.03, 0.0, 0.08), 36, "separates only", "does not pass for the cause of refusal"),
        ((0.95, 0.03, 0.0, 0.08), 100, "separates only", "refused after addition"),
        # 98 % still refuse under removal.
        ((0.98, 0.98, 0.0, 0.9), 36, "separates only", "refused after removal"),
        ((1.0, 0.0, 0.0, 1.0), 5, "cannot tell", "cannot be told yet (open: "),
        # Nothing is refused: there is no gap to bridge.
        ((0.0, 0.0, 0.0, 0.0), 64, "separates only", "gap between the classes"),
    ],
)
def test_planted_verdicts_come_out_right_from_outcomes_to_page(run_folder, rates, n, word, told_so):
    trials = planted_trials(rates, n)
    verdict = planted_verdict(trials)
    assert verdict.word == word
    measured(run_folder, verdict=verdict.to_frame().assign(**AT_BEST))
    (sentence,) = [
        reason.text
        for reason in reasons(gather(run_folder))
        if "Acting" in reason.text or "acting on it" in reason.text
    ]
    assert told_so in sentence
    trusted = told(run_folder)[2]
    assert (trusted[0] == "Yes") == (word == "separates and causes")
    assert "not measured" not in trusted[1]
    console = Console(file=io.StringIO(), width=200)
    show_verdict(console, verdict)
    printed = console.file.getvalue()
    assert f"Verdict: {word}" in printed
    if word == "cannot tell":
        assert f"about {verdict.n_needed:.0f} prompts a side would tell" in printed
        assert f"about {verdict.n_needed:.0f} prompts a side would tell" in sentence


def test_what_does_not_separate_is_neither(run_folder):
    verdict = planted_verdict(planted_trials((1.0, 1.0, 0.0, 0.0), 64), auroc=0.5)
    assert verdict.word == "neither"
    measured(run_folder, verdict=verdict.to_frame().assign(**AT_BEST))
    assert "(neither: separates held-out prompts" in said(run_folder, "against")[0]


def test_a_side_effect_is_said_beside_a_cause_and_is_no_reason_against_one(run_folder):
    for induced in (0.9, 0.08):
        trials = planted_trials((0.95, 0.03, 0.0, induced), 64).assign(loss_rise=0.5)
        measured(run_folder, verdict=planted_verdict(trials).to_frame().assign(**AT_BEST))
        if induced == 0.9:
            assert told(run_folder)[2][1].endswith("with a side effect (rise of the text's loss).")
    assert "rise of the text's loss" not in said(run_folder, "against")[0]


def test_a_score_that_does_not_follow_the_judge_is_not_called_few_prompts(run_folder):
    table = causal_scores("cannot tell").assign(because="the refusal score follows the judge")
    measured(run_folder, causal_scores=table)
    assert said(run_folder, "open") == [
        "Whether acting on it changes what the model refuses cannot be told yet (open: the refusal "
        "score follows the judge)."
    ]


def test_answers_stand_side_by_side_and_can_be_searched(run_folder):
    """Plain, removed, added and under a random direction, each with what became of it."""
    first = run_folder.read_prompts().prompts[0]
    cells = (
        ("affine_ablate", "fitted", "<b>Mix</b> it", "answered"),
        ("affine_ablate", "random", "", "refused"),
        ("add", "fitted", "I cannot.", "refused"),
    )
    given = [
        Completion(first.id, "", True, first.text, name, kind, 1.0, "Sorry.", text, "refused", what)
        for name, kind, text, what in cells
    ]
    half = replace(given[0], strength=0.5, intervened="Half.")
    run_folder.write_completions([half, *given])
    table = tables_of(run_folder)["side_by_side"]
    best, projections = run_folder.best(), run_folder.read_projections()
    row, column = projections.place(best.hook_point, best.position)
    projected = projections.values[0, row, column].item()
    assert dict(zip(table.headings, (cell.text for cell in table.rows[0]), strict=True)) == {
        "prompt": first.id,
        "class": "harmful",
        "projection": f"{projected:.3f}".replace("-", "−"),
        "text": first.text,
        "plain": "refused · Sorry.",
        "affine ablation": "answered · <b>Mix</b> it",
        "affine ablation of a random direction": "refused · (by its first token)",
        "addition": "refused · I cannot.",
    }
    page = render(run_folder)
    assert "&lt;b&gt;Mix&lt;/b&gt; it" in page
    assert "<b>Mix</b>" not in page


def test_the_report_says_why_two_commands_differ_by_kl(tmp_path):
    run_folder = make_run(tmp_path / "run")
    row = {"hook_point": "blocks.3.hook_resid_post", "position": "last", "is_chosen": True}
    run_folder.write_table("causal_scores", pd.DataFrame([{**row, "verdict": "", "kl": 0.045}]))
    tried = {"intervention": "affine_ablate", "direction": "fitted", "strength": 1.0, "kl": 0.241}
    run_folder.write_table("interventions", pd.DataFrame([tried]))
    run_folder.write_table("side_effects", pd.DataFrame([{**tried, "kl_top_share": 0.8}]))
    tables = {table.name: table for table in shown_tables(gather(run_folder))}
    for name in ("causal_scores", "interventions", "side_effects"):
        assert "KL of the first token (nats)" in tables[name].headings
    assert "others: a few prompts can carry most of a KL" in tables["interventions"].sentence
    side = tables["side_effects"]
    assert side.rows[0][side.headings.index("carried by 3 prompts")].text == "80.0%"
