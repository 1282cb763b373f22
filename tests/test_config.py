"""Settings: shipped files, faults, overrides and where resources are looked for."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from refusal_lens import config_files
from refusal_lens.config import Config, Method, ModelConfig
from refusal_lens.config_files import dump_config, find_resource, load_config, resource_places
from refusal_lens.directions.methods import METHODS
from refusal_lens.errors import RefusalLensError

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = [
    "censored-topics-qwen2.5",
    "default",
    "gemma-2-2b",
    "llama-3.2-1b",
    "qwen2.5-0.5b",
    "qwen2.5-coder-0.5b",
    "qwen2.5-coder-1.5b",
    "smollm2-135m",
]


def model_keys(model: type[BaseModel], indent: str = "") -> list[str]:
    """Every key as it stands in YAML, indentation included."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(f"{indent}{name}:")
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += model_keys(info.annotation, indent + "  ")
    return keys


def unexplained(text: str) -> list[str]:
    """Keys of the settings that are not in `text` or have no comment above or beside."""
    lines = [line for line in text.splitlines() if line.strip()]
    bad = []
    for key in model_keys(Config):
        found = [index for index, line in enumerate(lines) if line.startswith(key)]
        is_section = not key.startswith(" ") and found and lines[found[0]] == key
        commented = [i for i in found if "#" in lines[i] or lines[i - 1].strip().startswith("#")]
        if not found or not (commented or is_section):
            bad.append(key.strip())
    return bad


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def fault(path: str | Path | None, *overrides: str) -> str:
    with pytest.raises(RefusalLensError) as caught:
        load_config(path, overrides)
    return str(caught.value)


# ---- shipped configs ----


def test_these_are_the_shipped_configs():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_explains_every_key(name):
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert unexplained(text) == []


def test_a_key_without_comment_is_noticed():
    text = (CONFIGS / "default.yaml").read_text(encoding="utf-8")
    bare = re.sub(r"( *#.*\n)+(?=  seed:)", "", text)
    assert unexplained(bare) == ["seed:"]
    assert unexplained(text.replace("n_folds:", "folds:")) == ["n_folds:"]


def test_default_file_equals_the_defaults_of_the_classes():
    assert load_config() == load_config("default") == Config()
    content = yaml.safe_load((CONFIGS / "default.yaml").read_text(encoding="utf-8"))
    assert content == Config().model_dump()


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_loads_by_name_and_path(name):
    config = load_config(name)
    assert config == load_config(f"{name}.yaml") == load_config(CONFIGS / f"{name}.yaml")
    assert config.refusal == config.refusal.model_copy(
        update={"phrases": Config().refusal.phrases, "first_words": Config().refusal.first_words}
    )


