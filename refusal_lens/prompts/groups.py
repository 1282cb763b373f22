"""Which prompts depend on each other: twins, topics and frames, given or found in the texts.

Knows prompts and their texts. Does not know activations, nor what is dealt or shuffled by groups.
"""

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor

from refusal_lens.errors import RefusalLensError
from refusal_lens.prompts.contrast import UNCATEGORISED, ContrastSet, Prompt, PromptSet

ALIKE = 0.7
"""From this cosine of character n-grams on, two prompts are near-duplicates.

Evidence: of 192 + 192 shipped prompts from common frames 17 have a neighbour this near (9 pairs,
of which 7 within a class); of 60 + 60 topics written one by one none has: twins reach 0.61, two
prompts of one class 0.36.
"""

N_SEARCHED = 10_000
"""Most prompts that are searched for near-duplicates: the search grows as n squared. Of more,
only those with the same letters and digits count as near-duplicates."""

FRAME_WORDS = 3
"""Prompts that begin with the same words, so many of them, share a frame."""

COMMON_SHARE = 0.2
"""A beginning of more than this share of all prompts is a habit of the language, and no frame."""

ALIGNED_SHARE = 0.5
"""Two files are aligned when at least this share of prompts is more like its counterpart than 95 %
of all others are: without alignment one in twenty would be. Of the shipped prompts 92 % are, of the
topics 98 % (90 % in Chinese)."""

_UNSPACED = r"[\u3040-\u30ff\u3400-\u9fff]"
_WORD = re.compile(rf"{_UNSPACED}|(?:(?!{_UNSPACED})\w)+(?:['’-](?:(?!{_UNSPACED})\w)+)*")


@dataclass(frozen=True, eq=False)
class Groups:
    """What every prompt shares with others: prompts with the same number belong together.

    Args:
        pair: Twins of the two classes and near-duplicates: never dealt apart. A prompt without
            either has a number to itself.
        topic: The topic, template or source; a number to itself where there is none.
        frame: The wording around the content, which may run through all topics; a number to itself
            where there is none.
        origin: How `pair`, `topic` and `frame` came about: `given`, `category`, `found` or `none`.
    """

    pair: Int[Tensor, " n_prompts"]
    topic: Int[Tensor, " n_prompts"]
    frame: Int[Tensor, " n_prompts"]
    origin: dict[str, str] = field(default_factory=dict)

    @classmethod
    def independent(cls, n_prompts: int) -> "Groups":
        """Return groups of one: prompts that have nothing to do with each other."""
        alone = torch.arange(n_prompts)
        return cls(alone, alone, alone, dict.fromkeys(FACTORS, "none"))

    @property
    def component(self) -> Int[Tensor, " n_prompts"]:
        """What pairs and topics join: a harmful and a harmless topic whose prompts are twins."""
        return join(self.pair, self.topic)

    def take(self, rows: Any) -> "Groups":
        """Return the groups of some prompts, by their indices or a mask."""
        return Groups(self.pair[rows], self.topic[rows], self.frame[rows], self.origin)

    def describe(self) -> dict[str, Any]:
        """Say in plain values how many groups there are, and how each came about."""
        counts = {
            name: {"origin": self.origin.get(name, "given"), "n": n_groups(getattr(self, name))}
            for name in FACTORS
        }
        return {**counts, "n_components": n_groups(self.component)}

    def __repr__(self) -> str:
        """Say how many groups there are."""
        counts = ", ".join(f"{n_groups(getattr(self, name))} {name}s" for name in FACTORS)
        return f"Groups({len(self.pair)} prompts: {counts})"


FACTORS = tuple(each.name for each in fields(Groups) if each.name != "origin")


