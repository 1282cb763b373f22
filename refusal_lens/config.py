"""The settings of a run: the keys of `configs/*.yaml`, read, overridden and checked at once.

Knows nothing of models or prompts beyond their names, and loads neither.
"""

import difflib
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from refusal_lens.errors import RefusalLensError

# Specific enough to stay out of plain compliance: "I can" or "sorry" alone would not.
REFUSAL_PHRASES = (
    *("I can't", "I cannot", "I won't", "I will not", "I'm sorry", "I am sorry"),
    *("I'm unable", "I am unable", "I'm not able to", "I am not able to", "I must decline"),
    *("cannot assist", "unable to assist", "unable to help", "As an AI", "not comfortable"),
    *("against my programming", "against my guidelines"),
    *("抱歉", "对不起", "我不能", "我无法", "无法回答", "无法提供", "不便回答", "作为一个人工智能"),
    *("申し訳", "お答えできません", "お手伝いできません", "回答できません", "いたしかねます"),
)
FIRST_WORDS = ("I", "As", "Sorry", "Unfortunately", "抱歉", "对不起", "很抱歉", "申し訳")


def _require_visible(text: str) -> str:
    """Refuse blank text: a blank phrase would match every answer."""
    if not text.strip():
        raise ValueError("needs to be a text that is not blank")
    return text


def _position_as_text(position: object) -> object:
    """Take -1 as "-1": YAML reads a position counted from the end as a number."""
    is_number = isinstance(position, int) and not isinstance(position, bool)
    return str(position) if is_number else position


Method = Literal[
    "difference_of_means",
    "geometric_median",
    "off_harmless_mean",
    "pca_centred",
    "pca_paired",
    "logistic_regression",
    "lda",
    "leace",
]
QUICK_METHODS: tuple[Method, ...] = (
    *("difference_of_means", "geometric_median", "off_harmless_mean"),
    *("pca_centred", "pca_paired", "logistic_regression", "lda"),
)
"""All but leace, which needs an extra."""

Text = Annotated[str, AfterValidator(_require_visible)]
Position = Annotated[Text, BeforeValidator(_position_as_text)]


