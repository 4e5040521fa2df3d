from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import pytest

from harness.errors import UserError
from harness.records.run import SAMPLES
from harness.reports.submission import write_submission
from harness.tasks import RUSSIAN_SUPERGLUE
from tests.unit.run_records import run_record, samples_of, write_record

# Task -> idx and prediction as samples.jsonl holds them, out of order.
ANSWERS: dict[str, list[tuple[Any, Any]]] = {
    "lidirus": [(1, "not_entailment"), (0, "entailment")],
    "rcb": [(2, "neutral"), (10, "contradiction"), (1, "entailment")],
    "parus": [(1, "choice2"), (0, "choice1")],
    "muserc": [
        ({"paragraph": 1, "question": 2, "answer": 5}, "1"),
        ({"paragraph": 0, "question": 1, "answer": 3}, "1"),
        ({"paragraph": 0, "question": 0, "answer": 1}, "0"),
        ({"paragraph": 0, "question": 0, "answer": 0}, "1"),
    ],
    "terra": [(1, "entailment"), (0, "not_entailment")],
    "russe": [(0, "true"), (1, "false")],
    "rwsd": [(0, "True"), (1, "False")],
    "danetqa": [(0, "false"), (1, "true")],
    "rucos": [({"passage": 4, "query": 9}, "Германии"), ({"passage": 7, "query": 3}, 'театр "Сова"')],
}

# What the archive must hold, written out by hand.
EXPECTED = {
    "LiDiRus.jsonl": '{"idx": 0, "label": "entailment"}\n{"idx": 1, "label": "not_entailment"}\n',
    "RCB.jsonl": (
        '{"idx": 1, "label": "entailment"}\n{"idx": 2, "label": "neutral"}\n{"idx": 10, "label": "contradiction"}\n'
    ),
    "PARus.jsonl": '{"idx": 0, "label": 0}\n{"idx": 1, "label": 1}\n',
    "MuSeRC.jsonl": (
        '{"idx": 0, "passage": {"questions": ['
        '{"idx": 0, "answers": [{"idx": 0, "label": 1}, {"idx": 1, "label": 0}]}, '
        '{"idx": 1, "answers": [{"idx": 3, "label": 1}]}]}}\n'
        '{"idx": 1, "passage": {"questions": [{"idx": 2, "answers": [{"idx": 5, "label": 1}]}]}}\n'
    ),
    "TERRa.jsonl": '{"idx": 0, "label": "not_entailment"}\n{"idx": 1, "label": "entailment"}\n',
    "RUSSE.jsonl": '{"idx": 0, "label": "true"}\n{"idx": 1, "label": "false"}\n',
    "RWSD.jsonl": '{"idx": 0, "label": "True"}\n{"idx": 1, "label": "False"}\n',
    "DaNetQA.jsonl": '{"idx": 0, "label": "false"}\n{"idx": 1, "label": "true"}\n',
    "RuCoS.jsonl": '{"idx": 3, "label": "театр \\"Сова\\""}\n{"idx": 9, "label": "Германии"}\n',
}
OFFICIAL_SIZES = {"lidirus": 1104, "rcb": 438, "parus": 500, "terra": 3198, "russe": 18892, "rwsd": 154, "danetqa": 805}


@pytest.fixture
def add(tmp_path):
    """Writes a run with the answers of some tasks; `rename` records a task under another name."""

    def write(name, tasks=RUSSIAN_SUPERGLUE, *, answers=ANSWERS, rename=None, **changes):
        names = {task: (rename or {}).get(task, task) for task in tasks}
        record = run_record(dict.fromkeys(names.values()), **{"split": "test", **changes})
        counted = {
            names[task]: record.tasks[names[task]].model_copy(
                update={"examples": len(answers[task]), "documents": len({_document(idx) for idx, _ in answers[task]})}
            )
            for task in tasks
        }
        samples = [sample for task in tasks for sample in samples_of(names[task], answers[task])]
        return write_record(tmp_path / name, record.model_copy(update={"tasks": counted}), samples)

    return write


def _document(idx):
    return idx["paragraph"] if isinstance(idx, dict) and "paragraph" in idx else str(idx)


@pytest.fixture
def output(tmp_path):
    return tmp_path / "submission.zip"


def contents(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode("utf-8") for name in archive.namelist()}


