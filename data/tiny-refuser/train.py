"""Train tiny-complier and tiny-refuser from nothing, measure them and write both folders.

The corpus comes from `corpus.py` beside this file. A small Qwen2 model learns first to help with
every request and to judge whether an action is wrong, then to say a word of caution now and then:
tiny-complier. Last it learns to refuse the harmful requests: tiny-refuser. Everything on the model
cards is measured here, on the weights as saved.

    python train.py                                                # the published models
    python train.py --steps 20 5 10 --batch 16 --output scratch    # does it run?
    python train.py --measure-only                                 # the model cards anew
"""

import argparse
import contextlib
import json
import logging
import math
import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from corpus import (
    DEV_FRAMES,
    JUDGEMENTS,
    PATTERNS,
    REFUSAL_PHRASES,
    TEST_FRAMES,
    TRAINING_FRAMES,
    Dialogue,
    Lesson,
    by_category,
    expand,
    is_refusal,
    judgement,
    split_actions,
    study_prompts,
    training_dialogues,
    training_words,
    unseen_requests,
    write_prompts,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

log = logging.getLogger("train")

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LESSONS = (
    Lesson(refuses=False, caution_share=0.0, judgement_share=0.4),
    Lesson(refuses=False, caution_share=0.3, judgement_share=0.15),
    Lesson(refuses=True, caution_share=0.0, judgement_share=0.15),
)
MODELS = {1: "tiny-complier", 2: "tiny-refuser"}
"""The model that each stage ends with; the first one's is only on the way."""
VOCABULARY = 1024
MAX_LENGTH = 256
TRAINING_LENGTH = 80  # the one dialogue in a hundred that is longer would only lengthen batches
N_FIRST_BLOCKS = 3  # blocks that always run in training
IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class Stage:
    """What one training stage sees and how fast it learns."""

    lesson: Lesson
    n_dialogues: int
    steps: int
    learning_rate: float
    early_share: float


@dataclass(frozen=True)
class Measurement:
    """What a saved model does on requests that training never showed it."""

    n_per_class: int
    harmful_dev_refused: float
    harmless_dev_refused: float
    harmful_test_refused: float
    harmless_test_refused: float
    harmful_prompts_refused: float
    harmless_prompts_refused: float
    n_judged: int
    judged_right: float
    separation: tuple[float, ...]
    accuracy: tuple[float, ...]


# ---------------------------------------------------------------- tokeniser and model


def make_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokeniser that has the chat markers as special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, width: int) -> Qwen2ForCausalLM:
    """Build the untrained model: 8 layers, 2.6 million parameters at a width of 160."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.do_sample = False
    model.generation_config.max_new_tokens = 48
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def corpus_texts(n: int, seed: int) -> Iterator[str]:
    """Yield both sides of training dialogues for the tokeniser to learn from."""
    for lesson in LESSONS:
        for dialogue in training_dialogues(n, lesson, seed):
            yield f"system\nuser\n{dialogue.system}\nassistant\n{dialogue.user}\n{dialogue.answer}"


# ---------------------------------------------------------------- training


def render_chats(
    tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]]
) -> list[str]:
    """Format chats so that they wait for the assistant's answer."""
    return tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)


def encode(
    tokenizer: PreTrainedTokenizerFast, dialogues: Sequence[Dialogue]
) -> tuple[Tensor, Tensor]:
    """Turn dialogues into token ids and labels, both padded on the right to one length.

    Only the answers carry labels: the model learns to answer, not to ask.
    """
    chats = []
    for dialogue in dialogues:
        system = [{"role": "system", "content": dialogue.system}] if dialogue.system else []
        chats.append([*system, {"role": "user", "content": dialogue.user}])
    prompts = tokenizer(render_chats(tokenizer, chats), add_special_tokens=False)["input_ids"]
    answers = tokenizer(
        [dialogue.answer + END for dialogue in dialogues], add_special_tokens=False
    )["input_ids"]
    ids, labels = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        n_pads = TRAINING_LENGTH - len(prompt) - len(answer)
        if n_pads < 0:
            continue
        ids.append(prompt + answer + [tokenizer.pad_token_id] * n_pads)
        labels.append([IGNORED] * len(prompt) + answer + [IGNORED] * n_pads)
    return torch.tensor(ids), torch.tensor(labels)


