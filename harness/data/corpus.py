"""Plain texts: files, a data set of the hub, or the benchmark's own train documents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.jsonlines import read_objects
from harness.data.sources import cached_split
from harness.errors import UserError
from harness.tasks import get_task, trainable_tasks

# Files of a directory that are read.
SUFFIXES = (".txt", ".md", ".rst", ".jsonl", ".py")
# Characters. Longer texts are cut at a line's end, so that held-out texts are spread over a long file.
_BLOCK = 1000
# One text in this many is held out, chosen by its hash, so that a repeated text is never on both sides.
_HELD_OUT = 20
_CYRILLIC = re.compile(r"[А-Яа-яЁё]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Corpus:
    """Texts of about a thousand characters or fewer, each once.

    Attributes:
        name: As the user named it.
        texts: The texts to learn from.
        held_out: The texts to measure on.
    """

    name: str
    texts: tuple[str, ...]
    held_out: tuple[str, ...]

    def russian_share(self) -> float:
        """Return the share of Cyrillic letters among all letters."""
        return russian_share(self.texts or self.held_out)

    def fingerprint(self) -> str:
        """Return the SHA-256 over all texts."""
        digest = hashlib.sha256()
        for text in (*self.texts, *self.held_out):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()


def read_corpus(name: str, data: str = "mini") -> Corpus:
    """Return the corpus that --corpus names.

    Args:
        name: A file or a directory with .txt, .md, .rst, .py (blocks of lines) or .jsonl (field "text"); hub:NAME (a
            data set with a column "text"); rsg (train texts of `data`).
        data: The source of the train texts, as `run` takes it.

    Raises:
        UserError: It does not exist, has no text, or is not UTF-8.
    """
    if name == "rsg":
        found: Iterable[str] = (text for texts in task_texts(data).values() for text in texts)
    elif name.startswith("hub:"):
        found = _hub_texts(name.removeprefix("hub:"))
    else:
        found = _file_texts(Path(name).expanduser(), name)
    blocks = dict.fromkeys(block for text in found for block in _blocks(text))
    if not blocks:
        raise UserError(f"the corpus {name} has no text", "name one that has")
    held_out = {block for block in blocks if _is_held_out(block)}
    if len(held_out) == len(blocks) or not held_out:  # a corpus of very few texts
        held_out = {list(blocks)[-1]}
    learned = tuple(block for block in blocks if block not in held_out)
    return Corpus(name, learned or tuple(held_out), tuple(block for block in blocks if block in held_out))


def task_texts(data: str) -> dict[str, list[str]]:
    """Return task -> the texts of its train documents, each once.

    Raises:
        UserError: The data cannot be read.
    """
    texts = {}
    for task in trainable_tasks():
        columns = [field.name for field in get_task(task).fields]
        rows = (document.row() for document in cached_split(task, "train", data).documents)
        found = (row[name] for row in rows for name in columns if isinstance(row[name], str))
        texts[task] = list(dict.fromkeys(text for text in found if " " in text))  # not single words, nor labels
    return texts


def russian_share(texts: Iterable[str]) -> float:
    """Return the share of Cyrillic letters among all letters; 0 where there are no letters."""
    cyrillic = letters = 0
    for text in texts:
        cyrillic += len(_CYRILLIC.findall(text))
        letters += len(_LETTER.findall(text))
    return cyrillic / letters if letters else 0.0


def _hub_texts(name: str) -> Iterator[str]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = load_dataset(name, split="train")
    except (DatasetNotFoundError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot read the data set {name} of the hub: {reason}", "check its name and the network"
        ) from error
    if "text" not in rows.column_names:
        raise UserError(
            f"the data set {name} has no column text, only {', '.join(rows.column_names)}", "name one that has"
        )
    yield from rows["text"]


def _file_texts(path: Path, name: str) -> Iterator[str]:
    if path.is_dir():
        files: Sequence[Path] = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise UserError(f"{name} has no {', '.join(SUFFIXES)} files", "name the directory that holds the texts")
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"no corpus {name!r}", "name a file, a directory, hub:NAME, or rsg (train texts of --data)")
    for file in files:
        if file.suffix == ".jsonl":
            for line, row in read_objects(file):
                if not isinstance(row.get("text"), str):
                    raise UserError(f'{file}:{line}: no field "text"', "every line of a .jsonl corpus has one")
                yield row["text"]
            continue
        try:
            yield file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{file} is not UTF-8 (byte {error.start + 1})", f"convert it: iconv -f CP1251 -t UTF-8 {file.name}"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error


def _blocks(text: str) -> Iterator[str]:
    """Yield the text in blocks of whole lines, of at most `_BLOCK` characters unless a line is longer."""
    block: list[str] = []
    size = 0
    for line in text.split("\n"):
        if block and size + len(line) > _BLOCK:
            yield from _unless_blank("\n".join(block))
            block, size = [], 0
        block.append(line)
        size += len(line) + 1
    yield from _unless_blank("\n".join(block))


def _unless_blank(block: str) -> Iterator[str]:
    stripped = block.strip("\n").rstrip()
    if stripped.strip():
        yield stripped


def _is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT == 0