def take_whole(prompts: ContrastSet, n_a_side: int) -> ContrastSet:
    """Take at most so many prompts of each class: what depends on each other whole, or not at all.

    They are the first components, in the order of the prompts, that fit.

    Raises:
        RefusalLensError: No component with prompts of both classes, or of either, fits.
    """
    labels = find_groups(prompts).component.tolist()
    n_harmful = len(prompts.harmful)
    rows = {label: ([], []) for label in labels}
    for row, label in enumerate(labels):
        rows[label][row >= n_harmful].append(row)
    kept: tuple[list[int], list[int]] = ([], [])
    for component in rows.values():
        if all(len(a) + len(b) <= n_a_side for a, b in zip(kept, component, strict=True)):
            for side, more in zip(kept, component, strict=True):
                side.extend(more)
    if not all(kept):
        least = min(max(map(len, component)) for component in rows.values())
        raise RefusalLensError(
            f"prompts.limit is {n_a_side}, but no pairs and topics of both classes are that few: "
            f"the smallest has {least} of a class. Raise it, or take prompts as independent "
            "(prompts.groups: off)."
        )
    harmful, harmless = (
        PromptSet(side.name, tuple(prompts.prompts[row] for row in sorted(part)))
        for side, part in zip((prompts.harmful, prompts.harmless), kept, strict=True)
    )
    return replace(prompts, harmful=harmful, harmless=harmless)


def n_groups(labels: Int[Tensor, " n_prompts"]) -> int:
    """Count different labels."""
    return len(labels.unique())


def join(
    first: Int[Tensor, " n_prompts"], second: Int[Tensor, " n_prompts"]
) -> Int[Tensor, " n_prompts"]:
    """Label the connected components of two groupings, in order of appearance.

    Example:
        >>> join(torch.tensor([0, 1, 0, 2]), torch.tensor([0, 0, 1, 2]))
        tensor([0, 0, 0, 1])
    """
    n = len(first)
    codes = [np.unique(each.numpy(), return_inverse=True)[1] for each in (first, second)]
    shape = tuple(int(code.max(initial=-1)) + 1 for code in codes)
    # Prompts are the edges of a graph between the groups of either kind.
    edges = csr_matrix((np.ones(n), (codes[0], codes[1] + shape[0])), shape=(sum(shape),) * 2)
    _, components = connected_components(edges, directed=False)
    return _number(components[codes[0]].tolist())


def find_groups(prompts: ContrastSet) -> Groups:
    """Say which prompts depend on each other: what is given, else what the texts show.

    - *Pairs* are given by `Prompt.pair`. Else two files of the same length are paired line by line
      where their texts show that they are aligned (`ALIGNED_SHARE`).
    - *Near-duplicates* (`ALIKE`), within a class or across, join the pairs that they belong to.
    - *Topics* are given by `Prompt.group`, else by `Prompt.category` where a class has more than
      one. Else prompts of one frame are a topic.
    - *Frames* are prompts that begin with the same `FRAME_WORDS` words.

    Args:
        prompts: The prompts. Their `grouping` is `found` for all of this, `given` for what stands
            in the files alone, `off` for independent prompts whatever stands there.

    Returns:
        Groups of `prompts.prompts`, in their order.
    """
    all_prompts = prompts.prompts
    if prompts.grouping == "off":
        return Groups.independent(len(all_prompts))
    is_searched = prompts.grouping == "found"
    alone = torch.arange(len(all_prompts))
    pair, topic, frame = _given_pairs(all_prompts), _given_topics(prompts), None
    origin = {
        "pair": "given" if pair is not None else "none",
        "topic": "none" if topic is None else _topic_origin(all_prompts),
        "frame": "none",
    }
    if is_searched:
        if pair is None and _is_aligned(prompts):
            pair, origin["pair"] = alone % len(prompts.harmful), "found"
        alike = _near_duplicates(all_prompts)
        if n_groups(alike) < len(alone):
            pair = join(alone if pair is None else pair, alike)
            origin["pair"] = "found" if origin["pair"] == "none" else origin["pair"]
        frame = _frames(all_prompts)
        if frame is not None:
            origin["frame"] = "found"
            if topic is None:
                topic, origin["topic"] = frame, "found"
    pair, topic, frame = (alone if part is None else part for part in (pair, topic, frame))
    return Groups(pair, topic, frame, origin)


# --- what is given ----------------------------------------------------------------------------


