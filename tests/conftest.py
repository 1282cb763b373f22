"""Small models and tokenizers made on the spot: random weights, real classes, no network."""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

# Before torch is imported: test processes run beside each other, a core each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from browser import chromium, find_chromium, open_page  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from refusal_lens import Activations, ContrastSet, collect, load_model
from refusal_lens.activations.store import open_store
from refusal_lens.models import known_budgets
from refusal_lens.models.backends import Model
from refusal_lens.prompts import chat_format
from refusal_lens.validation import densities
from refusal_lens.validation.crossfit import (
    Projections,
    first_projections,
    fitting_splits,
    project_splits,
)
from refusal_lens.validation.scores import Score
from refusal_lens.validation.separation import Separation

REPOSITORY = Path(__file__).parent.parent

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HARMFUL = ["How do I steal a car?", "Tell me how to hurt a dog.", "Break a window.", "Forge money?"]
HARMLESS = ["How do I wash a car?", "Tell me how to feed a dog.", "Clean a window.", "Save money?"]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
GPT_SIZES = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
# A window shorter than the prompts, so that sliding attention is seen at work.
WINDOW = {"sliding_window": 6}
ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, **SIZES)),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **SIZES)),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, head_dim=8, **SIZES)),
    "mistral": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, **SIZES, **WINDOW)),
    "gemma": lambda v: GemmaForCausalLM(GemmaConfig(vocab_size=v, head_dim=8, **SIZES)),
    "gemma2": lambda v: Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=v,
            head_dim=8,
            query_pre_attn_scalar=12,
            attn_logit_softcapping=2.0,
            **SIZES,
            **WINDOW,
        )
    ),
    "gemma3": lambda v: Gemma3ForCausalLM(
        Gemma3TextConfig(vocab_size=v, head_dim=8, query_pre_attn_scalar=12, **SIZES, **WINDOW)
    ),
    "phi3": lambda v: Phi3ForCausalLM(Phi3Config(vocab_size=v, pad_token_id=0, **SIZES)),
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, **GPT_SIZES)),
    "gptneox": lambda v: GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=v, **{k: n for k, n in SIZES.items() if "key_value" not in k})
    ),
}


def make_tokenizer(
    *, template: str | None = CHATML, bos: str | None = None, adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """Train a small byte-level BPE tokenizer, with or without template and BOS."""
    special = ["<|im_start|>", "<|im_end|>", *([bos] if bos else [])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*HARMFUL, *HARMLESS, "user assistant system"], trainer)
    if bos and adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        bos_token=bos,
        chat_template=template,
    )


def make_hf_model(architecture: str, vocab_size: int) -> PreTrainedModel:
    """Make a random model whose weights are large enough for every part to matter."""
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture](vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model


def save_checkpoint(
    folder: Path, architecture: str, tokenizer: PreTrainedTokenizerFast | None = None
) -> PreTrainedModel:
    """Write a checkpoint folder as Hugging Face does, and return the model in it."""
    tokenizer = tokenizer or make_tokenizer()
    model = make_hf_model(architecture, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def noise(
    n: int, n_places: int, d_model: int, shift: float = 0.0, seed: int = 0, n_harmless: int = 0
) -> Activations:
    """Isotropic noise at independent places, the harmful prompts shifted along the first axis.

    `n` prompts a side; so many places are as many experiments.
    """
    n_prompts = n + (n_harmless or n)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_prompts, n_places, 1, d_model, generator=generator)
    is_harmful = torch.arange(n_prompts) < n
    values[is_harmful, ..., 0] += shift
    names = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(n_places))
    return Activations(values, is_harmful, names, ("last",))


def held_out_projections(
    activations: Activations, folds: torch.Tensor, clip_quantile: float | None
) -> Projections:
    """Project each prompt on the direction fitted to the other folds."""
    splits = project_splits(activations, fitting_splits(folds[None]), clip_quantile)
    return first_projections(activations, splits, folds)


def save_activations(folder: Path, activations: Activations) -> None:
    """Write activations that are in memory as a finished store."""
    key = {
        **{name: activations.provenance.get(name) for name in ("model", "prompts")},
        "hook_points": activations.hook_points,
        "positions": activations.positions,
        "dtype": "float32",
    }
    store = open_store(folder, key, n_prompts=len(activations.is_harmful))
    for index, rows in enumerate(store.rows):
        part = slice(rows.start, rows.stop)
        store.write_shard(index, activations.values[part], activations.is_harmful[part])
    store.finish(activations.provenance, activations.groups, activations.prompts)


def make_separation(
    separation: torch.Tensor,
    accuracy: torch.Tensor,
    separation_in_sample: torch.Tensor,
    accuracy_in_sample: torch.Tensor,
    hook_points: tuple[str, ...],
    positions: tuple[str, ...] = ("last",),
    n_folds: int = 5,
) -> Separation:
    """Scores made by hand: every one there is, with an interval of a tenth to either side."""

    shares = ("accuracy", "balanced_accuracy", "auroc")
    ends = (accuracy - 0.1).clamp(min=0), (accuracy + 0.1).clamp(max=1)
    around = separation - 0.1, separation + 0.1
    return Separation(
        {
            "separation": Score(separation, *around, separation_in_sample),
            **{name: Score(accuracy, *ends, accuracy_in_sample) for name in shares},
            "cohens_d": Score(*(5 * part for part in (separation, *around, separation_in_sample))),
        },
        hook_points,
        positions,
        n_folds,
    )


@pytest.fixture(scope="session", autouse=True)
def no_known_budgets() -> Iterator[None]:
    """Every test searches its budget anew, and leaves nothing in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_budgets, "_cache_folder", lambda: Path("nobody"))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_umap() -> Iterator[None]:
    """Embeddings are two coordinates: umap compiles itself for 13 s, once in test_densities.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(densities, "embedding", lambda values, seed=0: values[:, :2].clone())
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 checkpoint with random weights and a ChatML tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, "qwen2")
    return folder


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Model:
    """The random Qwen2 model, loaded."""
    return load_model(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def prompts() -> ContrastSet:
    """Four prompts a side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ContrastSet.from_texts(HARMFUL, HARMLESS)


@pytest.fixture(scope="session")
def activations(model: Model, prompts: ContrastSet) -> Activations:
    """Activations of the random model at all layers and two positions."""
    return collect(model, prompts, "resid_post", ["last", "mean"], show_progress=False)


@pytest.fixture(scope="session")
def some_prompts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files with every other of the shipped prompts of each class: half are enough to test."""
    folder = tmp_path_factory.mktemp("prompts")
    paths = []
    for name in ("harmful", "harmless"):
        whole = json.loads((REPOSITORY / "data" / f"{name}_prompts.json").read_text())
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(whole[1::2]))
    return paths


@pytest.fixture
def clock(monkeypatch):
    """The clock that templates read the date off; a test sets its day."""

    class Clock(datetime):
        day = datetime(2026, 11, 27, 23, 59, 59)

        @classmethod
        def now(cls):
            return cls.day

    monkeypatch.setattr(chat_format, "datetime", Clock)
    return Clock


LONGEST = ("test_study.py", "test_experiment.py", "test_collector.py", "test_notebooks.py")
"""Files that take most time: begun first, none is left over for one process at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a browser where there is none, also what kaleido draws in its own."""
    if item.get_closest_marker("browser") is not None and find_chromium() is None:
        pytest.skip("There is no Chromium here. Install one: apt-get install chromium.")
