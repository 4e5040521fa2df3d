"""RussianNLP/russian_super_glue from the hub's parquet branch.

The dataset's own loading script is refused by `datasets` 4 and newer; the hub keeps its output as parquet files in
<config>/<split>/0000.parquet, configs in lower case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from harness.data.unique import with_unique_idx
from harness.errors import UserError
from harness.tasks.document import Document, DocumentFault, LabelError, Row, describe
from harness.tasks.task import Task

REPOSITORY = "RussianNLP/russian_super_glue"
REVISION = "refs/convert/parquet"
_OFFLINE_HINT = "without the hub: --data mini, or --data with the path of the unpacked official archive"

_BATCH_ROWS = 1000  # rows turned into Python objects at a time; a RuCoS row is about 10 kB


def load_hub(task: Task, split: str, root: Path | None = None) -> tuple[tuple[Document, ...], str]:
    """Return the documents of one split and a description of where they come from.

    Args:
        task: The task.
        split: One of its splits.
        root: A local directory in the hub's layout, or None for the hub itself.

    Raises:
        UserError: No network, no such files, or damaged ones.
    """
    if root is not None:
        return _load_directory(task, split, root), f"hub:{root}"
    snapshot = _download(task.name, split)
    return _load_directory(task, split, snapshot), f"{REPOSITORY} {REVISION} {snapshot.name}"


def _download(task: str, split: str) -> Path:
    """Return the local snapshot, named after the commit; a cached one if the network fails."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        snapshot = huggingface_hub.snapshot_download(
            REPOSITORY,
            repo_type="dataset",
            revision=REVISION,
            allow_patterns=[f"{task}/{split}/*.parquet"],
        )
    except errors.GatedRepoError as error:
        raise UserError(
            f"the hub wants a login for {REPOSITORY}",
            f"accept its terms on huggingface.co and run `hf auth login`; {_OFFLINE_HINT}",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UserError(f"the hub has no dataset {REPOSITORY} with the revision {REVISION}", _OFFLINE_HINT) from error
    except (errors.HTTPError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"cannot fetch {REPOSITORY} {task}/{split} from the hub: {reason}", _OFFLINE_HINT) from error
    return Path(snapshot)


def _load_directory(task: Task, split: str, root: Path) -> tuple[Document, ...]:
    directory = root / task.name / split
    shards = sorted(directory.glob("*.parquet"))
    if not shards:
        raise UserError(f"no parquet files in {directory}", f"expected 0000.parquet there; {_OFFLINE_HINT}")
    documents = tuple(with_unique_idx(placed for shard in shards for placed in _read_shard(task, split, shard)))
    if not documents:
        raise UserError(f"{directory} holds no rows", _OFFLINE_HINT)
    return documents


def _read_shard(task: Task, split: str, path: Path) -> Iterator[tuple[str, Document]]:
    before: Row = {}
    for number, (row, names) in enumerate(_rows(task, path), start=1):
        # One string for all rows that share a paragraph, not a copy each.
        row = {name: before[name] if before.get(name) == value else value for name, value in row.items()}
        before = dict(row)
        try:
            if "label" in row:
                row["label"] = task.hub_label_index(row["label"], names)
            document = task.parse(task.read_hub(row, split))
        except ValidationError as error:
            raise UserError(f"{path}, row {number}: {describe(error)}") from error
        except (DocumentFault, LabelError) as error:
            raise UserError(f"{path}, row {number}: {error}") from error
        yield f"{path}, row {number}", document


def _rows(task: Task, path: Path) -> Iterator[tuple[Row, list[str] | None]]:
    """Yield rows, each with the label's class names in the file's order (None if the file does not tell)."""
    import pyarrow
    import pyarrow.parquet

    wanted = set(task.document.model_fields)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _class_names(file.schema_arrow.metadata)
            columns = [name for name in file.schema_arrow.names if name.replace("-", "_") in wanted]
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
                for row in batch.to_pylist():
                    yield row, names
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot read {path}: {reason}", "delete the file and fetch it again") from error


def _class_names(metadata: dict[bytes, bytes] | None) -> list[str] | None:
    """`datasets` writes a column's ClassLabel names into the file's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        return None
