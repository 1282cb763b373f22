"""The whole study, readable top to bottom, from prompts to the report.

Knows the order of the stages and what each leaves in the run folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import torch
from rich.console import Console

from refusal_lens.activations.collection import Collection
from refusal_lens.activations.engines import make_engine
from refusal_lens.activations.provenance import describe_machine
from refusal_lens.config import Config
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.answer_lengths import most_tokens
from refusal_lens.experiments.refusal import RefusalReport, measure_refusal
from refusal_lens.files import (
    nearest_sibling,
    portable_name,
    remove_partial,
    remove_partial_of,
)
from refusal_lens.journal import Journal
from refusal_lens.models.backends import Model, tokenizer_of
from refusal_lens.models.hook_points import resolve_of_one_width
from refusal_lens.plots.picture_files import export
from refusal_lens.prompts.chat_format import ChatFormat, keep_date, set_chat_format
from refusal_lens.prompts.contrast import Borderline, ContrastSet, PromptSet
from refusal_lens.prompts.files import read_contrast, read_prompts
from refusal_lens.prompts.groups import find_groups, take_whole
from refusal_lens.prompts.positions import check_positions
from refusal_lens.prompts.tokens import Tokens
from refusal_lens.report import build_report
from refusal_lens.runs import figures
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages import terminal
from refusal_lens.stages.fit import fit_stage
from refusal_lens.stages.outlook import Outlook, Work, look_ahead
from refusal_lens.validation.crossfit import check_can_hold_out
from refusal_lens.validation.units import pair_units

DEFAULT_FIGURES = ("projection_histogram", "layer_profile")


def run(
    config: Config,
    run_folder: RunFolder,
    console: Console,
    *,
    resume: bool = False,
    is_wide: bool = False,
) -> None:
    """Do the whole study and leave it in the run folder; what is there already is not redone."""
    measured = run_folder.read_refusal() if resume else None
    work: list[Work] = ["answers", "activations"] if measured is None else ["activations"]
    collection, model = prepare(config, run_folder, console, work=work, is_wide=is_wide)
    if measured is None:
        measured = measure_and_store(config, run_folder, model, collection.prompts)
    if is_wide:
        terminal.show_refusal(console, measured, is_wide=True)
    else:
        terminal.show_rates(console, measured)
    collect_stage(config, run_folder, model, collection, console, resume=resume, is_wide=is_wide)
    kept = [s for s in ("fit", "plot", "report") if resume and run_folder.is_finished(s, config)]
    if "fit" not in kept:
        fit_stage(config, run_folder, console, is_wide=is_wide)
    drawn: dict[Path, go.Figure] = {}
    if "plot" not in kept:
        drawn = plot_stage(run_folder)
        run_folder.finish("plot", config, drawn)
    terminal.show_kept(console, kept)
    if "report" not in kept:
        run_folder.finish("report", config, [report_stage(run_folder, console, drawn)])


def prepare(
    config: Config,
    run_folder: RunFolder,
    console: Console,
    *,
    work: Sequence[Work],
    is_wide: bool = False,
) -> tuple[Collection, Model]:
    """Read prompts, load the model, and check both against the settings before long work starts."""
    prompts = _read_prompts(config, run_folder, work)
    with console.status(f"Loading {config.model.name}"):
        model = config.model.load()
    resolve_of_one_width(model, config.collect.hook_points)
    collection = _collection(config, run_folder, tokenizer_of(model), prompts)
    check_positions(collection.tokens, collection.positions, getattr(model.cfg, "n_ctx", None))
    outlook = look_ahead(collection, model, work, most_tokens(config.refusal.n_new_tokens))
    _begin(config, run_folder, collection, outlook, console, is_wide=is_wide)
    return collection, model


def prepare_without_model(
    config: Config, run_folder: RunFolder, console: Console, *, is_wide: bool = False
) -> Collection:
    """Read prompts and check them as far as the tokenizer can: workers will load the model."""
    prompts = _read_prompts(config, run_folder, ["activations"])
    tokenizer = config.model.tokenizer()
    collection = _collection(config, run_folder, tokenizer, prompts)
    outlook = look_ahead(
        collection, None, ["activations"], most_tokens(config.refusal.n_new_tokens)
    )
    _begin(config, run_folder, collection, outlook, console, is_wide=is_wide)
    return collection


def _collection(
    config: Config, run_folder: RunFolder, tokenizer: Any, prompts: ContrastSet
) -> Collection:
    """Tokenise the prompts as the settings say, on the day that the run was begun."""
    set_chat_format(tokenizer, ChatFormat.of(config.prompts))
    keep_date(tokenizer, run_folder.date())
    return Collection.of(
        tokenizer,
        prompts,
        system_prompt=config.prompts.system_prompt,
        **config.collect.model_dump(),
    )


def _read_prompts(config: Config, run_folder: RunFolder, work: Sequence[Work]) -> ContrastSet:
    prompts = read_contrast(
        config.prompts.harmful,
        config.prompts.harmless,
        text_field=config.prompts.text_field,
        harmful_text_field=config.prompts.harmful_text_field,
        harmless_text_field=config.prompts.harmless_text_field,
        grouping=config.prompts.groups,
        section="prompts.",
    )
    if config.prompts.limit is not None:
        prompts = take_whole(prompts, config.prompts.limit)
    run_folder.check_prompts(prompts)
    if "answers" in work:
        # What is wrong with them would be told of only after all other answers.
        _read_borderline(config, prompts)
    if "activations" in work:
        # Directions will be asked for, and what lacks would be told of only after all answers.
        check_can_hold_out(pair_units(torch.tensor(prompts.is_harmful), find_groups(prompts)))
    return prompts


def _read_borderline(config: Config, prompts: ContrastSet) -> Borderline | None:
    """Read the prompts that sound harmful and are not; None where none are asked."""
    file = config.prompts.borderline
    if file is None:
        return None
    borderline = read_prompts(file, "borderline")
    return Borderline.of(
        PromptSet(borderline.name, borderline.prompts[: config.prompts.limit]), prompts
    )


def _begin(
    config: Config,
    run_folder: RunFolder,
    collection: Collection,
    outlook: Outlook,
    console: Console,
    *,
    is_wide: bool,
) -> None:
    """Show what will be read, then begin the run folder."""
    prompts, n_harmful = collection.prompts, len(collection.prompts.harmful)
    tokens = {
        "harmful": collection.tokens.select(range(n_harmful)),
        "harmless": collection.tokens.select(range(n_harmful, len(collection))),
    }
    terminal.show_outlook(console, outlook, config.model.name, collection.tokens_read)
    if is_wide:
        terminal.show_prompts(console, prompts, tokens)
        terminal.show_groups(console, find_groups(prompts))
        terminal.show_positions(console, collection.tokens_read)
    remove_partial(run_folder.path)
    run_folder.write_config(config, date=collection.chat_template["date"])
    run_folder.write_prompts(prompts)
    run_folder.write_table("token_counts", _count_tokens(tokens))


def _count_tokens(tokens: dict[str, Tokens]) -> pd.DataFrame:
    """Count the tokens of every prompt, and of the user's own text in it."""
    rows = [
        {
            "prompt_id": prompt_id,
            "is_harmful": name == "harmful",
            "n_tokens": length,
            "n_own_tokens": stop - first,
        }
        for name, side in tokens.items()
        for prompt_id, length, (first, stop) in zip(
            side.prompt_ids, side.lengths, side.instruction_spans, strict=True
        )
    ]
    return pd.DataFrame(rows)


