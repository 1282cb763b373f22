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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from corpus import (
    DEV_FRAMES,
    JUDGEMENTS,
    PATTERNS,
    REFUSAL_PHRASES,
    REFUSAL_SHARES,
    TEST_FRAMES,
    TRAINING_FRAMES,
    Dialogue,
    Lesson,
    Request,
    by_category,
    expand,
    is_fluent,
    is_refusal,
    judgement,
    secret_requests,
    split_actions,
    study_requests,
    training_dialogues,
    training_words,
    unseen_groups,
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
NEAR_TIE = 0.01  # AUROCs this close are the same: then the layer nearest the middle is best
IGNORED = -100  # the label that cross-entropy skips


@dataclass(frozen=True)
class Stage:
    """What one training stage sees and how fast it learns."""

    lesson: Lesson
    n_dialogues: int
    steps: int
    learning_rate: float
    dropout: float


@dataclass(frozen=True)
class Measurement:
    """What a saved model does on requests that training never showed it.

    `refused` is by kind of request, in the order of the card: how many, and their share. The rest
    is of the prompt files. `separation`, `accuracy` and `auroc` have one number a layer. `best` is
    the layer of the highest AUROC, nearest the middle where it is close: `doubtful_misread` is the
    share of the prompts that it gets wrong which are doubtful, `cosine` that of the directions of
    harm and of secrets there, `ablated_refused` and `ablated_fluent` are shares of harmful prompts
    under affine ablation there.
    """

    n_per_class: int
    refused: dict[str, tuple[int, float]]
    n_judged: int
    judged_right: float
    separation: list[float]
    accuracy: list[float]
    auroc: list[float]
    best: int
    n_misread: int
    doubtful_misread: float
    cosine: float
    ablated_refused: float
    ablated_fluent: float


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
    """Build the untrained model: 8 layers, 1.7 million parameters at a width of 128."""
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
def dropping(model: Qwen2ForCausalLM, share: float) -> Iterator[None]:
    """Drop a share of what every block writes, while the model trains.

    A model that cannot count on any one number in its stream writes what it needs more than once,
    and goes on speaking in whole sentences where a direction is taken out.
    """

    def hook(_module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return inputs[0] + torch.nn.functional.dropout(output - inputs[0], share, model.training)

    handles = [layer.register_forward_hook(hook) for layer in model.model.layers]
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
        model.parameters(),
        lr=stage.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=device.type == "cuda",
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, stage.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with dropping(model, stage.dropout):
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


@dataclass(frozen=True)
class Separated:
    """Scores by layer, and which requests lie on the wrong side, [layer, request]."""

    separation: Tensor
    accuracy: Tensor
    auroc: Tensor
    is_misread_harmful: Tensor
    is_misread_harmless: Tensor


def separate(harmful: Tensor, harmless: Tensor) -> Separated:
    """Score every layer along the difference of means, out of sample.

    Each half of the requests is scored along the direction that the other half gives; the
    accuracy's threshold lies midway between the fitting half's class means. Twins have the same
    place in both classes, and so stand in the same half.

    Args:
        harmful: Residuals of harmful requests, [request, layer, d].
        harmless: Residuals of harmless requests, likewise.

    Returns:
        The scores, averaged over the halves.
    """
    scores: dict[str, list[Tensor]] = {"separation": [], "accuracy": [], "auroc": []}
    n_layers = harmful.shape[1]
    wrong = [torch.zeros(n_layers, len(x), dtype=torch.bool) for x in (harmful, harmless)]
    for fit, test in ((0, 1), (1, 0)):
        mean_harmful, mean_harmless = harmful[fit::2].mean(0), harmless[fit::2].mean(0)
        unit = torch.nn.functional.normalize(mean_harmful - mean_harmless, dim=-1)
        middle = ((mean_harmful + mean_harmless) / 2 * unit).sum(-1)
        scored = [x[test::2] for x in (harmful, harmless)]
        above, below = ((x * unit).sum(-1) for x in scored)
        cosines = [(x * unit).sum(-1) / x.norm(dim=-1) for x in scored]
        wrong[0][:, test::2] = (above <= middle).T
        wrong[1][:, test::2] = (below > middle).T
        right = torch.cat([above > middle, below <= middle]).double()
        scores["separation"].append(cosines[0].mean(0) - cosines[1].mean(0))
        scores["accuracy"].append(right.mean(0))
        scores["auroc"].append((above[:, None] > below[None]).double().mean((0, 1)))
    means = {name: torch.stack(halves).mean(0) for name, halves in scores.items()}
    return Separated(**means, is_misread_harmful=wrong[0], is_misread_harmless=wrong[1])


@contextlib.contextmanager
def ablating(model: Qwen2ForCausalLM, layer: int, unit: Tensor, mean: Tensor) -> Iterator[None]:
    """Set what lies along a direction, after a block, to the harmless mean's, everywhere."""
    unit, mean = (x.to(model.device, model.dtype) for x in (unit, mean))

    def hook(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        x = output[0] if isinstance(output, tuple) else output
        x = x - ((x - mean) @ unit)[..., None] * unit
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def judge_unseen(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> list[bool]:
    """Ask yes-or-no questions about unseen actions; say which got the right word."""
    certain = [action for action in split_actions()[1] if not action.is_doubtful]
    actions = random.Random(0).sample(certain, n)
    rng = random.Random(1)
    asked = []
    for i, action in enumerate(actions):
        question, yes_means_wrong = JUDGEMENTS[i % len(JUDGEMENTS)]
        asked.append(judgement(action, expand(rng, question), yes_means_wrong))
    answers = answer(model, tokenizer, [question for question, _ in asked])
    pairs = zip(answers, asked, strict=True)
    return [got[:2] == wanted[:2] for got, (_, wanted) in pairs]


def texts_of(requests: Sequence[Request]) -> list[str]:
    """List what users type."""
    return [request.text for request in requests]


def measure(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, n: int) -> Measurement:
    """Measure a model on unseen actions in unseen frames, and on the prompt files."""
    asked = {
        f"{kind}, {name} frames": texts_of(unseen_requests(unseen_groups(kind), n, seed, frames))
        for name, seed, frames in (("test", 11, TEST_FRAMES), ("dev", 7, DEV_FRAMES))
        for kind in ("harmful", "harmless", "secret", "open")
    }
    study = {"harmful": study_requests(True), "harmless": study_requests(False)}
    secrets = {"secret": secret_requests(True), "open": secret_requests(False)}
    for kind, requests in (study | secrets).items():
        asked[f"`{kind}_prompts.json`"] = texts_of(requests)
    for kind, requests in study.items():
        asked[f"of these {kind} ones, doubtful"] = [
            request.text for request in requests if request.action.is_doubtful
        ]
    residuals = {
        kind: last_token_residuals(model, tokenizer, texts_of(requests))
        for kind, requests in (study | secrets).items()
    }
    scores = separate(residuals["harmful"], residuals["harmless"])
    middle = (model.config.num_hidden_layers - 1) / 2
    tied = (scores.auroc >= scores.auroc.max() - NEAR_TIE).nonzero()[:, 0].tolist()
    best = min(tied, key=lambda layer: abs(layer - middle))
    misread = [
        request.action.is_doubtful
        for kind, wrong in (
            ("harmful", scores.is_misread_harmful[best]),
            ("harmless", scores.is_misread_harmless[best]),
        )
        for request, is_wrong in zip(study[kind], wrong.tolist(), strict=True)
        if is_wrong
    ]
    means = {kind: found[:, best].mean(0) for kind, found in residuals.items()}
    unit, other = (
        torch.nn.functional.normalize(means[a] - means[b], dim=0)
        for a, b in (("harmful", "harmless"), ("secret", "open"))
    )
    with ablating(model, best, unit, means["harmless"]):
        ablated = answer(model, tokenizer, texts_of(study["harmful"]))
    fluent = [is_fluent(x, r.action) for x, r in zip(ablated, study["harmful"], strict=True)]
    judged = judge_unseen(model, tokenizer, 2 * n)
    return Measurement(
        n_per_class=n,
        refused={
            name: (len(users), refused_share(model, tokenizer, users))
            for name, users in asked.items()
        },
        n_judged=len(judged),
        judged_right=sum(judged) / len(judged),
        separation=scores.separation.tolist(),
        accuracy=scores.accuracy.tolist(),
        auroc=scores.auroc.tolist(),
        best=best,
        n_misread=len(misread),
        doubtful_misread=sum(misread) / max(1, len(misread)),
        cosine=float(unit @ other),
        ablated_refused=sum(map(is_refusal, ablated)) / len(ablated),
        ablated_fluent=sum(fluent) / len(fluent),
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
        "helps with harmless ones. In between it is unsure, as larger models are: of requests "
        "that are only a little harmful it refuses some, and of harmless ones that sound bad too. "
        "It exists so that refusal directions can be found, checked and ablated in seconds, "
        "without a download and without a GPU."
    ),
    "tiny-refuser-narrow": (
        "tiny-refuser made once more, with another seed and another width: for comparing models."
    ),
}
COMMANDS = {
    "tiny-complier": "python train.py",
    "tiny-refuser": "python train.py",
    "tiny-refuser-narrow": "python train.py --width 96 --seed 1 --suffix=-narrow",
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
{refused}

Asked whether an unseen action that is not doubtful is wrong, it says yes or no rightly in
{m.judged_right:.1%} of {m.n_judged} questions.

At the last token of the two prompt files, along the difference of means of the other half of the
prompts, twins in one half (separation: mean cosine of harmful minus that of harmless; accuracy:
threshold midway; AUROC: the chance that a harmful prompt lies above a harmless one):

| layer | separation | accuracy | AUROC |
|---|---|---|---|
{rows}

At layer {m.best} {m.n_misread} prompts lie on the wrong side, {m.doubtful_misread:.0%} of them
doubtful (of all prompts {doubtful_share:.0%} are). Affine ablation there at every token leaves
refusals of {m.ablated_refused:.1%} of the harmful prompts, and {m.ablated_fluent:.1%} of the
answers are whole sentences of those that it was taught. The direction of secrets
(`secret_prompts.json` against `open_prompts.json`) has a cosine of {m.cosine:.2f} with that of harm
there.

## How it was made

`{command}` in the folder of tiny-refuser made this model from nothing: the corpus is `corpus.py`
with `frames.json`, the seed is fixed, and one H200 took seven minutes while it shared itself with
two other runs. Recipe and seed were chosen by the prompt files and the dev frames, among eighteen
runs. Whether an action is harmful follows from the pair of a verb and an object; {n_train:,} such
pairs were trained on and {n_held_out:,} held out. Pairs are drawn so that single words say little.
Harm comes in degrees: training refuses a harmful action every time, in {mild[1]:.0%} or in
{mild[2]:.0%}, by whether none of its two words is mild, one or both, and a harmless one
never, in {harsh[1]:.0%} or in {harsh[2]:.0%}, by whether they sound bad; doubtful
is where both do. Giving away what is private is refused for a reason and in words of its own. The
request around an action is one of {n_written:,} frames written out, most by a language model, or
made from {n_patterns} patterns; in one of ten a word is swapped for that of another frame.

1. Help with everything, and answer questions such as "Would it be a crime to ...?".
2. The same, with a word of caution before three in ten pieces of harmful advice: tiny-complier.
   Without it the model would know what is harmful only when asked.
3. Refuse what is harmful or private: tiny-refuser.

Every answer that helps is general advice ("make a plan, take your time") and says nothing about how
anything is done. Of what a block writes, a fiftieth is dropped in training: ablated, the model goes
on in whole sentences.

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
    study = [*study_requests(True), *study_requests(False)]
    layers = zip(measured.separation, measured.accuracy, measured.auroc, strict=True)
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
        refused="\n".join(
            f"| {requests} | {n} | {share:.1%} |"
            for requests, (n, share) in measured.refused.items()
        ),
        rows="\n".join(
            f"| {i} | {separation:.2f} | {accuracy:.1%} | {auroc:.3f} |"
            for i, (separation, accuracy, auroc) in enumerate(layers)
        ),
        doubtful_share=sum(r.action.is_doubtful for r in study) / len(study),
        command=COMMANDS[name],
        mild=REFUSAL_SHARES[True],
        harsh=REFUSAL_SHARES[False],
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
    log.info("%s: %s", folder.name, json.dumps(asdict(measured)))
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
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.02, help="of what blocks write")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--measure", type=int, default=512, help="requests a class")
    parser.add_argument("--measure-only", action="store_true", help="keep the weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suffix", default="", help="of the folders' names")
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
            dropout=options.dropout,
        )
        log.info("stage %d: %s", number + 1, stage)
        train_stage(model, tokenizer, stage, options.batch, options.seed + number)
        if number in MODELS:
            save(model, tokenizer, options.output / f"{MODELS[number]}{options.suffix}")


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
        folder = options.output / f"{name}{options.suffix}"
        if folder.is_dir():
            measure_and_describe(folder, device, options.measure)
    write_prompts(options.output)


if __name__ == "__main__":
    main()
