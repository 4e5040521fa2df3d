from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from invented import HUB, OFFICIAL, write_hub, write_official

from harness.data import load_split
from harness.data.hub import REPOSITORY, load_hub
from harness.errors import UserError
from harness.tasks import get_task


def load(task, split, root=None):
    return load_hub(get_task(task), split, root)


def split_of(task: str) -> str:
    return "test" if task == "lidirus" else "train"


@pytest.mark.parametrize("task", list(OFFICIAL))
def test_the_hub_and_the_official_files_give_the_same_documents(task, tmp_path):
    split = split_of(task)
    write_hub(tmp_path / "hub", task, split=split)
    write_official(tmp_path / "official", task, split=split)
    from_hub = load_split(task, split, f"hub:{tmp_path / 'hub'}")
    from_files = load_split(task, split, str(tmp_path / "official"))
    assert from_hub.documents == from_files.documents
    assert from_hub.fingerprint == from_files.fingerprint
    assert len(from_hub.documents) > 0


def test_hub_entities_lose_the_stray_character_and_come_in_the_passages_order(tmp_path):
    write_hub(tmp_path, "rucos")
    (document,), _ = load("rucos", "train", tmp_path)
    assert document.entities == ("Твери", "Пётр Лужин", "Омска", "Омске", "Лужина")


def test_hidden_labels_and_answers_of_a_test_split_stay_hidden(tmp_path):
    write_hub(tmp_path, "danetqa", [row | {"label": -1} for row in HUB["danetqa"]], "test")
    write_hub(tmp_path, "rucos", [row | {"answers": []} for row in HUB["rucos"]], "test")
    assert [document.label for document in load("danetqa", "test", tmp_path)[0]] == [-1, -1]
    assert load("rucos", "test", tmp_path)[0][0].answers == ()


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    write_hub(tmp_path, "terra", names=["not_entailment", "entailment"])
    assert [d.label for d in load("terra", "train", tmp_path)[0]] == [1 - row["label"] for row in HUB["terra"]]


def test_shards_are_read_in_order(tmp_path):
    first, second = HUB["danetqa"]
    write_hub(tmp_path, "danetqa", [second], shard=1)
    write_hub(tmp_path, "danetqa", [first], shard=0)
    assert [document.idx for document in load("danetqa", "train", tmp_path)[0]] == [0, 2]


def test_the_negation_that_the_hub_lost_is_restored_in_the_train_split_only(tmp_path):
    for split in ("train", "validation"):
        write_hub(tmp_path, "rcb", split=split)
    assert [document.negation for document in load("rcb", "train", tmp_path)[0]] == [
        "no_negation",
        "negation",
    ]
    assert [document.negation for document in load("rcb", "validation", tmp_path)[0]] == [
        "no_negation",
        "",
    ]


def test_answers_of_a_paragraph_share_one_string(tmp_path):
    write_hub(tmp_path, "muserc")
    first, second, *_ = load("muserc", "train", tmp_path)[0]
    assert first.paragraph is second.paragraph


def refusal(task: str, split: str, root: Path | None) -> UserError:
    with pytest.raises(UserError) as caught:
        load(task, split, root)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_split_says_what_is_expected(tmp_path):
    error = refusal("rcb", "train", tmp_path)
    assert error.message == f"no parquet files in {tmp_path / 'rcb' / 'train'}"
    assert "0000.parquet" in error.hint


def test_a_missing_column_is_named_with_file_and_row(tmp_path):
    path = write_hub(tmp_path, "rcb", [{name: row[name] for name in row if name != "premise"} for row in HUB["rcb"]])
    assert refusal("rcb", "train", tmp_path).message == f'{path}, row 1: no field "premise"'


def test_an_empty_cell_is_named_with_file_and_row(tmp_path):
    first, second = HUB["danetqa"]
    path = write_hub(tmp_path, "danetqa", [first, second | {"passage": None}])
    message = refusal("danetqa", "train", tmp_path).message
    assert message == f'{path}, row 2: field "passage": input should be a valid string, not null'


def test_a_wrong_label_is_named_with_file_and_row(tmp_path):
    path = write_hub(tmp_path, "rcb", [HUB["rcb"][0] | {"label": 0}], names=["maybe", "contradiction", "neutral"])
    assert refusal("rcb", "train", tmp_path).message.startswith(f'{path}, row 1: label is "maybe", allowed: ')


def test_a_damaged_file_is_named(tmp_path):
    path = write_hub(tmp_path, "rcb")
    path.write_bytes(path.read_bytes()[:-20])
    error = refusal("rcb", "train", tmp_path)
    assert error.message.startswith(f"cannot read {path}: ")
    assert error.hint == "delete the file and fetch it again"


def test_a_split_without_rows_is_refused(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = write_hub(tmp_path, "danetqa")
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).slice(0, 0), path)
    assert refusal("danetqa", "train", tmp_path).message == f"{path.parent} holds no rows"


def test_the_hub_is_asked_for_one_config_and_split_of_the_parquet_branch(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(repository, **options):
        asked.update(options, repository=repository)
        return str(tmp_path / "0123abcd")

    write_hub(tmp_path / "0123abcd", "rcb")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = load_split("rcb", "train", "hub")
    assert asked == {
        "repository": "RussianNLP/russian_super_glue",
        "repo_type": "dataset",
        "revision": "refs/convert/parquet",
        "allow_patterns": ["rcb/train/*.parquet"],
    }
    assert loaded.source == f"{REPOSITORY} refs/convert/parquet 0123abcd"
    assert len(loaded.documents) == 2


def raised(kind: type[Exception]) -> Exception:
    """An error of a kind whose constructor wants a response that a test does not have."""
    error = kind.__new__(kind)
    error.args = ("first line\nsecond line",)
    return error


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        (errors.LocalEntryNotFoundError, "cannot fetch", "--data mini"),
        (errors.HfHubHTTPError, "cannot fetch", "--data mini"),
        (errors.HTTPError, "cannot fetch", "--data mini"),
        (ConnectionError, "cannot fetch", "--data mini"),
        (errors.OfflineModeIsEnabled, "cannot fetch", "official archive"),
        (errors.GatedRepoError, "the hub wants a login", "hf auth login"),
        (errors.RepositoryNotFoundError, "the hub has no dataset", "--data mini"),
        (errors.RevisionNotFoundError, "the hub has no dataset", "--data mini"),
    ],
)
def test_a_failure_of_the_hub_says_what_to_do(kind, message, hint, monkeypatch):
    def snapshot_download(*_, **__):
        raise raised(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    error = refusal("rcb", "train", None)
    assert error.message.startswith(message)
    assert REPOSITORY in error.message
    assert hint in error.hint


def test_a_bug_in_the_download_is_not_hidden(monkeypatch):
    def snapshot_download(*_, **__):
        raise TypeError("a bug")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(TypeError):
        load("rcb", "train")
