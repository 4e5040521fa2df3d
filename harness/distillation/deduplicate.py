"""Compare what a teacher wrote with the official documents and with its own earlier ones.

A teacher may know the benchmark by heart: what it writes as new may be a document of the test split. So each new
document is compared with those of every official split on this machine; nothing of them is sent anywhere. The texts are
compared without case, punctuation and ё. Two texts are nearly the same if the sets of their five-character shingles
have a Jaccard similarity of at least 0.6; candidates come from MinHash LSH (Broder 1997, "On the resemblance and
containment of documents").
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.data import cached_split
from harness.errors import UserError
from harness.tasks import get_task

try:
    from datasketch import MinHash, MinHashLSH
except ImportError as error:
    raise UserError("the package datasketch is not installed", "pip install 'rsg-harness[distill]'") from error

NEAR = 0.6
NEW = "another new one"  # a document of this distillation, where others name a task and a split
_SHINGLE = 5  # characters
_PERMUTATIONS = 128
_CANDIDATES = 0.5  # MinHash only estimates: what it finds above this is measured
_WORDS = re.compile(r"\w+")

log = logging.getLogger(__name__)


def compared_text(task: str, row: Mapping[str, Any]) -> str:
    """Return a document's text in the normal form in which it is compared.

    The columns after the first one are sorted: PARus's choices have no order of their own.
    """
    return normal_form([row[name] for name in get_task(task).compared])


def normal_form(texts: Sequence[str]) -> str:
    """Return the texts in one: no case, punctuation or ё, and all but the first sorted."""
    plain = [" ".join(_WORDS.findall(text.lower().replace("ё", "е"))) for text in texts]
    return " | ".join([plain[0], *sorted(plain[1:])])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return the share of the shingles of both texts that they have in common."""
    return len(first & second) / len(first | second)


def shingles(text: str) -> frozenset[str]:
    """Return all runs of five characters, spaces included; a shorter text is its own only shingle."""
    return frozenset(text[start : start + _SHINGLE] for start in range(max(1, len(text) - _SHINGLE + 1)))


class KnownDocuments:
    """The documents of a task that a new one must not repeat."""

    def __init__(self) -> None:
        self._exact: dict[str, str] = {}  # text -> where it comes from
        self._near: dict[str, tuple[str, frozenset[str]]] = {}  # text -> where it comes from, shingles
        self._index = MinHashLSH(threshold=_CANDIDATES, num_perm=_PERMUTATIONS)

    def add(self, text: str, where: str, near: bool = True) -> None:
        """Add a text in its normal form.

        Args:
            text: From `compared_text`.
            where: Where it comes from, for the reason of a refusal.
            near: Whether texts that are nearly the same are refused too.
        """
        self._exact.setdefault(text, where)
        if near and text not in self._near:
            self._near[text] = (where, shingles(text))
            self._index.insert(text, _minhash(self._near[text][1]))

    def match(self, text: str) -> str | None:
        """Return why a text is refused: "the same as in …" or "nearly the same as in …"; None where it is new."""
        if text in self._exact:
            return f"the same as in {self._exact[text]}"
        own = shingles(text)
        for candidate in self._index.query(_minhash(own)):
            where, theirs = self._near[candidate]
            if jaccard(own, theirs) >= NEAR:
                return f"nearly the same as in {where}"
        return None


def official_documents(task: str, data: str, paraphrases: bool) -> KnownDocuments:
    """Return the official documents that new ones of a task are compared with; splits not on this machine are logged.

    A paraphrase is meant to be near a train document, so train documents refuse only their own text.

    Args:
        task: The task that documents are written for.
        data: The data source, as `run` takes it.
        paraphrases: Whether the new documents are paraphrases of train documents.
    """
    known = KnownDocuments()
    missing = []
    writing = get_task(task).writing
    assert writing is not None
    for related in (task, *writing.relatives):
        for split in get_task(related).splits:
            try:
                documents = cached_split(related, split, data).documents
            except UserError as error:
                missing.append(f"{related} {split} ({error.message})")
                continue
            for document in documents:
                text = compared_text(related, document.row())
                known.add(text, f"{related} {split}", near=not (paraphrases and split == "train"))
    if missing:
        log.warning("new documents of %s are not compared with %s", task, "; ".join(missing))
    return known


def _minhash(parts: Iterable[str]) -> MinHash:
    found = MinHash(num_perm=_PERMUTATIONS)
    found.update_batch([part.encode() for part in parts])
    return found