def _number(keys: Sequence[Hashable]) -> Int[Tensor, " n"]:
    """Number keys in order of appearance."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys], dtype=torch.int64)


def _label(names: Sequence[str]) -> Int[Tensor, " n"]:
    """Number names in order of appearance; a blank one has a number to itself."""
    return _number([name or index for index, name in enumerate(names)])


def _given_pairs(prompts: Sequence[Prompt]) -> Int[Tensor, " n"] | None:
    names = [prompt.pair for prompt in prompts]
    return _label(names) if any(names) else None


def _given_topics(prompts: ContrastSet) -> Int[Tensor, " n"] | None:
    """Number groups, else categories; None where they tell no prompts of a class apart."""
    names = [prompt.group for prompt in prompts.prompts]
    if any(names):
        return _label(names)
    names = [p.category if p.category != UNCATEGORISED else "" for p in prompts.prompts]
    n = len(prompts.harmful)
    counts = [len(set(side) - {""}) for side in (names[:n], names[n:])]
    return _label(names) if max(counts) > 1 else None


def _topic_origin(prompts: Sequence[Prompt]) -> str:
    return "given" if any(prompt.group for prompt in prompts) else "category"


# --- what is found in the texts ---------------------------------------------------------------


def _is_aligned(prompts: ContrastSet) -> bool:
    """Say whether each harmful text is more like its counterpart than like other harmless ones."""
    n = len(prompts.harmful)
    if n != len(prompts.harmless) or n < 4:
        return False
    shown = np.arange(n) if n <= N_SEARCHED else np.linspace(0, n - 1, N_SEARCHED).astype(int)
    sides = [
        [side.prompts[row].text for row in shown] for side in (prompts.harmful, prompts.harmless)
    ]
    grams = _grams([*sides[0], *sides[1]])
    harmful, harmless = grams[: len(shown)], grams[len(shown) :]
    aligned = np.asarray(harmful.multiply(harmless).sum(axis=1)).ravel()
    shifts = np.unique(np.linspace(1, len(shown) - 1, min(len(shown) - 1, 50)).astype(int))
    others = [
        harmful.multiply(harmless[np.roll(np.arange(len(shown)), shift)]).sum(axis=1)
        for shift in shifts
    ]
    bar = np.quantile(np.concatenate([np.asarray(each).ravel() for each in others]), 0.95)
    return bool((aligned > bar).mean() >= ALIGNED_SHARE)


def _near_duplicates(prompts: Sequence[Prompt]) -> Int[Tensor, " n"]:
    """Label the connected components of prompts that are alike."""
    texts = [prompt.text for prompt in prompts]
    if len(texts) > N_SEARCHED:
        keys = ["".join(filter(str.isalnum, text.casefold())) for text in texts]
        return _label(keys)
    grams = _grams(texts)
    rows, columns = [], []
    for start in range(0, len(texts), 1000):
        near = (grams[start : start + 1000] @ grams.T).tocoo()
        is_near = near.data >= ALIKE
        rows.append(near.row[is_near] + start)
        columns.append(near.col[is_near])
    edges = (np.concatenate(rows), np.concatenate(columns))
    graph = csr_matrix((np.ones(len(edges[0])), edges), shape=(len(texts),) * 2)
    return _number(connected_components(graph, directed=False)[1].tolist())


def _grams(texts: Sequence[str]) -> Any:
    """Return character n-grams within words, weighted by their rarity, of unit length."""
    try:
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit_transform(texts)
    except ValueError:  # no text has a single n-gram
        return csr_matrix((len(texts), 1))


def _frames(prompts: Sequence[Prompt]) -> Int[Tensor, " n"] | None:
    """Number the beginnings that some prompts share, and not too many; None without any."""
    openings = [tuple(words_of(prompt.text)[:FRAME_WORDS]) for prompt in prompts]
    counts = Counter(opening for opening in openings if len(opening) == FRAME_WORDS)
    shared = {
        opening
        for opening, count in counts.items()
        if 2 <= count <= max(2, COMMON_SHARE * len(prompts))
    }
    keys = [each if each in shared else row for row, each in enumerate(openings)]
    return _number(keys) if shared else None


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words; Chinese and Japanese, without spaces, into characters.

    Example:
        >>> words_of("How do I wash a car?"), words_of("如何 wash?")
        (['how', 'do', 'i', 'wash', 'a', 'car'], ['如', '何', 'wash'])
    """
    return _WORD.findall(text.casefold())
