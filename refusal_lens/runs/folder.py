"""A run folder: what is in it, and how each file is written and read.

Knows file names and layouts. Does not compute or draw what it writes.
"""

import json
import shlex
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from refusal_lens.activations.pooled import Activations
from refusal_lens.activations.store import describe_difference, load_activations
from refusal_lens.config import Config, Labels
from refusal_lens.config_files import dump_config, load_config
from refusal_lens.directions.direction import Directions
from refusal_lens.directions.formats import read_directions, save_directions
from refusal_lens.directions.formats.article import lay_out
from refusal_lens.directions.formats.torch_files import tensors_as_bytes
from refusal_lens.errors import RefusalLensError, RefusalLensWarning
from refusal_lens.experiments.dose_response import Completion
from refusal_lens.experiments.refusal import Answer, RefusalReport
from refusal_lens.files import nearest_sibling
from refusal_lens.journal import Journal
from refusal_lens.models.backends import Model, describe_model, tokenizer_of
from refusal_lens.models.hook_points import site_of
from refusal_lens.prompts.chat_format import ChatFormat, set_chat_format
from refusal_lens.prompts.contrast import PROMPT_FIELDS, ContrastSet, Prompt, PromptSet
from refusal_lens.runs.checksums import (
    begin,
    check,
    finish,
    is_finished,
    record,
    way_back,
    write_recorded,
    writer_of,
)
from refusal_lens.validation.behaviour import Relabelling
from refusal_lens.validation.best_place import Choice, choose_best
from refusal_lens.validation.crossfit import Projections
from refusal_lens.validation.frames import read_frame
from refusal_lens.validation.scores import SCORES
from refusal_lens.validation.separation import Separation

READ_ERRORS = (
    *(ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError),
    *(SafetensorError, OSError, RuntimeError),
)
"""What JSON, pandas, safetensors and torch raise over a file that holds something else."""


def table_file(name: str) -> str:
    """Return where a table of results lies: scores and interventions are first to be looked for."""
    return f"{name}.csv" if name in ("separation", "interventions") else f"tables/{name}.csv"


