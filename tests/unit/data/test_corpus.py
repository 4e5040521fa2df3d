from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.data.corpus import read_corpus, russian_share
from harness.errors import UserError


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_text_is_cut_at_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    lines = [f"Строка {number} " + "слово " * 20 + "конец" for number in range(200)]
    corpus = read_corpus(str(write(tmp_path / "corpus.txt", lines)))
    assert sorted(line for text in (*corpus.texts, *corpus.held_out) for line in text.split("\n")) == sorted(lines)
    assert max(map(len, corpus.texts)) <= 1000
    assert 0 < len(corpus.held_out) < len(corpus.texts) / 4
    assert not set(corpus.texts) & set(corpus.held_out)


def test_what_is_held_out_does_not_depend_on_what_stands_before_it(tmp_path: Path) -> None:
    rows = [{"text": f"Предложение номер {number}."} for number in range(300)]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(first, [json.dumps(row) for row in rows])
    write(second, [json.dumps(row) for row in [*rows[150:], *rows]])
    one, other = read_corpus(str(first)), read_corpus(str(second))
    assert set(one.held_out) == set(other.held_out)
    assert len(other.texts) + len(other.held_out) == 300  # each once
    assert one.fingerprint() != other.fingerprint()


def test_a_directory_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.txt", ["Первый файл."])
    write(tmp_path / "b.jsonl", [json.dumps({"text": "Второй файл."})])
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    corpus = read_corpus(str(tmp_path))
    assert {*corpus.texts, *corpus.held_out} == {"Первый файл.", "Второй файл."}


def test_train_texts_of_the_tasks_are_a_corpus() -> None:
    corpus = read_corpus("rsg", "mini")
    assert len(corpus.texts) > 200
    assert corpus.russian_share() > 0.95


def test_a_data_set_in_the_hubs_layout_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = [f"Текст {number}" for number in range(50)]
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "data" / "train-00000-of-00001.parquet")
    corpus = read_corpus(f"hub:{tmp_path}")
    assert sorted((*corpus.texts, *corpus.held_out)) == sorted(texts)


def test_letters_are_counted_and_nothing_else() -> None:
    assert russian_share(["да 123 …", "ab"]) == 0.5
    assert russian_share(["123"]) == 0


def test_bad_corpora_are_refused_with_what_to_do(tmp_path: Path) -> None:
    def message(name: object) -> str:
        with pytest.raises(UserError) as error:
            read_corpus(str(name))
        return str(error.value)

    write(tmp_path / "empty.txt", ["", "  "])
    (tmp_path / "cp1251.txt").write_bytes("Привет".encode("cp1251"))
    write(tmp_path / "rows.jsonl", [json.dumps({"body": "да"})])
    (tmp_path / "nothing").mkdir()
    assert "has no text" in message(tmp_path / "empty.txt")
    assert "iconv" in message(tmp_path / "cp1251.txt")
    assert 'no field "text"' in message(tmp_path / "rows.jsonl")
    assert "no corpus" in message(tmp_path / "missing")
    assert "has no .txt" in message(tmp_path / "nothing")
    assert "cannot read the data set" in message(f"hub:{tmp_path / 'nothing'}")
