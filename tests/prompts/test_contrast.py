"""Prompts and their sets: what is checked, the fingerprint, and what a contrast needs."""

import warnings

import pytest

from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.prompts.contrast import Borderline, ContrastSet, Prompt, PromptSet

HARMFUL = [f"Harmful request {number}." for number in range(30)]
HARMLESS = [f"Harmless request {number}." for number in range(30)]


def test_set_from_texts():
    prompts = PromptSet.from_texts("harmful", ["a", "b"])
    assert list(prompts) == [
        Prompt("harmful-001", "a", "uncategorised"),
        Prompt("harmful-002", "b", "uncategorised"),
    ]
    assert len(prompts) == 2
    assert repr(prompts) == f"PromptSet('harmful', 2 prompts, sha256 {prompts.sha256[:8]})"


def test_set_from_texts_is_checked_like_a_file():
    with pytest.raises(RefusalLensError) as caught:
        PromptSet.from_texts("harmful", ["a", " "])
    assert str(caught.value) == ("harmful[1]: the text is empty. Fill it in or remove the prompt.")
    with pytest.raises(RefusalLensError) as caught:
        PromptSet.from_texts("harmful", "How?")
    assert str(caught.value) == (
        "The set 'harmful' needs a list of texts, but a single string came. Put it in brackets."
    )
    with pytest.warns(
        RefusalLensWarning, match=r"^harmful: .*\nharmful\[1\] repeats harmful\[0\]$"
    ):
        assert len(PromptSet.from_texts("harmful", ["a", "A"])) == 1


def test_fingerprint_depends_on_what_prompts_hold_and_on_their_order_alone():
    def sha(*prompts: Prompt, name: str = "x") -> str:
        return PromptSet(name, prompts).sha256

    a, b = Prompt("1", "ab", "c", source="here"), Prompt("2", "d", "e")
    # Fixed: a change of this value makes every stored run look like another prompt set.
    assert sha(a, b) == "27ede37832c35da7646cde1233dea972b76505da58e40e35dd792226677b7bb6"
    assert sha(a, b) == sha(Prompt("1", "ab", "c", source="there"), b, name="y")
    others = [
        sha(b, a),
        sha(a),
        sha(Prompt("1", "a", "bc"), b),
        sha(Prompt("3", "ab", "c"), b),
        sha(Prompt("1", "ab", "d"), b),
        sha(Prompt("1", "ab", "c", "p"), b),
        sha(Prompt("1", "ab", "c", "", "p"), b),
    ]
    assert len({sha(a, b), *others}) == 8


def test_contrast_set_keeps_harmful_first():
    contrast = ContrastSet.from_texts(HARMFUL, HARMLESS[:30])
    assert [prompt.text for prompt in contrast.prompts] == HARMFUL + HARMLESS
    assert contrast.is_harmful == (True,) * 30 + (False,) * 30
    assert len(contrast) == 60
    assert (contrast.harmful.name, contrast.harmless.name) == ("harmful", "harmless")


@pytest.mark.parametrize(("n_harmful", "n_harmless"), [(29, 30), (30, 29)])
def test_small_side_warns(n_harmful, n_harmless):
    with pytest.warns(RefusalLensWarning) as caught:
        ContrastSet.from_texts(HARMFUL[:n_harmful], HARMLESS[:n_harmless])
    assert [str(warning.message) for warning in caught] == [
        "A contrast set needs 30 prompts a side for numbers that can be believed, but "
        f"{n_harmful} harmful and {n_harmless} harmless came. Add prompts, or take the results as "
        "a try-out."
    ]


def test_thirty_a_side_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ContrastSet.from_texts(HARMFUL, HARMLESS)


def test_empty_side_is_an_error():
    with pytest.raises(RefusalLensError) as caught:
        ContrastSet(PromptSet.from_texts("harmful", HARMFUL), PromptSet("harmless", ()))
    assert str(caught.value) == (
        "A contrast set needs prompts on both sides, but 30 harmful and 0 harmless came. "
        "Add prompts to the empty one."
    )


def test_borderline_prompts_are_of_neither_class():
    contrast = ContrastSet.from_texts(HARMFUL, HARMLESS)
    others = PromptSet.from_texts("borderline", ["How is a process killed?", "Who shot film?"])
    borderline = Borderline.of(others, contrast)
    assert borderline.prompts == others.prompts
    assert borderline.is_harmful == (False, False)
    assert borderline.counts([1]) == {"borderline": 1}
    for texts, name in ((HARMFUL, "harmful"), (HARMLESS, "harmless")):
        with pytest.raises(RefusalLensError, match=f"either {name} or borderline, "):
            Borderline.of(PromptSet.from_texts("borderline", texts[:1]), contrast)


def test_text_on_both_sides_is_an_error_with_both_places():
    intro = (
        "A prompt is either harmful or harmless, but these texts stand in both sets. "
        "Remove each from one of them.\n"
    )
    with pytest.raises(RefusalLensError) as caught:
        ContrastSet.from_texts(HARMFUL, [*HARMLESS, HARMFUL[2]])
    assert str(caught.value) == f"{intro}harmful[2] and harmless[30]: 'Harmful request 2.'"
    by_hand = PromptSet("harmless", tuple(Prompt(f"n{i}", HARMFUL[i], "") for i in range(30)))
    with pytest.raises(RefusalLensError) as caught:
        ContrastSet(PromptSet.from_texts("harmful", HARMFUL), by_hand)
    assert str(caught.value).splitlines()[1] == "harmful[0] and n0: 'Harmful request 0.'"
    assert str(caught.value).splitlines()[-1] == "... and 20 more"
