"""How a prompt is written out for the model: the chat template, and what is added to it.

Knows the day that a template may write, what stands behind it, and where an answer begins. Does not
know tokens beyond the last, nor models beyond their tokenizer.
"""

import json
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from refusal_lens.errors import RefusalLensError

PLACEHOLDER = "REFUSALLENSPLACEHOLDER"
"""Stands for the user's text when a template is rendered to find what surrounds that text."""

ANSWER = "REFUSALLENSANSWER"
"""Stands for the model's answer, to find where the template puts it."""

THINKING = re.compile(
    r"[<\[◁]\|?(/|end_of_|end_)?(begin_of_|start_)?(?:\w+:)?(?:think|thinking|thought|reasoning)"
    r"\|?[>\]▷]",
    re.IGNORECASE,
)
"""Opens or closes a block in which a model reasons before it answers."""


@dataclass(frozen=True)
class ChatFormat:
    """What is decided about how prompts are written out, beside the system prompt.

    It goes with the tokenizer, as the template does (`set_chat_format`), so that all that reads
    prompts through one model reads the same.

    Args:
        date: What a template that writes the day's date takes for today (`2026-11-28`); None is the
            day on which the tokenizer first wrote a prompt.
        answer_start: Is written behind every prompt, where a template ends before the answer does
            begin.
        control_tokens: What becomes of control tokens in a prompt's own text: they are refused,
            read as plain text, or kept as what they are.
    """

    date: str | None = None
    answer_start: str = ""
    control_tokens: Literal["refuse", "plain", "keep"] = "refuse"

    @classmethod
    def of(cls, settings: Any) -> "ChatFormat":
        """Read it from a run's settings of prompts, which have the same names."""
        return cls(settings.date, settings.answer_start, settings.control_tokens)


def set_chat_format(tokenizer: Any, chat_format: ChatFormat) -> None:
    r"""Decide how this tokenizer writes prompts out from now on.

    Example:
        >>> set_chat_format(tiny_model.tokenizer, ChatFormat(answer_start="Sure"))
        >>> render(tiny_model.tokenizer, "Hello")[-14:]
        'assistant\nSure'
        >>> set_chat_format(tiny_model.tokenizer, ChatFormat())
    """
    tokenizer.chat_format, tokenizer.chat_date = chat_format, chat_format.date


def chat_format_of(tokenizer: Any) -> ChatFormat:
    """Return how a tokenizer writes prompts out."""
    return getattr(tokenizer, "chat_format", ChatFormat())


def date_of(tokenizer: Any) -> str:
    """Return the day that templates take for today: the same one as long as the tokenizer lives."""
    if getattr(tokenizer, "chat_date", None) is None:
        tokenizer.chat_date = datetime.now().date().isoformat()
    return tokenizer.chat_date


def keep_date(tokenizer: Any, date: str | None) -> None:
    """Go on with the day of work that was begun earlier, unless another was asked for."""
    if date is not None and chat_format_of(tokenizer).date is None:
        tokenizer.chat_date = date


def date_written(tokenizer: Any, system_prompt: str | None) -> str | None:
    """Return the day that the template writes into prompts; None where it writes none."""
    messages = _messages(PLACEHOLDER, system_prompt)
    days = ("2001-01-01", "2022-12-22")
    first, second = (_apply_chat_template(tokenizer, messages, date=day) for day in days)
    return None if first == second else date_of(tokenizer)


def render(tokenizer: Any, text: str, system_prompt: str | None = None) -> str:
    """Write one prompt out as the model will see it, before tokenisation."""
    rendered = _apply_chat_template(tokenizer, _messages(text, system_prompt))
    return rendered + chat_format_of(tokenizer).answer_start


def _messages(text: str, system_prompt: str | None) -> list[dict[str, str]]:
    system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
    return [*system, {"role": "user", "content": text}]


def _apply_chat_template(
    tokenizer: Any,
    messages: list[dict[str, str]],
    *,
    is_answer_next: bool = True,
    date: str | None = None,
) -> str:
    if tokenizer.chat_template is None:
        return "".join(message["content"] for message in messages)
    try:
        chat_template = _on_day(tokenizer.get_chat_template(), date or date_of(tokenizer))
        # enable_thinking reaches templates that have it (Qwen3), and is ignored by all others.
        return tokenizer.apply_chat_template(
            messages,
            chat_template=chat_template,
            tokenize=False,
            add_generation_prompt=is_answer_next,
            enable_thinking=False,
        )
    except Exception as error:
        raise _chat_template_failed(tokenizer, messages, error) from error