@dataclass(frozen=True, init=False)
class RunFolder:
    """One run on disk. Every file is written whole or not at all."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @property
    def typed(self) -> str:
        """Its path as it is typed in a command: quoted where it holds spaces."""
        return shlex.quote(str(self.path))

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open a run that exists.

        Raises:
            RefusalLensError: The folder holds no run.
        """
        run = cls(path)
        if run.config_path.is_file():
            return run
        fault = (
            f"{path} is not a run folder (it has no config.yaml)"
            if run.path.exists()
            else f"There is no folder {path}{nearest_sibling(run.path)}"
        )
        raise RefusalLensError(
            f"{fault}. Give the folder that refusal-lens run or collect wrote, such as "
            "outputs/tiny-refuser/default."
        )

    @property
    def config_path(self) -> Path:
        """The resolved settings."""
        return self.path / "config.yaml"

    @property
    def activations_path(self) -> Path:
        """The store of activations."""
        return self.path / "activations"

    @property
    def borderline_path(self) -> Path:
        """The store of borderline prompts' activations."""
        return self.path / "borderline"

    @property
    def direction_path(self) -> Path:
        """The directions in the article's layout."""
        return self.path / "refusal_direction.pt"

    @property
    def separation_path(self) -> Path:
        """The scores of every place."""
        return self.path / "separation.csv"

    def write_config(self, config: Config, date: str | None = None) -> None:
        """Write the resolved settings, with the day that the chat template wrote, if it did."""
        if date is not None:
            prompts = config.prompts.model_copy(update={"date": date})
            config = config.model_copy(update={"prompts": prompts})
        self._write_text(self.config_path.name, dump_config(config))

    def read_config(self, overrides: Sequence[str] = ()) -> Config:
        """Read the settings the run was made with, and lay overrides over them."""
        check(self.path, self.config_path.name)
        return load_config(self.config_path, overrides)

    def date(self) -> str | None:
        """Return the day that the run's chat template takes for today; None where it has none."""
        return self.read_config().prompts.date if self.config_path.is_file() else None

    def check_config(self, config: Config) -> None:
        """Make sure that these are the settings the run was begun with.

        The day on which a run began goes on where no other is asked for.

        Raises:
            RefusalLensError: They differ in more than where the work is done and runs are kept.
        """
        there, now = (
            each.model_dump(exclude={"output", "engine"}) for each in (self.read_config(), config)
        )
        now["prompts"]["date"] = now["prompts"]["date"] or there["prompts"]["date"]
        if there != now:
            raise RefusalLensError(
                f"{self.path} was begun with other settings:\n"
                f"{describe_difference(there, now)}\n"
                "Go on with its own (give --resume and --output alone), or give another --output."
            )

    def write_provenance(self, provenance: dict[str, Any]) -> None:
        """Write where everything in the folder came from."""
        self._write_json("provenance.json", provenance)

    def read_provenance(self) -> dict[str, Any]:
        """Read where everything in the folder came from."""
        with self._reading("provenance.json") as path:
            return dict(json.loads(path.read_text(encoding="utf-8")))

    def write_prompts(self, prompts: ContrastSet) -> None:
        """Write the prompts, so that the run can be read without their files."""
        content = {
            side.name: [{name: getattr(prompt, name) for name in PROMPT_FIELDS} for prompt in side]
            for side in (prompts.harmful, prompts.harmless)
        }
        self._write_json("prompts.json", {"grouping": prompts.grouping, **content})

    def check_prompts(self, prompts: ContrastSet) -> None:
        """Refuse to go on where the prompts have changed since the run was begun."""
        if not (self.path / "prompts.json").is_file():
            return
        there, now = (
            {
                side.name: f"{len(side)} prompts (sha256 {side.sha256[:8]})"
                for side in (each.harmful, each.harmless)
            }
            for each in (self.stored_prompts(), prompts)
        )
        if there != now:
            raise RefusalLensError(
                f"{self.path} was begun with other prompts:\n"
                f"{describe_difference(there, now)}\n"
                "Put the prompt files back as they were, or begin another run."
            )

    def relabelling(self, labels: Labels | None = None) -> Relabelling | None:
        """Return how prompts are labelled by what the model did; None where they are by harm.

        `labels` is `directions.labels`; None takes that of the run's settings.

        Raises:
            RefusalLensError: The run has no answers, or too few of one kind.
        """
        if labels is None:
            is_begun = self.config_path.is_file()
            labels = self.read_config().directions.labels if is_begun else "harm"
        if labels == "harm":
            return None
        refusal = self.read_refusal()
        if refusal is None:
            raise RefusalLensError(
                f"directions.labels is behaviour, but {self.path} has no answers yet. Run first: "
                f"refusal-lens refusal-rate {self.typed}"
            )
        return Relabelling.of([answer.outcome for answer in refusal.answers])

    def read_prompts(self) -> ContrastSet:
        """Read the prompts of the run, labelled as its directions are."""
        stored, relabelling = self.stored_prompts(), self.relabelling()
        return stored if relabelling is None else relabelling.of_prompts(stored)

    def stored_prompts(self) -> ContrastSet:
        """Read the prompts of the run as they came, by harm."""
        with self._reading("prompts.json") as path, warnings.catch_warnings():
            content = json.loads(path.read_text(encoding="utf-8"))
            sides = [
                PromptSet(name, tuple(Prompt(**prompt) for prompt in content[name]))
                for name in ("harmful", "harmless")
            ]
            # Few prompts were warned of when they were read from the user's files.
            warnings.simplefilter("ignore", RefusalLensWarning)
            return ContrastSet(sides[0], sides[1], content["grouping"])

    def read_activations(self, hook_points: Sequence[str] | None = None) -> Activations:
        """Read the activations, at some of the hook points or at all, labelled as prompts are."""
        stored, relabelling = self.stored_activations(hook_points), self.relabelling()
        return stored if relabelling is None else relabelling.of_activations(stored)

    def stored_activations(self, hook_points: Sequence[str] | None = None) -> Activations:
        """Read the activations of all prompts, by harm."""
        if not self.activations_path.is_dir():
            told = self.writer_of(self.activations_path.name)
            raise RefusalLensError(f"{self.path} has no activations. {told}")
        return load_activations(self.activations_path, hook_points)

    def write_refusal(self, report: RefusalReport) -> None:
        """Write refusal rates and every answer."""
        content = {
            "refusal_rate": {"harmful": report.rate(True), "harmless": report.rate(False)},
            "refusal_score": {
                "harmful": report.mean_score(True),
                "harmless": report.mean_score(False),
            },
            **_lay_out_answers(report),
        }
        self._write_json("refusal.json", content)

    def write_borderline(self, report: RefusalReport) -> None:
        """Write every answer to a borderline prompt."""
        self._write_json("borderline.json", _lay_out_answers(report))

    @contextmanager
    def unfinished(self, stage: str) -> Iterator[Journal]:
        """Give the journal of a stage, which is gone once the stage has ended well.

        What it holds is the file's: an interrupted stage that is begun again goes on from there.
        """
        folder = self.path / "unfinished"
        journal = Journal(folder / f"{stage}.jsonl")
        yield journal
        journal.remove()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def begin(self, stage: str) -> None:
        """Take a stage for unfinished until it has ended well."""
        begin(self.path, stage)

    def finish(self, stage: str, config: Config, written: Iterable[str | Path] = ()) -> None:
        """Note that a stage has ended well, by its settings and the figures that it left."""
        names = [Path(path).relative_to(self.path).as_posix() for path in written]
        finish(self.path, stage, _without_place(config), names)

    def is_finished(self, stage: str, config: Config) -> bool:
        """Whether doing a stage again would leave what is there already."""
        return is_finished(self.path, stage, _without_place(config))

    def read_refusal(self) -> RefusalReport | None:
        """Read refusal rates and answers; None when they were not measured."""
        return self._read_answers("refusal.json")

    def read_borderline(self, config: Config | None = None) -> RefusalReport | None:
        """Read answers to borderline prompts; None where none are asked, or refusal not measured.

        The settings say whether they are asked; None takes the run's.

        Raises:
            RefusalLensError: Refusal was measured without them.
        """
        asked = (config or self.read_config()).prompts.borderline
        if asked is None or not (self.path / "refusal.json").is_file():
            return None
        answers = self._read_answers("borderline.json")
        if answers is None:
            raise RefusalLensError(
                f"prompts.borderline is {asked}, but {self.path} has no answers to it. Run first: "
                f"refusal-lens refusal-rate {self.typed} --set prompts.borderline={asked}"
            )
        return answers

    def _read_answers(self, name: str) -> RefusalReport | None:
        if not (self.path / name).is_file():
            return None
        with self._reading(name) as path:
            content = json.loads(path.read_text(encoding="utf-8"))
            answers = tuple(
                Answer(**{**answer, "by_length": tuple(answer.get("by_length", ()))})
                for answer in content["answers"]
            )
            ids, lengths = (tuple(content.get(key, ())) for key in ("refusal_ids", "lengths"))
            return RefusalReport(answers, tuple(content["refusal_tokens"]), ids, lengths)

    def write_directions(self, directions: Directions) -> None:
        """Write all directions, raw, with what they are in the file's header."""
        with write_recorded(self.path, "directions.safetensors") as file:
            save_directions(file, directions)

    def read_directions(self) -> Directions:
        """Read all directions."""
        with self._reading("directions.safetensors") as path:
            return read_directions(path)

    def write_separation(
        self, separation: Separation, p_values: pd.DataFrame | None = None
    ) -> None:
        """Write the scores of every place as CSV, with their p-values where there are any."""
        self._write_csv(self.separation_path.name, _with_p_values(separation, p_values))

    def read_separation(self) -> pd.DataFrame:
        """Read the scores of every place, with the columns that later stages added."""
        with self._reading(self.separation_path.name) as path:
            frame = read_frame(path)
            frame[["hook_point", "position", *SCORES]]  # KeyError without one
            return frame

    def separation(self) -> Separation:
        """Read the scores of every place as `validate` returned them."""
        n_folds = self.read_config().validation.n_folds
        return Separation.from_frame(self.read_separation(), n_folds)

    def best(self, separation: Separation | None = None) -> Choice | None:
        """Choose the best place of the run: the one way for figures, report and experiments.

        The rule is that of its settings (`validation.best_by`).

        Args:
            separation: Scores to choose by; None takes those that the fit wrote.

        Returns:
            The choice; None when there is no direction anywhere.
        """
        scores = self.separation() if separation is None else separation
        n_layers = self.read_provenance()["model"]["n_layers"]
        return choose_best(scores, n_layers, self.read_config().validation.best_by)

    def model(self) -> Model:
        """Load the model that the run was collected from, with its way to write prompts out.

        Raises:
            RefusalLensError: Its checkpoint has changed since.
        """
        config = self.read_config()
        settings, model = config.model, config.model.load()
        set_chat_format(tokenizer_of(model), ChatFormat.of(config.prompts))
        recorded, loaded = self.read_provenance()["model"], describe_model(model)
        for key in ("weights_sha256", "revision"):
            if recorded.get(key) != loaded.get(key):
                raise RefusalLensError(
                    f"{settings.name} has changed since the run was collected ({key} "
                    f"{recorded.get(key)} there, {loaded.get(key)} here). Put the checkpoint back, "
                    "or collect again."
                )
        return model

    def write_projections(self, projections: Projections) -> None:
        """Write every prompt's projection at every place, for figures to be drawn without a fit."""
        tensors = {
            field.name: getattr(projections, field.name).contiguous()
            for field in fields(projections)
            if field.type not in (tuple[str, ...], bool)
        }
        header = {
            "hook_points": json.dumps(projections.hook_points),
            "positions": json.dumps(projections.positions),
            "is_held_out": json.dumps(projections.is_held_out),
        }
        with write_recorded(self.path, "projections.safetensors") as file:
            file.write_bytes(save(tensors, metadata=header))

    def read_projections(self) -> Projections:
        """Read every prompt's projection at every place."""
        name = "projections.safetensors"
        with self._reading(name) as path, safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Projections(
                **tensors,
                hook_points=tuple(json.loads(header["hook_points"])),
                positions=tuple(json.loads(header["positions"])),
                is_held_out=json.loads(header["is_held_out"]),
            )

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        """Write one table of results and return its path."""
        return self._write_csv(table_file(name), table)

    def read_table(self, name: str) -> pd.DataFrame | None:
        """Read one table of results; None when that stage has not run."""
        return self._read_csv(table_file(name))

    def write_completions(self, completions: Sequence[Completion]) -> Path:
        """Write answers with and without intervention, one JSON object a line."""
        lines = [json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in completions]
        return self._write_text("completions.jsonl", "".join(lines))

    def read_completions(self) -> pd.DataFrame | None:
        """Read answers with and without intervention, one row each; None when none was tried."""
        if not (self.path / "completions.jsonl").is_file():
            return None
        with self._reading("completions.jsonl") as path:
            lines = path.read_text(encoding="utf-8").split("\n")
            return pd.DataFrame([json.loads(line) for line in lines if line])

    def write_refusal_direction(
        self,
        directions: Directions,
        separation: Separation,
        p_values: pd.DataFrame | None = None,
    ) -> None:
        """Write the directions of one site and position in the article's layout.

        They are those of the site and position of the best place that their record names (of the
        first place, where it names none). Layers without a direction are left out.
        """
        best = directions.provenance.get("best")
        column = (site_of(best["hook_point"]), best["position"]) if best else separation.columns[0]
        chosen = [
            direction
            for direction in directions
            if direction.layer is not None
            and (site_of(direction.hook_point), direction.position) == column
        ]
        provenance = directions.provenance
        n_layers = provenance.get("model", {}).get("n_layers", len(chosen))
        scores = _with_p_values(separation.at(*column), p_values)
        with write_recorded(self.path, self.direction_path.name) as file:
            saved = lay_out(chosen, column, provenance, n_layers, scores)
            file.write_bytes(tensors_as_bytes(saved))

    def record_files(self, paths: Iterable[str | Path]) -> None:
        """Record the checksums of files that others wrote, of those that lie in the run folder."""
        for path in map(Path, paths):
            if path.is_relative_to(self.path):
                record(self.path, path.relative_to(self.path).as_posix())

    def write_report(self, html: str) -> Path:
        """Write the report of the run and return its path."""
        return self._write_text("report.html", html)

    def writer_of(self, name: str) -> str:
        """Say which command writes a missing file: of a run that was cut off, what goes on."""
        if self.config_path.is_file() and not (self.path / "provenance.json").is_file():
            # Written once all is collected: until then no later stage has what it needs.
            fault = "The run was interrupted before all was collected. Go on"
            return f"{fault}: refusal-lens run --resume --output {self.typed}"
        return f"Write it first: refusal-lens {writer_of(name)} {self.typed}"

    @contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """Give the path of a file that is what the run wrote.

        Raises:
            RefusalLensError: It is missing, damaged, or something else; the message says what
                writes it again.
        """
        path = self.path / name
        if not path.is_file():
            raise RefusalLensError(f"{self.path} has no {name}. {self.writer_of(name)}")
        try:
            check(self.path, name)
            yield path
        except RefusalLensError:
            raise
        except READ_ERRORS as error:
            raise RefusalLensError(
                f"{path} is not what a run writes ({error!r:.200}). {way_back(self.path, name)}"
            ) from error

    def _write_csv(self, name: str, table: pd.DataFrame) -> Path:
        with write_recorded(self.path, name) as file:
            table.to_csv(file, index=False)
        return self.path / name

    def _read_csv(self, name: str) -> pd.DataFrame | None:
        if not (self.path / name).is_file():
            return None
        with self._reading(name) as path:
            return read_frame(path)

    def _write_json(self, name: str, content: Any) -> None:
        self._write_text(name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _write_text(self, name: str, text: str) -> Path:
        with write_recorded(self.path, name) as file:
            file.write_text(text, encoding="utf-8")
        return self.path / name


def _lay_out_answers(report: RefusalReport) -> dict[str, Any]:
    return {
        "refusal_tokens": report.refusal_tokens,
        "refusal_ids": report.refusal_ids,
        "lengths": report.lengths,
        "answers": [asdict(answer) for answer in report.answers],
    }


def _without_place(config: Config) -> dict[str, Any]:
    """Return settings without where work is done, and the day, which a run begun has anyway."""
    settings = config.model_dump(mode="json", exclude={"output", "engine"})
    settings["prompts"].pop("date")
    return settings


def _with_p_values(separation: Separation, p_values: pd.DataFrame | None) -> pd.DataFrame:
    frame = separation.to_frame()
    return frame if p_values is None else frame.merge(p_values, on=["hook_point", "position"])


def best_or_refuse(run_folder: RunFolder) -> Choice:
    """Return the best place of a run; refuse one that has no direction anywhere."""
    best = run_folder.best()
    if best is None:
        raise RefusalLensError(
            f"{run_folder.path} has no direction anywhere, so no place of it is the best. Read "
            "what refusal-lens fit says is wrong with the prompts or the places, and use others."
        )
    return best