def measure_and_store(
    config: Config, run_folder: RunFolder, model: Model, prompts: ContrastSet
) -> RefusalReport:
    """Measure refusal as the settings say, and write the answers down."""
    with run_folder.unfinished("refusal-rate") as journal:
        report = measure_refusal(
            model,
            prompts,
            config.refusal,
            system_prompt=config.prompts.system_prompt,
            journal=journal,
        )
        borderline = _read_borderline(config, prompts)
        if borderline is not None:
            _measure_borderline(config, run_folder, model, borderline, report, journal)
        run_folder.write_refusal(report)
        run_folder.write_table("refusal_by_length", report.length_table())
    return report


def _measure_borderline(
    config: Config,
    run_folder: RunFolder,
    model: Model,
    prompts: Borderline,
    measured: RefusalReport,
    journal: Journal,
) -> None:
    """Read and answer borderline prompts as all others, and write that down."""
    collection = _collection(config, run_folder, tokenizer_of(model), prompts)
    make_engine(model).collect(collection, run_folder.borderline_path, resume=True)
    # As long as all other answers, and no other refusal tokens: none can be found without a class.
    known = {"n_new_tokens": measured.lengths[-1], "first_words": list(measured.refusal_tokens)}
    report = measure_refusal(
        model,
        prompts,
        config.refusal.model_copy(update=known),
        system_prompt=config.prompts.system_prompt,
        journal=journal,
    )
    run_folder.write_borderline(report)