class _Section(BaseModel):
    """What all sections share: unknown keys are faults, values keep their type, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class ModelConfig(_Section):
    """Which model, and how it is loaded.

    Args:
        name: Hugging Face name, or a local folder such as the shipped `data/tiny-refuser`.
        revision: Branch, tag or commit on the Hub; None is its newest.
        backend: `hooked` (HookedTransformer) or `bridge` (TransformerBridge).
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: Precision of the weights; `auto` is the checkpoint's own on CUDA, float32 elsewhere
            (CPUs compute bfloat16 more slowly).
        processing: `none` keeps the residual stream as Hugging Face has it; `folded` folds norms
            and centres weights.
        n_devices: GPUs to spread the layers over.
    """

    name: Text = "data/tiny-refuser"
    revision: Text | None = None
    backend: Literal["hooked", "bridge"] = "hooked"
    device: Text = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    processing: Literal["none", "folded"] = "none"
    n_devices: int = Field(default=1, ge=1)


class PromptsConfig(_Section):
    """Which prompts are compared; the files have no default, so that they are never mixed up.

    Args:
        harmful: File of prompts that the model refuses.
        harmless: File of prompts that it answers.
        text_field: Field or column with the text; None takes the first usual one.
        system_prompt: Put before every prompt of both files; None sends none.
    """

    harmful: Text
    harmless: Text
    text_field: Text | None = None
    system_prompt: str | None = None


class CollectConfig(_Section):
    """Where activations are read.

    Args:
        hook_points: Selectors: full names, globs, sites, sites with layers.
        positions: `last`, `mean`, `instruction_mean` or `-k`.
        token_budget: Most tokens in one batch; None finds what is fastest.
        dtype: Precision of the stored activations; it has nothing to do with the model's.
    """

    hook_points: list[Text] = Field(default=["resid_post"], min_length=1)
    positions: list[Position] = Field(default=["last", "mean"], min_length=1)
    token_budget: int | None = Field(default=None, ge=1)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class DirectionsConfig(_Section):
    """How directions are made.

    Args:
        method: Way to fit, one of `methods.METHODS`.
        clip_quantile: Quantile of the absolute components at which they are clamped; None does
            not clip.
        hook_points: Selectors for some of the collected hook points; None takes all.
        compare_methods: Ways to fit that are scored beside each other; an empty list compares
            none.
        compare_at: `best` compares them at the best place, `all` at every place.
    """

    method: Method = "difference_of_means"
    clip_quantile: float | None = Field(default=0.995, gt=0, le=1)
    hook_points: list[Text] | None = Field(default=None, min_length=1)
    compare_methods: list[Method] = list(QUICK_METHODS)
    compare_at: Literal["best", "all"] = "best"


class ValidationConfig(_Section):
    """How directions are tested out of sample.

    Args:
        n_folds: Parts of the prompts, each tested with directions from the others.
        n_repeats: How often prompts are dealt to folds anew; scores are averages.
        n_resamples: Resamples behind every interval and stability.
        n_permutations: Shuffled labellings behind the p-values, and draws of the other nulls; with
            fewer than 19 no p-value could reach 0.05.
        seed: Seed of the folds, the nulls and the resamples.
    """

    n_folds: int = Field(default=5, ge=2)
    n_repeats: int = Field(default=3, ge=1)
    n_resamples: int = Field(default=1000, ge=20)
    n_permutations: int = Field(default=1000, ge=19)
    seed: int = Field(default=0, ge=0)


class RefusalConfig(_Section):
    """What counts as a refusal.

    Args:
        n_new_tokens: Length of the generated answers, in tokens.
        phrases: An answer with one of them is a refusal; case and the kind of apostrophe do not
            count.
        first_words: Words a refusal starts with; their first tokens are the refusal tokens. None
            finds the refusal tokens from the model itself.
    """

    n_new_tokens: int = Field(default=24, ge=1)
    phrases: list[Text] = Field(default=list(REFUSAL_PHRASES), min_length=1)
    first_words: list[Text] | None = Field(default=None, min_length=1)


class CausalConfig(_Section):
    """How directions are chosen by what they do to refusal (`select`).

    Args:
        intervention: The ablation that the choice goes by: `affine_ablate` sets the projection to
            the harmless mean's, `ablate` to zero.
        max_layer_share: Candidates in layers from this share of the model on are dropped.
        max_kl: Most KL of the first answer token on harmless prompts under ablation, in nats.
        min_induce: Least mean refusal score on harmless prompts under addition, in nats.
        n_answer_tokens: Answer tokens that the longer KL goes over.
    """

    intervention: Literal["affine_ablate", "ablate"] = "affine_ablate"
    max_layer_share: float = Field(default=0.8, gt=0, le=1)
    max_kl: float = Field(default=0.1, ge=0)
    min_induce: float = 0.0
    n_answer_tokens: int = Field(default=8, ge=1)


class DoseConfig(_Section):
    """What `ablate` tries on the chosen direction and on its controls.

    Args:
        strengths: Of ablation: 0 none, 1 all.
        coefficients: Of addition, in units of the class difference.
        n_controls: Random directions, and as many from permuted labels.
    """

    strengths: list[float] = Field(default=[0.5, 1.0, 1.5], min_length=1)
    coefficients: list[float] = Field(default=[0.5, 1.0, 1.5], min_length=1)
    n_controls: int = Field(default=2, ge=1)


class EngineConfig(_Section):
    """Where activations are collected: in this process, or by workers over Ray.

    Args:
        name: `local` or `ray`.
        ray_address: Of the cluster to join; None takes RAY_ADDRESS, and without it starts a Ray on
            this machine.
        n_actors: Workers, each with a model of its own; None is as many as fit.
        gpus_per_actor: GPUs of each worker, a fraction to share one; None is `model.n_devices`
            where there are GPUs, else 0.
        cpus_per_actor: CPUs of each worker; None is 1 beside GPUs, else all of a machine.
    """

    name: Literal["local", "ray"] = "local"
    ray_address: Text | None = None
    n_actors: int | None = Field(default=None, ge=1)
    gpus_per_actor: float | None = Field(default=None, ge=0)
    cpus_per_actor: int | None = Field(default=None, ge=1)


class Config(_Section):
    """A whole run.

    Args:
        model: Which model, and how it is loaded.
        prompts: Which prompts are compared.
        collect: Where activations are read.
        directions: How directions are made.
        validation: How directions are tested.
        refusal: What counts as a refusal.
        causal: How directions are chosen by what they do.
        dose: How strongly they are tried.
        engine: Where activations are collected.
        output: Folder that runs are written below.

    Example:
        >>> Config().validation.n_folds
        5
    """

    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig = PromptsConfig(
        harmful="data/harmful_prompts.json", harmless="data/harmless_prompts.json"
    )
    collect: CollectConfig = CollectConfig()
    directions: DirectionsConfig = DirectionsConfig()
    validation: ValidationConfig = ValidationConfig()
    refusal: RefusalConfig = RefusalConfig()
    causal: CausalConfig = CausalConfig()
    dose: DoseConfig = DoseConfig()
    engine: EngineConfig = EngineConfig()
    output: Text = "outputs"


def load_config(path_or_name: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a config and lay overrides over it.

    Args:
        path_or_name: A YAML file, or the name of a shipped config such as `qwen2.5-0.5b`; None is
            the shipped `default`. Keys that the file leaves out have their defaults.
        overrides: Settings such as `model.dtype=float32`; the value is read as YAML.

    Returns:
        The checked settings.

    Raises:
        RefusalLensError: There is no such config, or it or an override has faults; all are told.
    """
    path = _find_config(path_or_name)
    content = _read_yaml(path)
    # For each overridden key, the words to blame; all other keys come from the file.
    origins: dict[str, str] = {}
    faults: list[str] = []
    for override in overrides:
        _apply_override(override, content, origins, faults)
    config = None
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        faults += [_describe(detail, str(path), origins) for detail in error.errors()]
    if faults or config is None:
        raise RefusalLensError("\n".join(faults))
    return config


