"""Hooks of mkdocs: pages stand where they are in the repository, beside what they link to."""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
KINDS = {".md", ".png", ".yaml", ".ipynb", ".json", ".csv", ".py"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every tracked page, and what pages may link to."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if Path(name).suffix in KINDS and not name.startswith(".github/docs/"):
            files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """List the public names below the heading of their page."""
    if page.file.src_uri != "library.md":
        return markdown
    stub = (ROOT / "refusal_lens" / "__init__.pyi").read_text(encoding="utf-8")
    names = re.findall(r"^from \.([\w.]+) import (\w+) as", stub, re.MULTILINE)
    return "\n\n".join([markdown, *(f"::: refusal_lens.{room}.{name}" for room, name in names)])