def collect_stage(
    config: Config,
    run_folder: RunFolder,
    model: Model | None,
    collection: Collection,
    console: Console,
    *,
    resume: bool = False,
    is_wide: bool = False,
) -> None:
    """Collect activations, shard by shard, and write where they came from.

    Workers over Ray load models of their own: `model` may then be None.
    """
    source = model if model is not None and config.engine.name == "local" else config.model
    engine = make_engine(source, config.engine)
    activations = engine.collect(collection, run_folder.activations_path, resume=resume)
    if not (run_folder.path / "provenance.json").is_file():
        run_folder.write_provenance({**activations.provenance, **describe_machine()})
    if is_wide:
        terminal.show_sinks(console, activations.provenance["sinks"])


def plot_stage(
    run_folder: RunFolder,
    names: Sequence[str] = DEFAULT_FIGURES,
    *,
    ending: str = "html",
    theme: str = "light",
    folder: Path | None = None,
    width: int = 1000,
    scale: float = 2.0,
) -> dict[Path, go.Figure]:
    """Draw figures into files, by default into the run folder, and return them by their files.

    Args:
        run_folder: The run.
        names: Keys of `figures.FIGURES`; `all` stands for those that the run has the files for.
        ending: html, json, png, svg or pdf.
        theme: light or dark.
        folder: Where to write.
        width: Of pictures, in pixels.
        scale: Dots a pixel of a png.
    """
    wanted = dict.fromkeys(
        found
        for name in names
        for found in (figures.available(run_folder) if name == "all" else [name])
    )
    remove_partial(run_folder.path)
    if folder is not None:
        remove_partial_of(folder, figures.FIGURES)
    drawn = {
        (folder or run_folder.path) / f"{name}.{ending}": figures.draw_figure(
            run_folder, name, theme
        )
        for name in wanted
    }
    export(drawn, width=width, scale=scale)
    run_folder.record_files(drawn)
    return drawn


def report_stage(
    run_folder: RunFolder, console: Console, drawn: Mapping[Path, go.Figure] | None = None
) -> Path:
    """Write the report of what the run folder holds by now, and say where it is.

    `drawn` are figures that `plot_stage` has just returned: these are not drawn again.
    """
    remove_partial(run_folder.path)
    with console.status("Writing the report"):
        path = build_report(run_folder, {file.stem: each for file, each in (drawn or {}).items()})
    terminal.show_report(console, path)
    return path


def new_run_folder(
    config: Config, config_name: str, output: Path | None, *, resume: bool = False
) -> RunFolder:
    """Choose the run's folder: the one asked for, or the next free one of this model and config.

    With `resume` it goes on with the run in `output`, or begins one where there is none yet;
    without, it is never one that holds a run already. It may not exist yet.

    Raises:
        RefusalLensError: `output` holds a run, without `resume`; a run with other settings; or,
            with `resume`, it does not exist.
    """
    if output is not None:
        run_folder = RunFolder(output)
        if resume and not output.exists():
            raise RefusalLensError(
                f"There is no folder {output} to go on with{nearest_sibling(output)}. Without "
                "--resume a new run begins there."
            )
        if run_folder.config_path.is_file() and not resume:
            raise RefusalLensError(
                f"{output} holds a run already. Go on with it by --resume, or give another "
                "--output."
            )
        if run_folder.config_path.is_file():
            run_folder.check_config(config)
        return run_folder
    if resume:
        raise RefusalLensError("--resume needs to know which run to go on with. Add --output RUN.")
    parent = Path(config.output) / portable_name(Path(config.model.name).name)
    for number in range(1, 10_000):
        path = parent / portable_name(config_name if number == 1 else f"{config_name}-{number}")
        if not path.exists():
            return RunFolder(path)
    raise AssertionError("ten thousand runs of one config")
