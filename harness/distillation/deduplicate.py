"""Keeps what a teacher wrote apart from the official documents, and from itself.

A teacher may know the benchmark by heart: what it writes "anew" can be a document of the test split. So each new
document is compared with those of every official split at hand, here and only here: nothing of them is sent. Compared
is the text without case, punctuation and ё. Near is a Jaccard similarity of at least 0.6 between the sets of its
five-letter shingles; candidates come from MinHash LSH (Broder 1997, "On the resemblance and containment of documents").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from harness.data import SPLITS, cached_split
from harness.errors import UserError

try:
    from datasketch import MinHash, MinHashLSH
except ImportError as error:
    raise UserError("the package datasketch is not installed", "pip install 'rsg-harness[distill]'") from error

NEAR = 0.6
NEW = "another new one"  # where a document of this very distillation stands
_SHINGLE = 5  # letters
_PERMUTATIONS = 128
_CANDIDATES = 0.5  # MinHash estimates; what it finds above this is measured
_WORDS = re.compile(r"\w+")

# What a document says. In the other tasks it is a passage, or two sentences about a word, which nothing here is like.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "rcb": ("premise", "hypothesis"),
    "terra": ("premise", "hypothesis"),
    "lidirus": ("sentence1", "sentence2"),
    "parus": ("premise", "choice1", "choice2"),
    "rwsd": ("text",),
}
# Tasks whose documents may be of the same origin.
_KIN: Mapping[str, tuple[str, ...]] = {
    "rcb": ("rcb", "terra", "lidirus"),
    "parus": ("parus",),
    "rwsd": ("rwsd", "lidirus"),
}


def compared_text(task: str, row: Mapping[str, Any]) -> str:
    """A document's text in the normal form in which it is compared. PARus's choices have no order of their own."""
    texts = [" ".join(_WORDS.findall(row[name].lower().replace("ё", "е"))) for name in _TEXTS[task]]
    return " | ".join([texts[0], *sorted(texts[1:])])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Share of the shingles of both that they have in common."""
    return len(first & second) / len(first | second)


def shingles(text: str) -> frozenset[str]:
    """All runs of five letters, spaces counted; a shorter text is its own only one."""
    return frozenset(text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1)))


class KnownDocuments:
    """The documents that a new one of a task must not repeat."""

    def __init__(self) -> None:
        self._exact: dict[str, str] = {}  # text -> where it stands
        self._near: dict[str, tuple[str, frozenset[str]]] = {}  # text -> where, shingles
        self._index = MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS)

    def add(self, text: str, where: str, near: bool = True) -> None:
        """Adds a text in its normal form. `near`: what is like it is refused too, not only the same."""
        self._exact.setdefault(text, where)
        if near and text not in self._near:
            self._near[text] = (where, shingles(text))
            self._index.insert(text, _minhash(self._near[text][1]))

    def match(self, text: str) -> str | None:
        """Why a text is refused: "the same as in …" or "nearly the same as in …"; None where it is new."""
        if text in self._exact:
            return f"the same as in {self._exact[text]}"
        own = shingles(text)
        for candidate in self._index.query(_minhash(own)):
            where, theirs = self._near[candidate]
            if jaccard(own, theirs) >= NEAR:
                return f"nearly the same as in {where}"
        return None


def official_documents(task: str, data: str, paraphrases: bool, say: Callable[[str], None]) -> KnownDocuments:
    """The official documents that new ones of a task are compared with.

    A paraphrase is meant to be near a train document, so with train documents only identity counts for it.

    Args:
        task: that documents are written for.
        data: as --data takes it.
        paraphrases: whether they are paraphrases of train documents.
        say: told which splits are not at hand.
    """
    known = KnownDocuments()
    missing = []
    for kin in _KIN[task]:
        for split in SPLITS if kin != "lidirus" else ("test",):
            try:
                documents = cached_split(kin, split, data).documents
            except UserError as error:
                missing.append(f"{kin} {split} ({error.message})")
                continue
            for document in documents:
                text = compared_text(kin, document.row())
                known.add(text, f"{kin} {split}", near=not (paraphrases and split == "train"))
    if missing:
        say(f"warning: new documents of {task} are not compared with {'; '.join(missing)}")
    return known


def _minhash(parts: Iterable[str]) -> MinHash:
    found = MinHash(num_perm=_PERMUTATIONS)
    found.update_batch([part.encode() for part in parts])
    return found
