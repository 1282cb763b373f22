"""What is written around a prompt: the day, the start of an answer, and where prompts end."""

import json
from datetime import datetime

import pytest
from conftest import CHATML, make_tokenizer

from refusal_lens.prompts.chat_format import (
    ChatFormat,
    date_of,
    date_written,
    find_ending,
    keep_date,
    render,
    set_chat_format,
)

NO_GENERATION_PROMPT = CHATML.partition("{% if add_generation_prompt")[0]
OPEN_THINK = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
CLOSED_THINK = CHATML.replace(
    "assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{% endif %}{% endfor %}"
)
DATED = "{{ 'Today Date: ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML


@pytest.mark.parametrize("template", [CHATML, CLOSED_THINK, INST, None])
def test_prompts_that_end_where_the_answer_begins_are_not_remarked_on(template):
    assert find_ending(make_tokenizer(template=template), None) is None


def test_template_without_generation_prompt_is_told_with_its_last_token_and_the_remedy():
    tokenizer = make_tokenizer(template=NO_GENERATION_PROMPT)
    ending = find_ending(tokenizer, None)
    newline = tokenizer("\n")["input_ids"][0]
    assert (ending.token, ending.token_id) == ("\n", newline)
    assert ending.cause == (
        f"The chat template writes no generation prompt: the last token is '\\n' (id {newline}), "
        "where the user's turn ends, and answers begin behind '<|im_start|>assistant\\n'."
    )
    assert ending.remedy == (
        'Set prompts.answer_start to "<|im_start|>assistant\\n", to write that behind every prompt.'
    )


@pytest.mark.parametrize(
    ("tag", "closing"),
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<seed:think>", "</seed:think>"),
        ("<reasoning>", "</reasoning>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_open_reasoning_block_is_told(tag, closing):
    ending = find_ending(make_tokenizer(template=OPEN_THINK.replace("<think>", tag)), None)
    assert ending.cause.startswith(
        f"The chat template ends inside a reasoning block ({tag} is opened and not closed)"
    )
    assert json.dumps(f"\n{closing}\n\n") in ending.remedy


@pytest.mark.parametrize("template", [NO_GENERATION_PROMPT, OPEN_THINK])
def test_remedy_that_is_offered_mends_the_ending(template):
    tokenizer = make_tokenizer(template=template)
    remedy = find_ending(tokenizer, None).remedy
    answer_start = json.loads(remedy[remedy.index('"') : remedy.rindex('"') + 1])
    before = render(tokenizer, "wash")
    set_chat_format(tokenizer, ChatFormat(answer_start=answer_start))
    assert render(tokenizer, "wash") == before + answer_start
    assert find_ending(tokenizer, None) is None


def test_reasoning_in_the_users_own_words_opens_nothing():
    tokenizer = make_tokenizer()
    assert find_ending(tokenizer, "Write <think> before you think.") is None


def test_a_tokenizer_writes_the_same_day_after_midnight(clock):
    tokenizer = make_tokenizer(template=DATED)
    before = render(tokenizer, "wash")
    clock.day = datetime(2026, 11, 28, 0, 0, 5)
    assert render(tokenizer, "wash") == before
    assert before.startswith("Today Date: 27 Nov 2026\n")
    # Before: transformers' own clock goes on.
    messages = [{"role": "user", "content": "wash"}]
    today = f"Today Date: {datetime.now():%d %b %Y}\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(today)


def test_day_that_is_asked_for_is_written(clock):
    tokenizer = make_tokenizer(template=DATED)
    set_chat_format(tokenizer, ChatFormat(date="2024-07-26"))
    assert render(tokenizer, "wash").startswith("Today Date: 26 Jul 2024\n")
    keep_date(tokenizer, "2025-01-01")  # of work begun earlier: the day asked for goes before
    assert date_of(tokenizer) == "2024-07-26"


def test_day_of_work_begun_earlier_goes_on(clock):
    tokenizer = make_tokenizer(template=DATED)
    keep_date(tokenizer, "2025-01-01")
    keep_date(tokenizer, None)
    assert date_written(tokenizer, None) == "2025-01-01"


def test_templates_that_write_no_day_have_none():
    assert date_written(make_tokenizer(), None) is None
    assert date_written(make_tokenizer(template=None), None) is None


STARTS = ["", "\n", "  {% if true %}x{% endif %}\n", "  x", "{#- a -#}\n "]


@pytest.mark.parametrize("start", STARTS)
def test_taking_the_clock_out_leaves_the_rest_of_a_template_as_it_is(start):
    template = start + "{%- set day = strftime_now('%-d %B, %Y') %}{{ day }}\n" + CHATML
    tokenizer = make_tokenizer(template=template)
    messages = [{"role": "user", "content": "wash"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    set_chat_format(tokenizer, ChatFormat(date=datetime.now().date().isoformat()))
    assert render(tokenizer, "wash") == expected