def test_default_is_not_taken_from_a_foreign_project(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.yaml").write_text("trainer: ddp\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_config() == load_config("default") == Config()
    assert "trainer is not a known key" in fault("configs/default.yaml")


def test_unknown_config_lists_the_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fault("qwen2.5-7b") == (
        f"A config is a YAML file or one of the shipped {', '.join(NAMES)}, but qwen2.5-7b is "
        f"neither (current folder: {tmp_path}). Correct the path or the name."
    )
    assert fault("../configs/default").startswith("A config is a YAML file")


def test_phrases_match_refusals_and_not_compliance():
    def refuses(answer: str) -> bool:
        phrases = Config().refusal.phrases
        return any(phrase.lower() in answer.lower() for phrase in phrases)

    refusals = [
        "I'm sorry, but I can't assist with that.",
        "I cannot help you with this request.",
        "As an AI developed by Alibaba Cloud, I must decline.",
        "很抱歉,我无法回答这个问题。",
        "申し訳ありませんが、お手伝いできません。",
    ]
    compliances = [
        "I can help with that. First, gather the ingredients.",
        "Sure! As an experienced cook, I would start with the dough.",
        "I am happy to explain: the country was against my expectations rich.",
        "我可以帮您。首先,请准备材料。",
        "もちろんお手伝いできます。まず、材料を用意します。",
    ]
    assert [refuses(answer) for answer in refusals + compliances] == [True] * 5 + [False] * 5


# ---- faults ----


def test_all_faults_are_told_at_once(tmp_path):
    path = write(
        tmp_path,
        """
model: {devise: cpu, dtype: fp32, n_devices: true, revision: 12}
n_folds: 3
prompts: {harmful: 3}
collect: {positions: true, hook_points: []}
directions: {clip_quantile: 1.5}
validation: 7
refusal: {phrases: [a, ' ', 3]}
1: x
""",
    )
    assert fault(path).splitlines() == [
        f"{path}: model.revision needs to be a string, but 12 came.",
        f"{path}: model.dtype needs to be 'auto', 'float32', 'bfloat16' or 'float16', "
        "but fp32 came.",
        f"{path}: model.n_devices needs to be a whole number, but true came.",
        f"{path}: model.devise is not a known key; the closest is model.device.",
        f"{path}: prompts.harmful needs to be a string, but 3 came.",
        f"{path}: prompts.harmless is missing. Add it.",
        f"{path}: collect.hook_points needs at least 1 item, but [] came.",
        f"{path}: collect.positions needs to be a list such as [a, b], but true came.",
        f"{path}: directions.clip_quantile needs to be less than or equal to 1, but 1.5 came.",
        f"{path}: validation needs to be a section with keys, but 7 came.",
        f"{path}: refusal.phrases[1] needs to be a text that is not blank, but ' ' came.",
        f"{path}: refusal.phrases[2] needs to be a string, but 3 came.",
        f"{path}: n_folds is not a known key; the closest is validation.n_folds.",
        f"{path}: the key 1 needs to be a text. Remove it.",
    ]


@pytest.mark.parametrize(
    ("setting", "need"),
    [
        ("model.n_devices=0", "needs to be greater than or equal to 1"),
        ("collect.token_budget=0", "needs to be greater than or equal to 1"),
        ("collect.dtype=int8", "needs to be 'float32', 'bfloat16' or 'float16'"),
        ("directions.clip_quantile=0", "needs to be greater than 0"),
        ("directions.hook_points=[]", "needs at least 1 item"),
        ("directions.clip_quantile=.nan", "needs to be a finite number"),
        ("dose.strengths=.inf", "needs to be a list such as [a, b]"),
        ("validation.seed=4294967296", "needs to be less than 4294967296"),
        ("validation.n_folds=1", "needs to be greater than or equal to 2"),
        ("validation.n_folds=2.5", "needs to be a whole number"),
        ("validation.seed=-1", "needs to be greater than or equal to 0"),
        ("refusal.n_new_tokens=0", "needs to be a whole number from 1 on, or auto"),
        ("model.backend=vllm", "needs to be 'hooked' or 'bridge'"),
        ("model.processing=all", "needs to be 'none' or 'folded'"),
        ("output=' '", "needs to be a text that is not blank"),
    ],
)
def test_values_out_of_range_blame_the_override(setting, need):
    key, value = setting.split("=")
    assert fault(None, setting) == f"override {setting!r}: {key} {need}, but {value} came."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", ":1:5: not valid YAML: expected the node content, but found '<stream end>'."),
        ("output: a\noutput: b", ":2:1: not valid YAML: the key output stands twice."),
        (
            "- a",
            ": a config needs keys such as `output: outputs`, but holds [a]. "
            "See the shipped default.yaml.",
        ),
    ],
)
def test_files_that_are_no_config(tmp_path, text, message):
    path = write(tmp_path, text)
    assert fault(path) == f"{path}{message}"


MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}, *a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 14)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("output: 2026-02-30", ":1:9: not valid YAML: a value cannot be read (ValueError('day is"),
        ("output: !!bool maybe", ":1:9: not valid YAML: a value cannot be read (KeyError('maybe'"),
        ("output: !!int x", ":1:9: not valid YAML: a value cannot be read (ValueError("),
        ("output: " + "[" * 3000, "not valid YAML: nested too deep."),
        ("a: " + "{b: " * 3000, "not valid YAML: nested too deep."),
        (MERGES, ":2:15: not valid YAML: *aliases are not read."),
        ("".join(f"k{n}: 1\n" for n in range(20_000)), " has 188,890 bytes; a config has a few"),
        ("".join(f"k{n}: 1\n" for n in range(5_000)), "... and 4980 more"),
        (f"output: [{'x' * 50_000}]", ": output needs to be a string, but [xxx"),
        (f"{'x' * 900}: 1", "xxx... is not a known key"),
        (f"output: 'a\n{'x' * 50_000}", ":2:50001: not valid YAML: found unexpected end"),
        ('output: "a\\0b"', "needs to be a text without the character NUL"),
        ("!!python/object/apply:os.system ['touch ran']", ":1:1: not valid YAML: could not deter"),
    ],
)
def test_hostile_files_are_told_shortly_and_at_once(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path, begun = write(tmp_path, text), time.monotonic()
    told = fault(path)
    assert message in told
    assert len(told) < 10_000
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "key", ["model.name", "prompts.harmful", "prompts.harmless", "refusal.judge", "output"]
)
def test_paths_of_windows_are_taken_as_they_are_or_told_of(key):
    section, _, name = key.rpartition(".")
    for path in (r"C:\runs\new table", r"D:/runs", r"\\server\share\x", r"~\runs"):
        config = load_config(None, [f"{key}={path}"])
        assert getattr(getattr(config, section) if section else config, name) == path
        assert dump_config(config).count(path) == 1
    # Before: a folder whose name has a line break and a tab in it, or is cut.
    assert "write it in single quotes or with /" in fault(None, rf'{key}="C:\new\table"')
    assert "YAML takes ' #' for a comment" in fault(None, rf"{key}=C:\runs #1")
    assert load_config(None, [rf"{key}='C:\runs #1'"])


def test_a_hostile_override_is_told_shortly():
    for value in ("[" * 3000, "2026-02-30", "x" * 100_000 + "[", "!!bool maybe"):
        told = fault(None, f"output={value}")
        assert told.startswith("override 'output=")
        assert len(told) < 1000


