from __future__ import annotations

import dataclasses

import pytest
from invented import official_lines, write_hub, write_official

from harness.data import load_split, sources
from harness.errors import UserError


@pytest.fixture
def mini(tmp_path, monkeypatch):
    root = tmp_path / "mini"
    monkeypatch.setattr(sources, "MINI_ROOT", root)
    for task in ("rcb", "muserc"):
        for split in ("train", "validation"):
            write_official(root, task, split=split)
    write_official(root, "lidirus")
    return root


def refusal(task, split, source) -> UserError:
    with pytest.raises(UserError) as caught:
        load_split(task, split, source)
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_mini_set_is_read_without_a_warning_about_its_size(mini):
    loaded = load_split("muserc", "validation", "mini")
    assert (loaded.task, loaded.split, loaded.source, loaded.warnings) == ("muserc", "validation", "mini", ())
    assert len(loaded.documents) == 4
    assert loaded.fingerprint == sources.fingerprint(loaded.documents)


def test_the_mini_set_is_bundled_with_the_package():
    assert sources.MINI_ROOT.parent.name == "data"


def test_the_mini_set_has_no_test_split(mini):
    error = refusal("rcb", "test", "mini")
    assert error.message == "the mini set has no test split of rcb"
    assert "validation" in error.hint


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["mini", "official", "hub"])
def test_lidirus_reads_its_only_file_as_its_test_split(kind, split, mini, tmp_path):
    write_hub(tmp_path, "lidirus", split="test")
    source = {"mini": "mini", "official": str(mini), "hub": f"hub:{tmp_path}"}[kind]
    loaded = load_split("lidirus", split, source)
    assert (loaded.split, len(loaded.documents)) == ("test", 3)


def test_lidirus_cannot_be_trained_on(mini):
    assert "has no train split" in refusal("lidirus", "train", "mini").message


def test_a_split_of_another_than_the_published_size_is_warned_about(mini, tmp_path):
    loaded = load_split("rcb", "train", str(mini))
    assert loaded.source == str(mini)
    (warning,) = loaded.warnings
    assert warning.startswith("rcb train has 2 examples, the official split 438")
    write_hub(tmp_path, "rcb", split="validation")
    assert "official split 220" in load_split("rcb", "validation", f"hub:{tmp_path}").warnings[0]


def test_the_size_of_muserc_is_counted_in_answers_and_paragraphs(mini):
    answers, paragraphs = load_split("muserc", "validation", str(mini)).warnings
    assert answers.startswith("muserc validation has 4 answers, the official split 2235")
    assert paragraphs.startswith("muserc validation has 2 paragraphs, the official split 100")


def test_a_split_of_the_published_size_is_not_warned_about(tmp_path):
    row = official_lines("parus")[0]
    write_official(tmp_path, "parus", [row | {"idx": number} for number in range(100)], "validation")
    assert load_split("parus", "validation", str(tmp_path)).warnings == ()


def test_any_change_of_a_document_or_of_their_order_changes_the_fingerprint(tmp_path):
    lines = official_lines("parus")
    changed = [lines[0], lines[1] | {"label": 0}]
    prints = set()
    for number, version in enumerate((lines, lines[::-1], changed, lines[:1])):
        write_official(tmp_path / str(number), "parus", version)
        prints.add(load_split("parus", "train", str(tmp_path / str(number))).fingerprint)
    assert len(prints) == 4


def test_an_unknown_task_or_split_is_answered_with_the_nearest(mini):
    assert refusal("danet", "train", "mini").hint == "did you mean danetqa?"
    assert "did you mean rcb" in refusal("RCB", "train", "mini").hint
    assert "validation" in refusal("rcb", "val", "mini").hint


def test_an_unknown_source_is_answered_with_the_known_ones(mini, tmp_path):
    assert refusal("rcb", "train", "minni").hint.startswith("did you mean mini? ")
    assert refusal("rcb", "train", str(tmp_path / "mimi")).hint.startswith(f"did you mean {mini}? ")
    error = refusal("rcb", "train", "/nowhere/at/all")
    assert error.message == "no data source '/nowhere/at/all'"
    assert "the path of the unpacked official archive" in error.hint


@pytest.mark.parametrize("source", ["", "hub:", "hub:/nowhere/at/all"])
def test_an_empty_or_missing_path_is_refused(source):
    assert refusal("rcb", "train", source).message == f"no data source {source!r}"


def test_an_archive_that_is_not_unpacked_is_recognised(tmp_path):
    (tmp_path / "combined.zip").touch()
    error = refusal("rcb", "train", str(tmp_path / "combined.zip"))
    assert error.message.endswith("is a file")
    assert "unpack" in error.hint


def test_a_home_directory_is_expanded(mini, monkeypatch):
    monkeypatch.setenv("HOME", str(mini.parent))
    assert len(load_split("rcb", "train", "~/mini").documents) == 2


def test_a_split_cannot_be_changed(mini):
    loaded = load_split("rcb", "train", "mini")
    assert isinstance(loaded.documents, tuple)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.split = "test"
