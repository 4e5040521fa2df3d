from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records.run import (
    ForeignMetricRecord,
    ForeignTaskRecord,
    GroupRecord,
    MemoryRecord,
    MetricRecord,
    TimingRecord,
)
from harness.reports.leaderboard import build_leaderboard
from harness.reports.leaderboard_page import write_leaderboard
from harness.reports.published import published
from harness.tasks import RUSSIAN_SUPERGLUE
from tests.unit.run_records import MACHINE, MIB, NINE, endpoint_record, run_record, sha256, write_record

EARLY, LATE, LATEST = (f"2025-01-0{day}T10:00:00+00:00" for day in (1, 2, 3))
COLUMN = dict(
    zip(
        RUSSIAN_SUPERGLUE,
        ("LiDiRus", "RCB", "PARus", "MuSeRC", "TERRa", "RUSSE", "RWSD", "DaNetQA", "RuCoS"),
        strict=True,
    )
)
PROBABILITY = "Russian SuperGLUE: choices by log-probability"


@pytest.fixture
def add(tmp_path):
    """Writes a run under the results directory."""
    return lambda name, *figures, **changes: write_record(tmp_path / "runs" / name, run_record(*figures, **changes))


def board(results):
    """leaderboard.json, made anew."""
    write_leaderboard(results)
    return json.loads((results / "leaderboard.json").read_text(encoding="utf-8"))


def page(results):
    write_leaderboard(results)
    return (results / "leaderboard.md").read_text(encoding="utf-8")


