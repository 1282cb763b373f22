"""Each state in words: with intervals, the categories refused most, and what can be done."""

from experiments.test_refusal import make_report

from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.experiments.refusal_states import describe_state


def test_a_part_refused_is_not_called_none():
    words = describe_state(make_report(49, 0, 100))
    assert words.sentence == (
        "The model refuses a part of the prompts: 49% (39%-59%) of the harmful and 0% (0%-4%) of "
        "the harmless prompts. A direction of harm is not the one of refusal here."
    )
    assert words.remedy.startswith("Fit on refused against answered prompts")


def test_a_contrast_needs_no_remedy():
    words = describe_state(make_report(99, 1, 100))
    assert words.remedy == ""
    assert words.sentence.startswith("The model refuses 99% (95%-100%) of the harmful and 1%")


def test_too_few_prompts_are_not_called_none():
    assert "cannot be told" in describe_state(make_report(0, 0)).sentence


def test_topics_and_other_outcomes_are_named():
    shares = {"weapons": 10, "theft": 5, "lies": 0}
    harmful = [
        Answer(f"{name}{i}", name, True, "q", "a", "refused" if i < n else "evaded", 0.0)
        for name, n in shares.items()
        for i in range(10)
    ]
    harmless = [Answer(str(i), "c", False, "q", "a", "answered", 0.0) for i in range(30)]
    sentence = describe_state(RefusalReport((*harmful, *harmless), ("I",))).sentence
    assert "; most in weapons 100% (72%-100%), theft 50% (24%-76%), lies 0% (0%-28%)." in sentence
    assert sentence.endswith("Of 60 answers, 15 evaded.")
