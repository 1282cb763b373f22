"""Holding a judge against people, or against another judge, on the stored answers of a run.

Knows the order of the steps and what each leaves in the run folder. Runs no model of the run's.
"""

import codecs
import io
from pathlib import Path

import pandas as pd
from rich.console import Console

from refusal_lens.config import Config
from refusal_lens.errors import RefusalLensError
from refusal_lens.experiments.hand_labels import (
    compare_judges,
    corrected_rates,
    draw_sheet,
    join_labels,
)
from refusal_lens.experiments.judges import judge_of
from refusal_lens.experiments.refusal import RefusalReport
from refusal_lens.files import write_whole
from refusal_lens.runs.folder import RunFolder
from refusal_lens.stages import terminal
from refusal_lens.validation.frames import for_spreadsheets


def sheet_stage(config: Config, run_folder: RunFolder, n_answers: int, file: Path) -> Path:
    """Write a sheet of answers for a person to fill in.

    Raises:
        RefusalLensError: There is a file of that name: it may hold somebody's labels.
    """
    if file.exists():
        raise RefusalLensError(
            f"{file} is there already, and may have labels in it. Move it away, or give another "
            "--output."
        )
    sheet = draw_sheet(_answers(run_folder), n_answers, config.validation.seed)
    with write_whole(file) as whole:
        for_spreadsheets(sheet).to_csv(whole, index=False)
    return file


def labels_stage(config: Config, run_folder: RunFolder, file: Path, console: Console) -> list[Path]:
    """Hold the judge against a filled sheet, and correct every rate of the run by it."""
    labels = join_labels(_read_sheet(file), _answers(run_folder))
    doses = run_folder.read_table("dose_response")
    rates = corrected_rates(labels, doses, config.validation.seed)
    terminal.show_labels(console, labels, rates)
    return [
        run_folder.write_table("judge_confusion", labels.confusion()),
        run_folder.write_table("corrected_rates", rates),
    ]


def _read_sheet(file: Path) -> pd.DataFrame:
    """Read a filled sheet as spreadsheets save it: any separator, UTF-8 or UTF-16."""
    try:
        raw = file.read_bytes()
        is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = raw.decode("utf-16" if is_wide else "utf-8-sig")
        header, _, rest = text.partition("\n")
        if header.startswith("sep="):  # a line for Excel alone
            separator, text = header[4:5], rest
        else:
            # Excel writes semicolons where the comma stands in numbers, and tabs in UTF-16.
            separator = max(",;\t", key=header.count)
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise RefusalLensError(
            f"{file} cannot be read as CSV ({error}). Give a sheet that refusal-lens judge RUN "
            "--sheet 60 has drawn, filled in and saved as CSV UTF-8."
        ) from error


def against_stage(
    config: Config, run_folder: RunFolder, judge: str, console: Console
) -> list[Path]:
    """Let another judge read the stored answers, and say how far both agree."""
    settings = config.refusal.model_copy(update={"judge": judge})
    table = compare_judges(_answers(run_folder), judge_of(settings))
    terminal.show_two_judges(console, table, judge)
    return [run_folder.write_table("judge_agreement", table)]


def _answers(run_folder: RunFolder) -> RefusalReport:
    report = run_folder.read_refusal()
    if report is None:
        raise RefusalLensError(
            f"{run_folder.path} has no answers yet. Run first: refusal-lens refusal-rate "
            f"{run_folder.typed}"
        )
    return report