def tables(text):
    """Heading -> rows of the Markdown table under it, a dict a row."""
    found = {}
    for section in text.split("\n## ")[1:]:
        lines = [line for line in section.splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
        if cells:
            found[section.splitlines()[0]] = [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]
    return found


def test_a_run_over_all_nine_tasks_has_their_mean_as_its_score(tmp_path, add):
    add("a")
    (row,) = board(tmp_path)["rows"]
    assert row["score"] == pytest.approx(0.5)
    assert row["score_stderr"] == pytest.approx(0.02 / 3)  # nine independent errors of 0.02, divided by nine
    assert row["score_interval"] == pytest.approx([0.5 - 1.96 * 0.02 / 3, 0.5 + 1.96 * 0.02 / 3], abs=1e-5)


def test_a_run_over_eight_tasks_has_a_mean_but_no_score(tmp_path, add):
    add("a", {task: 0.5 for task in RUSSIAN_SUPERGLUE if task != "rucos"})
    (row,) = board(tmp_path)["rows"]
    assert (row["score"], row["score_stderr"], row["score_interval"]) == (None, None, None)
    assert row["mean"] == pytest.approx(0.5)
    (cells,) = tables(page(tmp_path))[PROBABILITY]
    assert (cells["score"], cells["RuCoS"], cells["TERRa"]) == ("–", "–", "50.0")


def test_tasks_of_several_runs_of_the_same_kind_make_one_row_with_a_score(tmp_path, add):
    add("a", {task: NINE[task] for task in RUSSIAN_SUPERGLUE[:4]})
    add("b", {task: NINE[task] for task in RUSSIAN_SUPERGLUE[4:]}, date=LATE)
    (row,) = board(tmp_path)["rows"]
    assert row["score"] == pytest.approx(0.5)
    assert list(row["tasks"]) == list(RUSSIAN_SUPERGLUE)
    assert [run["directory"] for run in row["runs"]] == ["a", "b"]


def test_of_each_task_the_newest_run_counts_whatever_its_directory_is_called(tmp_path, add):
    add("z", {"terra": 0.5, "rcb": 0.4}, date=EARLY)
    add("m", {"terra": 0.7}, date=LATEST)
    add("a", {"terra": 0.6}, date=LATE)
    (row,) = board(tmp_path)["rows"]
    assert {name: (task["score"], task["run"]) for name, task in row["tasks"].items()} == {
        "rcb": (0.4, "z"),
        "terra": (0.7, "m"),
    }
    assert [run["directory"] for run in row["runs"]] == ["z", "m"]  # "a" gave nothing


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gemma-other"},
        {"weights": "4-bit, group size 32"},
        {"backend": "mlx-bf16"},
        {"execution": "mlx"},
        {"device": "mps"},
        {"dtype": "float32"},
        {"source": "hub"},
        {"split": "train"},
        {"limit": 5},
        {"chat_template": True},
        {"task_changes": {"num_fewshot": 2}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_runs_that_differ_in_what_decides_a_figure_are_rows_of_their_own(tmp_path, add, other):
    add("a", {"terra": 0.5})
    add("b", {"rcb": 0.5}, **other)
    assert len(board(tmp_path)["rows"]) == 2


def test_generated_answers_never_mix_with_choices_even_from_one_run(tmp_path, add):
    add("a", {**{task: 0.5 for task in RUSSIAN_SUPERGLUE if task != "terra"}, "gen_terra": 0.9})
    rows = board(tmp_path)["rows"]
    assert [(row["group"], len(row["tasks"]), row["score"]) for row in rows] == [("rsg", 8, None), ("rsg_gen", 1, None)]
    # Its seconds cannot be told apart.
    assert [row["records_per_second"] for row in rows] == [None, None]
    found = tables(page(tmp_path))
    assert found["Russian SuperGLUE: generated answers"][0]["TERRa"] == "90.0"
    assert found[PROBABILITY][0]["TERRa"] == "–"


def test_the_mini_set_stands_apart_under_a_heading_that_says_what_it_is(tmp_path, add):
    add("a")
    add("b", {"terra": 0.9}, source="mini")
    text = page(tmp_path)
    found = tables(text)
    assert [row["TERRa"] for row in found[PROBABILITY]] == ["50.0"]
    assert [row["TERRa"] for row in found["Mini set: choices by log-probability"]] == ["90.0"]
    assert "The mini set is this project's own and small" in text


def test_models_whose_trained_heads_answer_are_marked(tmp_path, add):
    add("a", model="plain")
    add("b", {"terra": 0.9}, model="trained", task_changes={"head": "classification"})
    text = page(tmp_path)
    assert {row["model"] for row in tables(text)[PROBABILITY]} == {"plain", "trained †"}
    assert "†: trained on these tasks" in text
    assert board(tmp_path)["rows"][1]["tasks"]["terra"]["head"] == "classification"


def test_rows_are_sorted_by_score_then_by_number_of_tasks_then_by_mean(tmp_path, add):
    add("a", {"terra": 0.9}, model="one-good")
    add("b", {"terra": 0.8}, model="one-bad")
    add("c", {"terra": 0.1, "rcb": 0.1}, model="two")
    add("d", model="nine")
    add("e", {task: figure + 0.1 for task, figure in NINE.items()}, model="nine-better")
    models = [row["model"]["name"] for row in board(tmp_path)["rows"]]
    assert models == ["nine-better", "nine", "two", "one-good", "one-bad"]


def test_hidden_answers_are_shown_as_such_and_not_counted(tmp_path, add):
    add("a", {**dict.fromkeys(RUSSIAN_SUPERGLUE), "lidirus": 0.2}, split="test")
    (row,) = board(tmp_path)["rows"]
    assert (row["score"], row["mean"]) == (None, 0.2)
    (cells,) = tables(page(tmp_path))[PROBABILITY]
    assert (cells["LiDiRus"], cells["TERRa"], cells["score"]) == ("20.0", "?", "–")


def test_mlx_weights_computed_by_torch_are_marked_and_explained(tmp_path, add):
    add("a", {"terra": 0.5}, backend="mlx-q4", execution="torch", weights="4-bit, group size 64")
    add("b", {"terra": 0.4}, backend="mlx-q4", execution="mlx", device="metal", weights="4-bit, group size 64")
    text = page(tmp_path)
    by_torch, by_mlx = tables(text)[PROBABILITY]
    assert (by_torch["executed by"], by_torch["records/s"], by_torch["peak memory, MiB"]) == (
        "torch, cpu, bfloat16",
        "1.00*",
        "900*",
    )
    assert (by_mlx["executed by"], by_mlx["records/s"], by_mlx["peak memory, MiB"]) == (
        "mlx, metal, bfloat16",
        "1.00",
        "900",
    )
    assert "executed by torch: the quality is real, the speed and the memory are not MLX's" in text
    assert [row["is_mlx_by_torch"] for row in board(tmp_path)["rows"]] == [True, False]


def test_torch_backends_need_no_mark(tmp_path, add):
    add("a", {"terra": 0.5})
    assert "executed by torch:" not in page(tmp_path)


def test_the_speed_of_merged_runs_is_all_documents_over_all_seconds(tmp_path, add):
    add("a", {"terra": 0.5}, seconds=10.0)  # 10 documents
    add("b", {"rcb": 0.5, "parus": 0.5}, seconds=50.0, date=LATE)  # 20 documents
    (row,) = board(tmp_path)["rows"]
    assert row["records_per_second"] == pytest.approx(30 / 60)


def test_speeds_of_different_machines_are_not_merged_and_the_machines_are_numbered(tmp_path, add):
    add("a", {"terra": 0.5}, machine={**MACHINE, "cores": 4})
    add("b", {"rcb": 0.5}, date=LATE)
    text = page(tmp_path)
    (cells,) = tables(text)[PROBABILITY]
    assert (cells["records/s"], cells["executed by"]) == ("–", "torch, cpu, bfloat16, machine 1 and 2")
    assert "- Machine 1: Test Processor, 2 cores, 8 GiB, Linux x86_64." in text
    assert "- Machine 2: Test Processor, 4 cores, 8 GiB, Linux x86_64." in text


def test_memory_that_was_not_measured_is_a_dash_and_the_largest_of_merged_runs_counts(tmp_path, add):
    unmeasured = MemoryRecord(peak_bytes=100 * MIB, single_bytes=0, of="process")
    add("a", {"gen_terra": 0.5}, memory=unmeasured)
    add("b", {"terra": 0.5}, memory=unmeasured)
    add("c", {"rcb": 0.5}, memory=MemoryRecord(peak_bytes=70 * MIB, single_bytes=60 * MIB, of="process"))
    rows = {row["group"]: (row["single_bytes"], row["peak_bytes"]) for row in board(tmp_path)["rows"]}
    assert rows == {"rsg": (60 * MIB, 100 * MIB), "rsg_gen": (None, 100 * MIB)}
    (cells,) = tables(page(tmp_path))["Russian SuperGLUE: generated answers"]
    assert cells["memory at batch size 1, MiB"] == "–"


def test_a_resumed_run_without_seconds_has_no_speed(tmp_path, add):
    nothing = TimingRecord(wall_seconds=1.0, load_seconds=1.0, scoring_seconds=0.0, records_per_second=0.0)
    add("a", {"terra": 0.5}, timing=nothing)
    (row,) = board(tmp_path)["rows"]
    assert row["records_per_second"] is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot read"),
        ("", "cannot read"),
        ("[]", "no schema version"),
        ('{"schema_version": 0}', "schema version 0"),
        ('{"schema_version": 1, "score": "high"}', "is damaged: score"),
    ],
)
def test_a_damaged_or_old_record_is_left_out_with_one_line_that_names_it(tmp_path, add, caplog, content, reason):
    add("good", {"terra": 0.5})
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "results.json").write_text(content)
    assert len(board(tmp_path)["rows"]) == 1
    (logged,) = caplog.records
    assert logged.levelname == "WARNING"
    assert "broken is left out:" in logged.getMessage()
    assert reason in logged.getMessage()