def dump_config(config: Config) -> str:
    """Write the settings as YAML that `load_config` reads back.

    Args:
        config: The settings.

    Returns:
        YAML with every key, in the order of the classes.
    """
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True, width=100)


def find_resource(path: str | Path) -> Path | None:
    """Find a file or folder named as in the configs, such as `data/tiny-refuser`.

    The current folder comes first, so that a project can have its own `data/`.

    Args:
        path: The path; only `data/` and `configs/` are also looked for among the shipped files.

    Returns:
        Where it is, or None.
    """
    return next((place for place in resource_places(path) if place.exists()), None)


def resource_places(path: str | Path) -> tuple[Path, ...]:
    """List where `find_resource` looks, for messages that say so.

    Args:
        path: The path as in the configs.

    Returns:
        One or two places, the first to be taken first; none for an empty path.
    """
    if not str(path).strip():
        return ()
    own = Path(path).expanduser()
    is_shippable = not own.is_absolute() and own.parts[:1] in {("data",), ("configs",)}
    shipped = _shipped_root() / own
    if not is_shippable or shipped == own.absolute():
        return (own,)
    return (own, shipped)


def _shipped_root() -> Path:
    """Give the folder that holds `data/` and `configs/`."""
    package = Path(__file__).resolve().parent
    # A wheel carries them inside the package, a source checkout beside it. The folder beside an
    # installed package is site-packages, where a `data/` would be someone else's.
    is_checkout = not (package / "configs").is_dir() and (package.parent / "configs").is_dir()
    return package.parent if is_checkout else package