def _chat_template_failed(
    tokenizer: Any, messages: list[dict[str, str]], error: Exception
) -> RefusalLensError:
    """Say why a template fails: in words of its own ("System role not supported"), or a fault."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    roles = [message["role"] for message in messages]
    way_on = (
        "set prompts.system_prompt to null if it takes none"
        if "system" in roles
        else "mend the chat_template of its tokenizer"
    )
    return RefusalLensError(
        f"The chat template of {tokenizer.name_or_path or 'this tokenizer'} fails on "
        f"{' and '.join(roles)} ({reason}): {way_on}."
    )


def _on_day(chat_template: str, date: str) -> str:
    """Take the clock out of a template, so that it writes one day however long the work lasts.

    transformers offers templates the function `strftime_now`, and takes no other in its place; a
    macro of that name goes before it. The newline behind the macro is what Jinja takes off there.
    """
    if "strftime_now" not in chat_template:
        return chat_template
    day, written = datetime.fromisoformat(date), "format"
    for directive in sorted(set(re.findall(r"%[-#]?[a-zA-Z]", chat_template))):
        written += f" | replace({directive!r}, {day.strftime(directive)!r})"
    return f"{{% macro strftime_now(format) %}}{{{{ {written} }}}}{{% endmacro %}}\n{chat_template}"


# --- where an answer begins -----------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """A prompt that ends elsewhere than where the answer begins, and what would mend that.

    `token` is the one that position `last` reads.
    """

    cause: str
    remedy: str
    token: str
    token_id: int


def find_ending(tokenizer: Any, system_prompt: str | None) -> Ending | None:
    """Say where prompts end, if that is not where the model begins its answer.

    A template without a generation prompt is no fault by itself (`[INST] ... [/INST]` has none):
    what counts is whether it writes something between a prompt and its answer.
    """
    if tokenizer.chat_template is None:
        return None
    rendered = render(tokenizer, PLACEHOLDER, system_prompt)
    token_id = tokenizer(rendered, add_special_tokens=False)["input_ids"][-1]
    token = tokenizer.decode([token_id])
    named = f"the last token is {token!r} (id {token_id})"
    tag = _open_thinking(rendered.partition(PLACEHOLDER)[2])
    if tag is not None:
        opened, closed = tag
        return Ending(
            f"The chat template ends inside a reasoning block ({opened} is opened and not closed): "
            f"{named}, and what follows is the model's thoughts and not its answer, so that "
            "refusals are looked for in thoughts.",
            f"Set prompts.answer_start to {json.dumps(f'{chr(10)}{closed}{chr(10) * 2}')}, which "
            "closes it behind every prompt.",
            token,
            token_id,
        )
    between = _before_the_answer(tokenizer, system_prompt)
    if not between.strip() or chat_format_of(tokenizer).answer_start:
        return None
    return Ending(
        f"The chat template writes no generation prompt: {named}, where the user's turn ends, and "
        f"answers begin behind {between!r}.",
        f"Set prompts.answer_start to {json.dumps(between)}, to write that behind every prompt.",
        token,
        token_id,
    )


def _open_thinking(text: str) -> tuple[str, str] | None:
    """Return the tag that opens a reasoning block that nothing closes, and the one that would."""
    tags = list(THINKING.finditer(text))
    if not tags or tags[-1][1]:
        return None
    opened, begins = tags[-1][0], tags[-1][2]
    if begins is None:
        return opened, f"{opened[0]}/{opened[1:]}"
    ends = {"begin_of_": "end_of_", "start_": "end_"}[begins.lower()]
    return opened, opened.replace(begins, ends.upper() if begins.isupper() else ends)


def _before_the_answer(tokenizer: Any, system_prompt: str | None) -> str:
    """Return what the template writes between a prompt and its answer; nothing where it says not.

    Some templates write a conversation that is over otherwise than one that goes on.
    """
    messages = _messages(PLACEHOLDER, system_prompt)
    prompt = _apply_chat_template(tokenizer, messages)
    if prompt != _apply_chat_template(tokenizer, messages, is_answer_next=False):
        return ""
    answered = [*messages, {"role": "assistant", "content": ANSWER}]
    whole = _apply_chat_template(tokenizer, answered, is_answer_next=False)
    return whole[len(prompt) :].partition(ANSWER)[0] if whole.startswith(prompt) else ""