def test_a_foreign_task_in_a_record_is_left_out_with_a_warning(tmp_path, add, caplog):
    add("a", {"terra": 0.5, "winogrande": 0.9})
    (row,) = board(tmp_path)["rows"]
    assert list(row["tasks"]) == ["terra"]
    assert "a: winogrande is not a task of Russian SuperGLUE" in caplog.text


def test_damaged_latency_and_divergence_records_stop_nothing(tmp_path, add, caplog):
    add("a", {"terra": 0.5})
    for path in ("latency/x.json", "divergence/x/divergence.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("{", encoding="utf-8")
    assert len(board(tmp_path)["rows"]) == 1
    assert len(caplog.records) == 2


def foreign(value, main="acc", **changes):
    """A task of lm-eval's."""
    metric = ForeignMetricRecord(value=value, stderr=0.01, aggregation="mean", higher_is_better=main == "acc")
    fields = {
        "main": main, "metrics": {main: metric}, "documents": 100, "output_type": "multiple_choice", "version": "1",
        "prompt_sha256": "p", "data_sha256": "d", "num_fewshot": 0, "truncated": 0, **changes,
    }  # fmt: skip
    return ForeignTaskRecord(**fields)


def test_lm_evals_tasks_have_a_table_a_group_and_one_of_their_own(tmp_path, add):
    pair = {"one": foreign(0.25), "two": foreign(0.75)}
    group = GroupRecord(tasks=("one", "two"), metrics={"acc": MetricRecord(value=0.5, stderr=0.007)})
    text = {"wikitext": foreign(18.5, "word_perplexity")}
    add("a", {}, foreign={**pair, **text}, groups={"both": group}, date=EARLY)
    add("b", {}, foreign=pair, groups={"both": group}, date=EARLY, model="other")
    add("c", {}, foreign={"wikitext": foreign(17.5, "word_perplexity")}, date=LATE)  # newer: replaces the first run's
    add("d", {}, foreign={"wikitext": foreign(30.0, "word_perplexity", num_fewshot=2)}, date=LATE)
    found = tables(page(tmp_path))
    assert [row["acc"] for row in found["lm-eval's tasks: both"]] == ["0.5 ± 0.007"] * 2
    assert found["lm-eval's tasks: both"][0]["one, acc ↑"] == "0.25 ± 0.01"
    alone = found["lm-eval's tasks: single tasks"]
    assert [(row["wikitext, word_perplexity ↓"], row["asked"]) for row in alone] == [
        ("17.5 ± 0.01", "all documents"),
        ("30 ± 0.01", "2 examples shown"),
    ]
    assert board(tmp_path)["rows"] == []


def test_a_group_shows_its_own_run_and_hides_nobody_who_asked_a_member_alone(tmp_path, add):
    group = GroupRecord(tasks=("one", "two"), metrics={"acc": MetricRecord(value=0.5, stderr=0.007)})
    add("a", {}, foreign={"one": foreign(0.25), "two": foreign(0.75)}, groups={"both": group}, date=EARLY)
    add("b", {}, foreign={"one": foreign(0.95)}, date=LATE)
    add("c", {}, foreign={"one": foreign(0.9)}, date=LATE, model="other")
    found = tables(page(tmp_path))
    (both,) = found["lm-eval's tasks: both"]
    assert (both["acc"], both["one, acc ↑"], both["two, acc ↑"]) == ("0.5 ± 0.007", "0.25 ± 0.01", "0.75 ± 0.01")
    assert [row["one, acc ↑"] for row in found["lm-eval's tasks: single tasks"]] == ["0.95 ± 0.01", "0.9 ± 0.01"]


def test_tasks_with_numbers_of_examples_of_their_own_share_a_row(tmp_path, add):
    add("a", {}, foreign={"gsm8k": foreign(0.1, num_fewshot=5), "hellaswag": foreign(0.2)}, date=EARLY)
    add("b", {}, foreign={"gsm8k": foreign(0.3, num_fewshot=8), "hellaswag": foreign(0.2)}, date=LATE)
    add("c", {}, foreign={"hellaswag": foreign(0.4)}, date=LATE)
    rows = tables(page(tmp_path))["lm-eval's tasks: single tasks"]
    assert [(row["gsm8k, acc ↑"], row["hellaswag, acc ↑"], row["asked"]) for row in rows] == [
        ("0.1 ± 0.01", "0.4 ± 0.01", "examples shown: gsm8k 5"),
        ("0.3 ± 0.01", "0.2 ± 0.01", "examples shown: gsm8k 8"),
    ]


def test_a_system_instruction_makes_a_row_of_its_own(tmp_path, add):
    add("a", {"terra": 0.5}, date=EARLY)
    add("b", {"terra": 0.9}, date=LATE, system_instruction="Отвечай кратко.")
    assert [row["system_instruction"] for row in board(tmp_path)["rows"]] == ["Отвечай кратко.", None]
    assert "official, validation, system instruction" in page(tmp_path)


def test_a_run_that_asked_lm_evals_tasks_too_has_no_speed(tmp_path, add):
    add("a", {"terra": 0.5}, foreign={"one": foreign(0.25)})
    (row,) = board(tmp_path)["rows"]
    assert row["records_per_second"] is None


def test_an_unfinished_run_is_no_concern_of_the_leaderboard(tmp_path, add, capsys):
    add("a", {"terra": 0.5})
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "unfinished" / "progress.sqlite").touch()
    assert len(board(tmp_path)["rows"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("made", [(), ("runs",), ("runs/empty",)])
def test_without_runs_the_user_is_told_how_to_make_one(tmp_path, made):
    for directory in made:
        (tmp_path / directory).mkdir(parents=True)
    with pytest.raises(UserError, match="holds no finished run") as caught:
        write_leaderboard(tmp_path)
    assert "rsg-harness run" in caught.value.hint
    assert not (tmp_path / "leaderboard.md").exists()


def test_with_nothing_but_damaged_records_no_leaderboard_is_written_over_the_old_one(tmp_path):
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "results.json").write_text("{")
    (tmp_path / "leaderboard.md").write_text("old")
    with pytest.raises(UserError, match="none of the 1 records"):
        write_leaderboard(tmp_path)
    assert (tmp_path / "leaderboard.md").read_text() == "old"


def test_the_same_records_give_the_same_bytes(tmp_path):
    names = ["a", "b", "c", "d"]
    records = [run_record({"terra": 0.5}, model=f"gemma-{name}") for name in names]  # all equal in rank
    written = []
    for place, order in (("one", [0, 1, 2, 3]), ("two", [3, 1, 0, 2])):
        for number in order:
            write_record(tmp_path / place / "runs" / names[number], records[number])
        written.append([path.read_bytes() for path in write_leaderboard(tmp_path / place)])
        written.append([path.read_bytes() for path in write_leaderboard(tmp_path / place)])
    assert all(files == written[0] for files in written)


def test_the_markdown_holds_the_numbers_of_the_json(tmp_path, add):
    add("a", limit=200, model="gemma|pipe")
    add("b", {"terra": 0.123, "rcb": 0.456}, model="gemma-two", task_changes={"num_fewshot": 2}, chat_template=True)
    rows = board(tmp_path)["rows"]
    cells = tables(page(tmp_path))[PROBABILITY]
    assert len(cells) == len(rows) == 2
    for row, shown in zip(rows, cells, strict=True):
        for task in RUSSIAN_SUPERGLUE:
            expected = f"{100 * row['tasks'][task]['score']:.1f}" if task in row["tasks"] else "–"
            assert shown[COLUMN[task]] == expected
        assert shown["model"].replace("\\|", "|") == row["model"]["name"]
        assert float(shown["records/s"]) == pytest.approx(row["records_per_second"], abs=0.005)
        assert float(shown["memory at batch size 1, MiB"]) == row["single_bytes"] / MIB
        assert float(shown["peak memory, MiB"]) == row["peak_bytes"] / MIB
        assert float(shown["weights, MiB"]) == row["model"]["weights_bytes"] / MIB
    assert [row["score"] for row in cells] == ["50.0 ± 0.7", "–"]
    assert [row["data"] for row in cells] == [
        "official, validation, at most 200 a task",
        "official, validation, 2 examples shown, chat template",
    ]


def test_models_of_one_name_are_told_apart_by_their_hash(tmp_path, add):
    other = run_record(model="gemma").model.model_copy(update={"sha256": sha256("other")})
    write_record(tmp_path / "runs" / "b", run_record({"terra": 0.4}).model_copy(update={"model": other}))
    add("a", {"terra": 0.5}, model="gemma")
    shown = [row["model"] for row in tables(page(tmp_path))[PROBABILITY]]
    assert shown == [f"gemma ({sha256('gemma')[:8]})", f"gemma ({sha256('other')[:8]})"]


def test_models_behind_servers_have_rows_without_what_only_the_servers_know(tmp_path, add):
    add("here", {"terra": 0.9}, model="large")
    for name, address, figure in (("a", "http://a/v1", 0.8), ("b", "http://b/v1", 0.7), ("c", "http://a/v1", 0.6)):
        task = "rcb" if name == "c" else "terra"
        foreign_tasks = {"own": foreign(0.5)} if name == "b" else {}
        record = endpoint_record(address, {task: figure}, machine={**MACHINE, "cores": 64}, foreign=foreign_tasks)
        write_record(tmp_path / "runs" / name, record)
    found = tables(page(tmp_path))
    rows = {row["model"]: row for row in found[PROBABILITY]}
    # The two runs against one server make one row.
    assert set(rows) == {f"large ({sha256('large')[:8]})", "large (http://a/v1)", "large (http://b/v1)"}
    row = rows["large (http://a/v1)"]
    assert (row["TERRa"], row["RCB"]) == ("80.0", "60.0")
    assert (row["backend (weights)"], row["executed by"]) == ("endpoint", "endpoint http://a/v1")
    assert [row[column] for column in row if "MiB" in column] == ["–", "–", "–"]
    [other] = found["lm-eval's tasks: single tasks"]
    assert (other["backend (weights)"], other["executed by"]) == ("endpoint", "endpoint http://b/v1")
    # The machine that asked computed nothing.
    assert "64 cores" not in page(tmp_path)
    json_rows = {row["name"]: row for row in board(tmp_path)["rows"]}
    assert json_rows["large (http://a/v1)"]["model"]["weights_bytes"] is None
    assert json_rows["large (http://a/v1)"]["peak_bytes"] is None


def test_rows_over_other_documents_or_with_other_prompts_are_pointed_out(tmp_path, add):
    add("a", {"terra": 0.5, "rcb": 0.5}, model="one")
    add("b", {"terra": 0.4}, model="two", task_changes={"prompt": "then", "data_sha256": sha256("other data")})
    text = page(tmp_path)
    assert "Prompts: RCB statement; TERRa statement, then." in text
    assert "The rows' official validation documents differ in TERRa: do not compare these." in text


def test_rows_over_the_same_documents_carry_no_such_warning(tmp_path, add):
    add("a", model="one")
    add("b", model="two", limit=5)
    assert "documents differ" not in page(tmp_path)


def test_the_published_figures_stand_in_a_table_of_their_own_with_their_source(tmp_path, add):
    add("a")
    text = page(tmp_path)
    rows = {row["model"]: row for row in tables(text)["Published figures"]}
    assert rows["RuBERT plain"]["MuSeRC"] == "51.7"  # the mean of 71.1 and 32.4
    assert rows["human benchmark"]["score"] == "81.1"
    assert rows["human benchmark"]["measured on"] == "test"
    assert rows["gemma-3-1b-it multitask"]["measured on"] == "its own validation protocol"
    assert "Not to be compared row for row" in text
    assert all(source in text for source in ("russiansuperglue.com", "arXiv:2010.15925", "arXiv:2104.14314"))
    reference = {row["name"]: row for row in board(tmp_path)["reference"]}
    assert reference["RuBERT plain"]["tasks"]["muserc"] == {"value": 0.5175, "parts": {"f1a": 0.711, "em": 0.324}}
    assert reference["gemma-3-1b-it multitask"]["tasks"]["muserc"] == {"value": 0.58, "parts": {}}


@pytest.mark.parametrize("row", published(), ids=lambda row: row.name)
def test_published_scores_agree_with_their_own_figures(row):
    mean = sum(row.task_score(task) for task in RUSSIAN_SUPERGLUE) / len(RUSSIAN_SUPERGLUE)
    assert mean == pytest.approx(row.score, abs=0.0011)


def test_the_json_says_which_schema_it_has_and_keeps_what_each_run_cost(tmp_path, add):
    add("a", {"terra": 0.5}, git_commit="abc")
    found = board(tmp_path)
    assert found["schema_version"] == 1
    (run,) = found["rows"][0]["runs"]
    assert (run["directory"], run["git_commit"], run["machine"], run["documents"]) == ("a", "abc", MACHINE, 10)
    assert run["timing"]["scoring_seconds"] == 10.0
    task = found["rows"][0]["tasks"]["terra"]
    assert (task["score"], task["stderr"], task["documents"]) == (0.5, 0.02, 10)


def test_a_split_of_another_size_than_the_official_one_is_pointed_out_once(tmp_path, add):
    warning = "rucos validation has 5 examples, the official split 7577"
    add("a", {"rucos": 0.5}, model="one", task_changes={"warnings": (warning,)})
    add("b", {"rucos": 0.4}, model="two", task_changes={"warnings": (warning,)})
    assert page(tmp_path).count(f"Beware: {warning}.") == 1


def test_every_bar_of_the_kept_records_has_a_label_of_its_own():
    """Bars of one label would be drawn as one, their figures added up."""
    from harness.reports.html_page import score_rows

    results = Path(__file__).parents[2] / "results"
    bars = [(bar["data"], bar["task"], bar["label"]) for bar in score_rows(build_leaderboard(results).rows)]
    assert len(bars) > 9
    assert len(set(bars)) == len(bars)