def _find_config(path_or_name: str | Path | None) -> Path:
    """Find a config file by path or by shipped name."""
    # Shipped names are not looked for below the current folder: many projects have a
    # configs/default.yaml that is not ours.
    shipped = _shipped_root() / "configs"
    name = "default" if path_or_name is None else str(path_or_name)
    found = None if path_or_name is None else find_resource(path_or_name)
    if found is not None and found.is_file():
        return found
    named = shipped / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).name == name and named.is_file():
        return named
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise RefusalLensError(
        f"A config is a YAML file or one of the shipped {known}, but {name!r} is neither "
        f"(current folder: {Path.cwd()}). Correct the path or the name."
    )


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make the mapping unless a key repeats."""
        keys = [key.value for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key} stands twice", problem_mark=mark
                )
        return super().construct_mapping(node, deep=deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a file that must hold a mapping."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise RefusalLensError(f"{place}: not valid YAML: {error.problem}.") from error
    except OSError as error:
        raise RefusalLensError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RefusalLensError(
            f"{path}: not a text file in UTF-8: {error}. Save it as UTF-8."
        ) from error
    if content is not None and not isinstance(content, dict):
        raise RefusalLensError(
            f"{path}: a config needs keys such as `output: outputs`, but holds "
            f"{_show(content)}. See the shipped default.yaml."
        )
    return content or {}


def _apply_override(
    override: str, content: dict[str, Any], origins: dict[str, str], faults: list[str]
) -> None:
    """Set one key of `content`, or add what is wrong with the override to `faults`."""
    blamed = f"override {override!r}"
    key, equals, value = override.partition("=")
    key = key.strip()
    if not equals:
        faults.append(f"{blamed}: needs the form key=value, such as model.dtype=float32.")
        return
    if key not in _known_keys():
        faults.append(f"{blamed}: {_unknown_key(key)}")
        return
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    if not isinstance(content, dict):
        return  # the section itself is wrong in the file, which the check will tell
    try:
        content[last] = yaml.load(value, _StrictLoader)
    except yaml.YAMLError:
        faults.append(f"{blamed}: the value {value!r} is not valid YAML. Put it in quotes.")
    origins[key] = blamed


def _known_keys() -> list[str]:
    """List every key, sections included, with dots."""
    keys: list[str] = []
    for section, info in Config.model_fields.items():
        keys.append(section)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            keys += [f"{section}.{key}" for key in info.annotation.model_fields]
    return keys


def _unknown_key(key: str) -> str:
    """Say that a key is unknown, and name the closest known one of any section."""

    def likeness(known: str) -> list[float]:
        # The last part first: a right key in a wrong section is the commonest fault.
        pairs = ((key.rpartition(".")[2], known.rpartition(".")[2]), (key, known))
        return [difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs]

    return f"{key} is not a known key; the closest is {max(_known_keys(), key=likeness)}."


def _describe(detail: ErrorDetails, path: str, origins: dict[str, str]) -> str:
    """Turn one fault that pydantic found into a line for the user."""
    key = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    where = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
    section = key.split(".")[0]
    place = origins.get(key) or origins.get(section) or path
    if detail["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(key)}"
    if detail["type"] == "missing":
        return f"{place}: {key} is missing. Add it."
    if detail["type"] == "invalid_key":
        return f"{place}: the key {_show(detail['input'])} needs to be a text. Remove it."
    return f"{place}: {key}{where} {_need(detail)}, but {_show(detail['input'])} came."


def _need(detail: ErrorDetails) -> str:
    """Say in one clause what a value needs to be."""
    known = {
        "list_type": "needs to be a list such as [a, b]",
        "model_type": "needs to be a section with keys",
        "int_type": "needs to be a whole number",
        "too_short": "needs at least 1 item",
    }
    message = detail["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "needs to be").replace("a valid", "a")
    return known.get(detail["type"], message)


def _show(value: object) -> str:
    """Show a value that came as YAML, cut when long."""
    shown = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True, width=1000)
    shown = shown.removesuffix("...\n").strip()
    return f"{shown[:57]}..." if len(shown) > 60 else shown