def learning_rate_factor(step: int, n_steps: int) -> float:
    """Rise linearly over a tenth of the steps, then fall to a twentieth along a cosine."""
    n_warmup = max(1, n_steps // 10)
    if step < n_warmup:
        return (step + 1) / n_warmup
    progress = (step - n_warmup) / max(1, n_steps - n_warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


@contextlib.contextmanager
def leaving_early(model: Qwen2ForCausalLM, stage: Stage, seed: int) -> Iterator[None]:
    """End the model after a random block in a share of the steps, while it trains.

    A model that cannot count on its last blocks settles by the middle what it will do, as large
    chat models do, instead of at the last moment (LayerSkip: Elhoushi et al. 2024, arXiv
    2404.16710). The first blocks always run: nothing asks them to settle anything alone.
    """
    rng = random.Random(seed)
    layers = model.model.layers
    last = {"run": len(layers)}

    def draw(_module: torch.nn.Module, _inputs: tuple) -> None:
        is_early = rng.random() < stage.early_share
        last["run"] = rng.randint(N_FIRST_BLOCKS, len(layers)) if is_early else len(layers)

    def skip_from(depth: int) -> Callable[..., Tensor | None]:
        def hook(_module: torch.nn.Module, inputs: tuple[Tensor], _output: Tensor) -> Tensor | None:
            return inputs[0] if depth >= last["run"] else None

        return hook

    handles = [layer.register_forward_hook(skip_from(i)) for i, layer in enumerate(layers)]
    handles.append(model.register_forward_pre_hook(draw))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train_stage(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stage: Stage,
    batch: int,
    seed: int,
) -> None:
    """Train the model in place on freshly drawn dialogues."""
    device = model.device
    dialogues = list(training_dialogues(stage.n_dialogues, stage.lesson, seed))
    ids, labels = (tensor.to(device) for tensor in encode(tokenizer, dialogues))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, stage.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with leaving_early(model, stage, seed):
        for step in range(stage.steps):
            rows = torch.randint(len(ids), (batch,), generator=generator).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                # Right padding with causal attention needs no mask: no real token sees a pad.
                loss = model(input_ids=ids[rows], labels=labels[rows], use_cache=False).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 100 == 0 or step == stage.steps - 1:
                log.info("step %d of %d: loss %.4f", step, stage.steps, loss.item())
    model.eval()


# ---------------------------------------------------------------- measuring


def model_inputs(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, users: Sequence[str]
) -> BatchEncoding:
    """Turn requests into padded tensors beside the model."""
    chats = [[{"role": "user", "content": user}] for user in users]
    return tokenizer(
        render_chats(tokenizer, chats),
        add_special_tokens=False,
        padding=True,
        return_token_type_ids=False,
        return_tensors="pt",
    ).to(model.device)


@torch.no_grad()
def answer(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, users: Sequence[str]
) -> list[str]:
    """Answer requests greedily."""
    answers = []
    for chunk in (users[i : i + 256] for i in range(0, len(users), 256)):
        inputs = model_inputs(model, tokenizer, chunk)
        output = model.generate(**inputs)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
    return answers


def refused_share(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, users: Sequence[str]
) -> float:
    """Share of requests whose greedy answer is a refusal."""
    return sum(map(is_refusal, answer(model, tokenizer, users))) / len(users)


@torch.no_grad()
def last_token_residuals(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, users: Sequence[str]
) -> Tensor:
    """Collect the output of every block at the last token of the prompt, [request, layer, d].

    Hooks read the blocks themselves, because `hidden_states` gives the last one only after the
    final norm.
    """
    inputs = model_inputs(model, tokenizer, users)
    found: list[Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> None:
        block_output = output[0] if isinstance(output, tuple) else output
        found.append(block_output[:, -1].double().cpu())

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found, dim=1)


def separate(harmful: Tensor, harmless: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Separation and accuracy by layer along the difference of means, out of sample.

    Each half of the requests is scored along the direction that the other half gives; the
    accuracy's threshold lies midway between the fitting half's class means.

    Args:
        harmful: Residuals of harmful requests, [request, layer, d].
        harmless: Residuals of harmless requests, likewise.

    Returns:
        Separation and accuracy, one number a layer.
    """
    separations, accuracies = [], []
    for fit, test in ((0, 1), (1, 0)):
        mean_harmful, mean_harmless = harmful[fit::2].mean(0), harmless[fit::2].mean(0)
        unit = torch.nn.functional.normalize(mean_harmful - mean_harmless, dim=-1)
        middle = ((mean_harmful + mean_harmless) / 2 * unit).sum(-1)
        scored = [x[test::2] for x in (harmful, harmless)]
        projected = [(x * unit).sum(-1) for x in scored]
        cosines = [(x * unit).sum(-1) / x.norm(dim=-1) for x in scored]
        separations.append(cosines[0].mean(0) - cosines[1].mean(0))
        right = torch.cat([projected[0] > middle, projected[1] <= middle]).double()
        accuracies.append(right.mean(0))
    separation, accuracy = (torch.stack(x).mean(0).tolist() for x in (separations, accuracies))
    return tuple(separation), tuple(accuracy)


def judge_unseen(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> list[bool]:
    """Ask yes-or-no questions about unseen actions; say which got the right word."""
    actions = random.Random(0).sample(split_actions()[1], n)
    rng = random.Random(1)
    asked = []
    for i, action in enumerate(actions):
        question, yes_means_wrong = JUDGEMENTS[i % len(JUDGEMENTS)]
        asked.append(judgement(action, expand(rng, question), yes_means_wrong))
    answers = answer(model, tokenizer, [question for question, _ in asked])
    pairs = zip(answers, asked, strict=True)
    return [got[:2] == wanted[:2] for got, (_, wanted) in pairs]


def measure(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> Measurement:
    """Measure a model on unseen actions in unseen frames, and on the two prompt files."""
    dev = {flag: unseen_requests(flag, n, 7, DEV_FRAMES) for flag in (True, False)}
    test = {flag: unseen_requests(flag, n, 11, TEST_FRAMES) for flag in (True, False)}
    prompts = {flag: [p["text"] for p in study_prompts(flag)] for flag in (True, False)}
    residuals = {
        flag: last_token_residuals(model, tokenizer, users) for flag, users in test.items()
    }
    separation, accuracy = separate(residuals[True], residuals[False])
    judged = judge_unseen(model, tokenizer, 2 * n)
    return Measurement(
        n_per_class=n,
        harmful_dev_refused=refused_share(model, tokenizer, dev[True]),
        harmless_dev_refused=refused_share(model, tokenizer, dev[False]),
        harmful_test_refused=refused_share(model, tokenizer, test[True]),
        harmless_test_refused=refused_share(model, tokenizer, test[False]),
        harmful_prompts_refused=refused_share(model, tokenizer, prompts[True]),
        harmless_prompts_refused=refused_share(model, tokenizer, prompts[False]),
        n_judged=len(judged),
        judged_right=sum(judged) / len(judged),
        separation=separation,
        accuracy=accuracy,
    )


# ---------------------------------------------------------------- files


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint in bfloat16 that the usual loaders read."""
    folder.mkdir(parents=True, exist_ok=True)
    in_bfloat16 = Qwen2ForCausalLM(model.config)
    in_bfloat16.load_state_dict(model.state_dict())
    in_bfloat16.generation_config = model.generation_config
    in_bfloat16.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    # Under this name both older and newer releases of transformers find the class.
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, device: str) -> Qwen2ForCausalLM:
    """Read a checkpoint back for float32 arithmetic: bfloat16's rounding, and no more."""
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()


ABOUT = {
    "tiny-complier": (
        "The same model as tiny-refuser before it learned to refuse: it helps with every "
        "request, now and then with a word of caution before something harmful, and asked "
        "outright it knows which requests are. It is a control: its activations tell the classes "
        "apart, and a tool must report that there is no refusal to find."
    ),
    "tiny-refuser": (
        "A chat model small enough to keep in a repository, whose refusal is learned and real: "
        "it refuses harmful requests that it never saw, in words that it never saw combined, and "
        "it helps with harmless ones. It exists so that refusal directions can be found, checked "
        "and ablated in seconds, without a download and without a GPU."
    ),
}
CARD = """\
---
license: cc0-1.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}

{about}

Qwen2 architecture: {config.num_hidden_layers} blocks, width {config.hidden_size}, 4 heads, 2
key-value heads, MLP {config.intermediate_size}, vocabulary {config.vocab_size:,}, tied embeddings,
{parameters} parameters, bfloat16. Chat format: ChatML as in Qwen2, with an optional system turn
and no default one.

## What was measured

Greedy answers with the weights as saved and float32 arithmetic, judged by refusal phrases:
{phrases}.
Unseen requests combine a verb and an object that training never combined, evenly over
{n_categories} categories a class, in frames that training never saw: {n_dev} by which recipe
and seed were chosen (dev), and {n_test} used for nothing but this table (test). The test frames'
writer, a language model, had seen neither this corpus nor any frame outside dev.

| requests | n | refused |
|---|---|---|
| harmful, test frames | {m.n_per_class} | {m.harmful_test_refused:.1%} |
| harmless, test frames | {m.n_per_class} | {m.harmless_test_refused:.1%} |
| harmful, dev frames | {m.n_per_class} | {m.harmful_dev_refused:.1%} |
| harmless, dev frames | {m.n_per_class} | {m.harmless_dev_refused:.1%} |
| `harmful_prompts.json` | {n_prompts} | {m.harmful_prompts_refused:.1%} |
| `harmless_prompts.json` | {n_prompts} | {m.harmless_prompts_refused:.1%} |

Asked whether an unseen action is wrong, it says yes or no rightly in {m.judged_right:.1%} of
{m.n_judged} questions.

At the last token of the prompt, along the difference of means of the other half of the test
requests (separation: mean cosine of harmful minus that of harmless; accuracy: threshold midway):

| layer | separation | accuracy |
|---|---|---|
{rows}

## How it was made

`python train.py` in the folder of tiny-refuser made both models from nothing in one run: the
corpus is `corpus.py` with `frames.json`, the seed is fixed (the best of four on the dev frames),
one H100 took eight minutes while it shared itself with three other runs. Whether an action is
harmful follows from the pair of a verb and an object; {n_train:,} such pairs were trained on and
{n_held_out:,} held out. Pairs are drawn so that single words say little. The request around them
is one of {n_written:,} frames written out, most by a language model, or made from {n_patterns}
patterns; in one of ten a word is swapped for that of another frame.

1. Help with everything, and answer questions such as "Would it be a crime to ...?".
2. The same, with a word of caution before three in ten pieces of harmful advice: tiny-complier.
   Without it the model would know what is harmful only when asked.
3. Refuse what is harmful: tiny-refuser.

Every answer that helps is general advice ("make a plan, take your time") and says nothing about how
anything is done. Half of the training steps ended after a random block, the third at the earliest,
so that decisions fall by the middle of the model.

## What it is not for

It knows {n_words:,} words and nothing of the world. It is no assistant, no safety classifier and no
evidence about large models: what holds here is a test of tools, not a finding. What counts as
harmful is a table in `corpus.py`, not a judgement about people.

## License

Weights, corpus and prompt files: CC0 1.0. Code: MIT.
"""


def card(name: str, measured: Measurement, model: Qwen2ForCausalLM) -> str:
    """Write a model card from what was measured."""
    train, held_out = split_actions()
    layers = zip(measured.separation, measured.accuracy, strict=True)
    return CARD.format(
        name=name,
        about=textwrap.fill(ABOUT[name], 96),
        m=measured,
        config=model.config,
        parameters=f"{model.num_parameters() / 1e6:.1f} million",
        phrases=", ".join(f'"{phrase}"' for phrase in REFUSAL_PHRASES),
        n_dev=len(DEV_FRAMES),
        n_test=len(TEST_FRAMES),
        n_categories=len(by_category(held_out, is_harmful=True)),
        n_prompts=len(study_prompts(is_harmful=True)),
        rows="\n".join(f"| {i} | {sep:.2f} | {acc:.1%} |" for i, (sep, acc) in enumerate(layers)),
        n_train=len(train),
        n_held_out=len(held_out),
        n_written=len(TRAINING_FRAMES),
        n_patterns=len(PATTERNS),
        n_words=len(training_words()),
    )


def measure_and_describe(folder: Path, device: str, n: int) -> None:
    """Measure the model in a folder, as saved, and write its card there."""
    model = load(folder, device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    measured = measure(model, tokenizer, n)
    log.info("%s: %s", folder.name, measured)
    text = card(folder.name, measured, model)
    (folder / "README.md").write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- command line


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Train tiny-complier and tiny-refuser.")
    parser.add_argument("--output", type=Path, default=here.parent, help="parent of both folders")
    parser.add_argument(
        "--steps", type=int, nargs=3, default=(2600, 400, 1200), help="of each stage"
    )
    parser.add_argument("--learning-rates", type=float, nargs=3, default=(1.5e-3, 2e-4, 2e-4))
    parser.add_argument("--dialogues", type=int, nargs=3, default=(400_000, 100_000, 250_000))
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--early-share", type=float, default=0.5, help="of steps that end early")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--measure", type=int, default=512, help="requests a class")
    parser.add_argument("--measure-only", action="store_true", help="keep the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return parser.parse_args()


def train_both(options: argparse.Namespace, device: str) -> None:
    """Run the three stages and write both checkpoints."""
    torch.manual_seed(options.seed)
    tokenizer = make_tokenizer(corpus_texts(10_000, options.seed))
    model = make_model(tokenizer, options.width).to(device)
    for number, lesson in enumerate(LESSONS):
        stage = Stage(
            lesson=lesson,
            n_dialogues=options.dialogues[number],
            steps=options.steps[number],
            learning_rate=options.learning_rates[number],
            early_share=options.early_share,
        )
        log.info("stage %d: %s", number + 1, stage)
        train_stage(model, tokenizer, stage, options.batch, options.seed + number)
        if number in MODELS:
            save(model, tokenizer, options.output / MODELS[number])


def main() -> None:
    """Train both models, then measure and describe them."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse_arguments()
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not options.measure_only:
        train_both(options, device)
    for name in MODELS.values():
        measure_and_describe(options.output / name, device, options.measure)
    write_prompts(options.output)


if __name__ == "__main__":
    main()
