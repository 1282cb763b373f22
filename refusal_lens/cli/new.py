"""The command that asks for model and prompts, writes a config with comments and runs it."""

import json
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refusal_lens.cli.base import console, errors, plain_errors, starting, told_where

if TYPE_CHECKING:
    from refusal_lens.config import Config

QUESTIONS = {
    "model.name": "Model: a folder, a .gguf file or a name on the Hugging Face hub",
    "prompts.harmful": "Prompts that it should refuse: JSON, CSV, Parquet or a line each",
    "prompts.harmless": "Prompts that it should answer",
}
"""What is asked, by the key of the config that the answer becomes."""


CONFIG = Path("outputs/refusal_lens.yaml")


def is_terminal() -> bool:
    """Whether someone can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def new(
    output: Annotated[Path, typer.Option("--output", help="The config to write.")] = CONFIG,
) -> None:
    """Ask for model and prompts, write a config that explains every key, and run it."""
    with plain_errors():
        from refusal_lens.config_files import load_config, shipped_text
        from refusal_lens.errors import RefusalLensError
        from refusal_lens.files import write_whole

        if not is_terminal():
            raise RefusalLensError(
                "refusal-lens new asks questions, and there is no terminal to ask on. Give the "
                "answers as options: refusal-lens run --model M --harmful FILE --harmless FILE."
            )
        if output.exists():
            raise RefusalLensError(
                f"{output} exists. Run it (refusal-lens run {shlex.quote(str(output))}), or give "
                "another --output."
            )
        text = shipped_text("default")
        for key, value in _ask(load_config(None)).items():
            text = set_key(text, key, value)
        with write_whole(output) as file:
            file.write_text(text, encoding="utf-8")
        settings = load_config(output)
        console.print(f"Wrote {output}: every key is explained in it.", markup=False)
        with starting():
            from refusal_lens.stages import study
        run_folder = study.new_run_folder(settings, output.stem, None)
        advice = f" Go on: refusal-lens run --resume --output {run_folder.typed}"
        with told_where(run_folder.path, advice):
            study.run(settings, run_folder, console)


def _ask(defaults: "Config") -> dict[str, str]:
    """Ask every question until its answer can be found; Enter takes what ships."""
    from refusal_lens.config_files import find_resource

    answers: dict[str, str] = {}
    for key, question in QUESTIONS.items():
        section, name = key.split(".")
        default = getattr(getattr(defaults, section), name)
        while True:
            answer = typer.prompt(question, default=default).strip()
            is_file = section == "prompts"
            if answer and (not is_file or find_resource(answer) is not None):
                break
            errors.print(f"There is no file {answer}. Give another.", markup=False)
        answers[key] = answer
    return answers


def set_key(text: str, key: str, value: str) -> str:
    """Set one key of a config's text, and leave its comments.

    Example:
        >>> print(set_key("model:  # which" + chr(10) + "  name: a", "model.name", "b"))
        model:  # which
          name: "b"
    """
    section, name = key.split(".")
    pattern = rf"(^{section}:.*?^  {name}:)[^\n]*"
    written = json.dumps(value, ensure_ascii=False)
    return re.sub(pattern, lambda found: f"{found[1]} {written}", text, count=1, flags=re.M | re.S)