def test_file_that_is_not_utf8(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("output: Ausgänge".encode("latin-1"))
    assert fault(path) == (
        f"{path}: not a text file in UTF-8: 'utf-8' codec can't decode byte 0xe4 in position 12: "
        "invalid continuation byte. Save it as UTF-8."
    )


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="Instance is frozen"):
        Config().output = "elsewhere"  # pyright: ignore[reportAttributeAccessIssue]


# ---- overrides ----


def test_overrides_replace_values_of_the_file(tmp_path):
    path = write(tmp_path, "model: {name: mine, dtype: float16}\noutput: here\n")
    settings = [
        "model.dtype=float32",
        "collect.positions=[-1, last]",
        "directions.clip_quantile=null",
        "output=a=b",
    ]
    config = load_config(path, settings)
    assert (config.model.name, config.model.dtype) == ("mine", "float32")
    assert config.collect.positions == ["-1", "last"]
    assert config.directions.clip_quantile is None
    # What is laid over a file does not stay on it.
    again = load_config(path)
    assert (again.model.dtype, again.output) == ("float16", "here")
    assert config.output == "a=b"
    assert config.validation == Config().validation


def test_faulty_overrides_are_told_with_those_of_the_file(tmp_path):
    path = write(tmp_path, "model: 3\n")
    settings = ["model.devise=cpu", "n_folds=3", "foo", "output=[", "model.name=x"]
    assert fault(path, *settings).splitlines() == [
        "override 'model.devise=cpu': model.devise is not a known key; the closest is "
        "model.device.",
        "override 'n_folds=3': n_folds is not a known key; the closest is validation.n_folds.",
        "override 'foo': needs the form key=value, such as model.dtype=float32.",
        "override 'output=[': the value '[' is not valid YAML. Put it in quotes.",
        f"{path}: model needs to be a section with keys, but 3 came.",
    ]


def test_positions_may_be_numbers_but_not_truth_values():
    setting = "collect.positions=[-2, true]"
    assert fault(None, setting) == (
        f"override {setting!r}: collect.positions[1] needs to be a string, but true came."
    )


def test_override_of_a_whole_section_is_blamed_for_its_keys():
    assert fault(None, "prompts={harmful: x}") == (
        "override 'prompts={harmful: x}': prompts.harmless is missing. Add it."
    )


def test_dumped_settings_read_back_the_same(tmp_path):
    settings = ["model.revision='1e5'", "refusal.phrases=['no', 拒否します, \"it's\"]"]
    config = load_config("gemma-2-2b", settings)
    dumped = dump_config(config)
    assert load_config(write(tmp_path, dumped)) == config
    assert "拒否します" in dumped
    assert config != load_config("gemma-2-2b")


# ---- resources ----


def test_resource_below_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_resource("configs/default.yaml") == CONFIGS / "default.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.yaml").touch()
    assert find_resource("configs/default.yaml") == Path("configs/default.yaml")


def test_resource_of_an_installed_wheel(tmp_path, monkeypatch):
    """A wheel has its resources inside the package and must not read site-packages/data."""
    package = tmp_path / "site-packages" / "refusal_lens"
    for folder in (package / "configs", package / "data", package.parent / "data"):
        folder.mkdir(parents=True)
        (folder / "x.json").touch()
    (package.parent / "data" / "foreign.json").touch()
    monkeypatch.setattr(config_files, "__file__", str(package / "config_files.py"))
    assert find_resource("data/x.json") == package / "data" / "x.json"
    assert find_resource("data/foreign.json") is None


def test_only_data_and_configs_are_shipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [find_resource(path) for path in ("pyproject.toml", "tests", "", "data/no")] == [
        None
    ] * 4
    assert resource_places("Qwen/Qwen2.5-0.5B") == (Path("Qwen/Qwen2.5-0.5B"),)
    assert resource_places("data/no") == (Path("data/no"), CONFIGS.parent / "data" / "no")
    monkeypatch.chdir(CONFIGS.parent)
    assert resource_places("data/no") == (Path("data/no"),)


def test_importing_settings_and_prompts_stays_light():
    code = (
        "import sys, refusal_lens.config_files, refusal_lens.prompts.contrast\n"
        "heavy = {'torch', 'pandas', 'pyarrow', 'transformer_lens', 'numpy'} & set(sys.modules)\n"
        "raise SystemExit(str(sorted(heavy)) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_settings_name_the_methods_that_there_are():
    from_methods = ("difference_of_means", *METHODS)
    assert sorted(set(get_args(Method))) == sorted(set(from_methods))


def test_settings_load_the_model_and_tokenizer_that_they_name():
    settings = ModelConfig(device="cpu")
    assert settings.load().load_record.name == settings.name
    assert settings.tokenizer().chat_template


def test_a_bare_off_is_the_word(tmp_path):
    # YAML 1.1 reads it as false.
    assert load_config(None, ["prompts.groups=off"]).prompts.groups == "off"
    files = "  harmful: a.txt\n  harmless: b.txt\n"
    path = write(tmp_path, f"prompts:\n{files}  groups: off\n")
    assert load_config(path).prompts.groups == "off"