def refused(runs, output):
    """The error; nothing may have been written, nor left behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError) as caught:
        write_submission(runs, output)
    assert caught.value.hint
    assert sorted(output.parent.iterdir()) == before
    return caught.value


def test_the_archive_holds_nothing_but_the_nine_files_at_its_top(add, output):
    write_submission([add("a")], output)
    assert list(contents(output)) == [
        "DaNetQA.jsonl",
        "LiDiRus.jsonl",
        "MuSeRC.jsonl",
        "PARus.jsonl",
        "RCB.jsonl",
        "RUSSE.jsonl",
        "RWSD.jsonl",
        "RuCoS.jsonl",
        "TERRa.jsonl",
    ]


@pytest.mark.parametrize("name", EXPECTED)
def test_each_file_reads_as_the_official_scorer_wants_it(add, output, name):
    write_submission([add("a")], output)
    assert contents(output)[name] == EXPECTED[name]


def test_the_lines_for_the_user_count_every_file_and_name_the_archive(add, output):
    lines = write_submission([add("a")], output)
    assert "RCB.jsonl: 3 lines" in lines
    assert "MuSeRC.jsonl: 2 lines" in lines
    assert lines[-1] == f"archive: {output}"


def test_runs_may_share_the_tasks_between_them(add, output):
    runs = [add("a", RUSSIAN_SUPERGLUE[:4]), add("b", RUSSIAN_SUPERGLUE[4:6]), add("c", RUSSIAN_SUPERGLUE[6:])]
    write_submission(runs, output)
    assert contents(output) == EXPECTED


def test_generated_answers_count_for_their_task(add, output):
    write_submission([add("a", rename={"terra": "gen_terra", "rucos": "gen_rucos"})], output)
    assert contents(output) == EXPECTED


def test_lidirus_may_come_from_a_run_over_the_validation_split(add, output):
    runs = [
        add("a", [task for task in RUSSIAN_SUPERGLUE if task != "lidirus"]),
        add("b", ["lidirus"], split="validation"),
    ]
    write_submission(runs, output)
    assert contents(output) == EXPECTED


def test_counts_that_are_not_the_official_ones_are_warned_of(add, output):
    lines = write_submission([add("a")], output)
    assert "warning: TERRa has 2 answers, the official test split 3198: the site may refuse it" in lines
    assert "warning: MuSeRC has 4 answers, the official test split 7614: the site may refuse it" in lines
    assert "warning: MuSeRC has 2 paragraphs, the official test split 322: the site may refuse it" in lines


def test_the_official_counts_pass_without_a_warning(add, output):
    full: dict[str, list[tuple[Any, Any]]] = {
        task: [(idx, ANSWERS[task][0][1]) for idx in range(size)] for task, size in OFFICIAL_SIZES.items()
    }
    full["muserc"] = [({"paragraph": n % 322, "question": n % 322, "answer": n}, "0") for n in range(7614)]
    full["rucos"] = [({"passage": n // 2, "query": n}, "Тверь") for n in range(7257)]
    lines = write_submission([add("a", answers=full)], output)
    assert not [line for line in lines if line.startswith("warning")]
    assert {"RUSSE.jsonl: 18892 lines", "MuSeRC.jsonl: 322 lines", "RuCoS.jsonl: 7257 lines"} <= set(lines)


def test_answers_of_several_systems_are_warned_of(add, output):
    lines = write_submission(
        [add("a", RUSSIAN_SUPERGLUE[:4]), add("b", RUSSIAN_SUPERGLUE[4:], model="gemma-other")], output
    )
    assert "warning: the answers come from 2 systems: gemma-other on torch-cpu, gemma-tiny on torch-cpu" in lines


def test_the_same_answers_give_the_same_bytes(add, output, tmp_path):
    write_submission([add("a")], output)
    write_submission([add("b", RUSSIAN_SUPERGLUE[:5]), add("c", RUSSIAN_SUPERGLUE[5:])], tmp_path / "again.zip")
    assert output.read_bytes() == (tmp_path / "again.zip").read_bytes()


def test_a_run_over_another_split_is_refused_with_the_command_to_run(add, output):
    error = refused([add("a", ["terra", "lidirus"], split="validation")], output)
    assert "ran terra over the validation split" in error.message
    assert "--split test --tasks terra" in error.hint


def test_a_run_over_the_mini_set_is_refused_even_for_lidirus(add, output):
    assert "mini set" in refused([add("a", ["lidirus"], source="mini")], output).message


def test_a_limited_run_is_refused(add, output):
    assert "limited to 200 documents" in refused([add("a", limit=200)], output).message


def test_missing_tasks_are_named_with_the_command_that_runs_them(add, output):
    error = refused([add("a", [task for task in RUSSIAN_SUPERGLUE if task not in ("rcb", "rucos")])], output)
    assert "rcb, rucos" in error.message
    assert "--split test --tasks rcb,rucos" in error.hint


def test_a_task_in_two_runs_is_refused_with_both_named(add, output):
    error = refused([add("a"), add("b", ["terra"])], output)
    assert "terra is there twice" in error.message
    assert "/a" in error.message
    assert "/b" in error.message


def test_a_task_both_chosen_and_generated_is_there_twice(add, output):
    error = refused([add("a"), add("b", ["terra"], rename={"terra": "gen_terra"})], output)
    assert "terra is there twice" in error.message
    assert "gen_terra" in error.message


def test_the_same_run_named_twice_is_refused(add, output):
    run = add("a")
    assert "twice" in refused([run, run], output).message


def test_unreadable_answers_are_counted_and_never_filled_in(add, output):
    answers = {**ANSWERS, "terra": [(0, None), (1, None), (2, "entailment")], "rcb": [(0, None)]}
    error = refused([add("a", answers=answers, rename={"terra": "gen_terra", "rcb": "gen_rcb"})], output)
    assert "gen_rcb 1, gen_terra 2" in error.message
    assert "--tasks rcb,terra" in error.hint


@pytest.mark.parametrize(
    ("task", "answers", "reason"),
    [
        ("terra", [(0, "entailment"), (0, "entailment")], "idx 0 is answered twice"),
        ("terra", [(0, "yes")], "'yes' is no label"),
        ("terra", [("0", "entailment")], "idx '0' is no whole number"),
        ("parus", [(0, 1)], "1 is no label"),
        ("rucos", [({"passage": 0, "query": 0}, "")], "'' is no label"),
        ("rucos", [(3, "Тверь")], "idx 3 has no query"),
        ("rucos", [({"passage": 0, "query": 5}, "а"), ({"passage": 1, "query": 5}, "б")], "idx 5 is answered twice"),
        ("muserc", [({"paragraph": 0, "question": 0}, "1")], "idx None is no whole number"),
        ("muserc", [({"paragraph": 0, "question": 0, "answer": 0}, "1")] * 2, "idx 0 is answered twice"),
    ],
)
def test_samples_that_no_run_writes_are_refused_with_their_fault(add, output, task, answers, reason):
    error = refused([add("a", answers={**ANSWERS, task: answers})], output)
    assert reason in error.message
    assert task in error.message


def test_samples_cut_short_are_refused(add, output):
    run = add("a")
    lines = (run / SAMPLES).read_text(encoding="utf-8").splitlines(keepends=True)
    (run / SAMPLES).write_text("".join(lines[:-1]), encoding="utf-8")
    assert "1 samples of rucos, and its record counts 2" in refused([run], output).message


def test_samples_of_a_task_that_the_record_lacks_are_refused(add, output):
    run = add("a", ["terra"])
    with (run / SAMPLES).open("a", encoding="utf-8") as file:
        file.write(samples_of("rcb", [(0, "neutral")])[0].model_dump_json() + "\n")
    assert "samples of rcb, which its record lacks" in refused([run], output).message


def test_a_directory_without_a_run_is_refused(tmp_path, output):
    (tmp_path / "empty").mkdir()
    assert "holds no results.json" in refused([tmp_path / "empty"], output).message


def test_an_older_archive_is_replaced_whole(add, output):
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("old.txt", "old")
    write_submission([add("a")], output)
    assert contents(output) == EXPECTED


def test_an_older_archive_stays_as_it_was_when_the_new_one_fails(add, output):
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("old.txt", "old")
    refused([add("a", ["terra"])], output)
    assert contents(output) == {"old.txt": "old"}


def test_a_failed_write_keeps_the_older_archive_and_leaves_nothing_behind(add, output, monkeypatch):
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("old.txt", "old")
    run = add("a")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    assert "No space left on device" in refused([run], output).message
    assert contents(output) == {"old.txt": "old"}


def test_another_file_is_never_overwritten(add, tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("years of work")
    assert "is no zip archive" in refused([add("a")], thesis).message
    assert thesis.read_text() == "years of work"


def test_a_directory_or_a_missing_directory_is_no_place_for_the_archive(add, tmp_path):
    run = add("a")
    (tmp_path / "directory").mkdir()
    assert "is a directory" in refused([run], tmp_path / "directory").message
    with pytest.raises(UserError, match="no directory"):
        write_submission([run], tmp_path / "nowhere" / "submission.zip")


def test_every_line_is_json_by_itself_with_letters_kept_readable(add, output):
    write_submission([add("a")], output)
    for text in contents(output).values():
        assert all(isinstance(json.loads(line)["idx"], int) for line in text.splitlines())
    assert "Германии" in contents(output)["RuCoS.jsonl"]
