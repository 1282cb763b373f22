"""The page itself: what stands in it, laid out by the template beside this module.

Knows how figures, tables and texts get into one file that needs nothing else. Words no answers.
"""

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from refusal_lens.config_files import dump_config
from refusal_lens.models.hook_points import site_of
from refusal_lens.plots.picture_files import FIT_FIGURE
from refusal_lens.report.answer import answer, reasons
from refusal_lens.report.drawings import ShownFigure, draw_all, embed, themes
from refusal_lens.report.evidence import Evidence, gather
from refusal_lens.report.tables import readable, shown_tables
from refusal_lens.runs.folder import RunFolder
from refusal_lens.validation.best_place import suggest_kernel

TEMPLATES = Path(__file__).parent / "templates"


def build_report(run_folder: RunFolder, drawn: Mapping[str, go.Figure] | None = None) -> Path:
    """Write the report of a run, `report.html`, and return its path.

    The page needs no network and no other file. Stages that have not run are left out.

    Args:
        run_folder: The run.
        drawn: Figures of it that have been drawn already, in light, by their names.

    Raises:
        RefusalLensError: The run has no scores yet.
    """
    return run_folder.write_report(render(run_folder, drawn))


def render(run_folder: RunFolder, drawn: Mapping[str, go.Figure] | None = None) -> str:
    """Return the report of a run as one HTML page."""
    evidence = gather(run_folder)
    figures = list(draw_all(run_folder, drawn))
    shown = [figure for figure in figures if isinstance(figure, ShownFigure)]
    headings = dict.fromkeys(figure.folded for figure in shown if figure.folded)
    template = _environment().get_template("report.html.j2")
    return template.render(
        **_identity(run_folder, evidence),
        **_findings(evidence),
        figures=shown,
        open_figures=[figure for figure in shown if not figure.folded],
        folded_figures={
            heading: [figure for figure in shown if figure.folded == heading]
            for heading in headings
        },
        not_drawn=[missing for missing in figures if isinstance(missing, tuple)],
        tables=list(shown_tables(evidence)),
        kernel=_kernel(evidence),
        themes=embed(json.dumps(themes())),
        plotly=Markup(get_plotlyjs()),
        style=_source("report.css"),
        script=Markup(FIT_FIGURE) + _source("report.js"),
        **_reproduction(run_folder),
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    return environment


def _source(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


# --- what was found -----------------------------------------------------------------------------


def _identity(run_folder: RunFolder, evidence: Evidence) -> dict[str, Any]:
    """Return what the header says: of which model, prompts and run this is."""
    provenance = run_folder.read_provenance()
    model = provenance["model"]
    separation = evidence.separation
    facts = {
        "run": str(run_folder.path),
        "collected": _when(str(provenance.get("collected_at", "unknown"))),
        "prompts": ", ".join(
            f"{len(side)} {side.name}"
            for side in (evidence.prompts.harmful, evidence.prompts.harmless)
        ),
        "places": f"{len(separation.hook_points)} hook points "
        f"({', '.join(dict.fromkeys(map(site_of, separation.hook_points)))}) "
        f"at position {', '.join(separation.positions)}",
        "model": f"{evidence.n_layers} layers, d_model {model.get('d_model', 'unknown')}, "
        f"{model.get('dtype', 'unknown dtype')}",
    }
    return {"model_name": Path(str(model["name"])).name, "facts": facts}


def _when(moment: str) -> str:
    """Write a moment to the minute: `2026-01-31T12:34:56+00:00` is `2026-01-31 12:34 UTC`."""
    return re.sub(r"^(\S+)T(\d\d:\d\d):\d\d\+00:00$", r"\1 \2 UTC", moment)


def _findings(evidence: Evidence) -> dict[str, Any]:
    """Return answer, reasons, checklist and diagnosis."""
    return {
        "replies": answer(evidence),
        "reasons": reasons(evidence),
        "checks": evidence.diagnosis.checks,
        "findings": evidence.diagnosis.findings,
    }


def _kernel(evidence: Evidence) -> dict[str, Any] | None:
    """Return the weight kernel and its weight at every layer; None where there is none."""
    best = evidence.best
    kernel = suggest_kernel(evidence.separation, best) if best and best.is_eligible else None
    if kernel is None:
        return None
    weights = [kernel.weight(layer) for layer in range(evidence.n_layers)]
    return {"shape": kernel, "weights": weights}


def _reproduction(run_folder: RunFolder) -> dict[str, Any]:
    """Return the commands that make this run again, and all that is known of how it was made."""
    provenance = run_folder.read_provenance()
    versions = provenance.get("versions", {})
    not_pinned = ("python", "refusal-lens")
    packages = {name: version for name, version in versions.items() if name not in not_pinned}
    # A build such as +cpu is a wheel's own affair; indexes do not list it.
    pins = [f"{name}=={version.partition('+')[0]}" for name, version in packages.items()]
    run = ["refusal-lens", "run", str(run_folder.config_path), "--output", "reproduced"]
    code = provenance.get("code")
    source, clone = ".", []
    if code is not None:
        source = f"./refusal_lens-{code['commit'][:7]}"
        clone = [
            f"{shlex.join(['git', 'clone', code['repository'], source])} && "
            f"git -C {source} checkout {code['commit']}",
            f"python3 -m venv {source}/.venv && . {source}/.venv/bin/activate",
        ]
    # Where none is set each run finds the fastest on its machine, and the last digits follow it.
    budget = provenance.get("collection", {}).get("token_budget")
    if budget is not None:
        run += ["--set", f"collect.token_budget={budget}"]
    return {
        "code": code,
        "commands": [
            *clone,
            shlex.join(["pip", "install", "-e", source, *pins]),
            shlex.join(run),
        ],
        "versions": versions,
        "config": dump_config(run_folder.read_config()),
        "provenance": json.dumps(provenance, indent=2, ensure_ascii=False),
    }
