"""The task files: lm-eval loads them, every prompt renders every document cleanly, mistakes are named."""

from __future__ import annotations

import functools
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from harness.data.sampling import fewshot_pool
from harness.errors import UserError
from harness.tasks import RUSSIAN_SUPERGLUE, get_task
from harness.tasks.prompts import GROUPS, TASK_DIR, ChosenTask, TaskFile, choose, task_files
from harness.tasks.rendering import load_tasks
from task_configs.functions import (
    FEWSHOT_SEED,
    FixedShots,
    load_dataset,
    rucos_passage,
    rucos_target,
)

FILES = task_files()
PROMPTS = [(name, prompt) for name, file in FILES.items() for prompt in file.prompts]
MARKS = ("{{", "}}", "{%", "%}", "@placeholder", "@highlight", "@header", "None", "undefined")


@functools.cache
def manager() -> TaskManager:
    return TaskManager(
        include_path=[str(TASK_DIR / group) for group in GROUPS], include_defaults=False, metadata={"data": "mini"}
    )


def loaded(name: str, prompt: str, num_fewshot: int = 0, seed: int = FEWSHOT_SEED) -> Any:
    """lm-eval's task with the prompt, as a run loads it."""
    chosen = ChosenTask(FILES[name], prompt)
    (task,) = load_tasks([chosen], data="mini", split="validation", seed=seed, num_fewshot=num_fewshot).values()
    return task


@functools.cache
def requests(name: str, prompt: str, num_fewshot: int = 0, seed: int = FEWSHOT_SEED) -> list[tuple[Any, str, Any]]:
    """(document, context, continuation or generation settings) of every request over the mini documents."""
    task = loaded(name, prompt, num_fewshot, seed)
    task.build_all_requests(rank=0, world_size=1)
    return [(instance.doc, *instance.args) for instance in task.instances]


def contexts(name: str, prompt: str, num_fewshot: int = 0, seed: int = FEWSHOT_SEED) -> list[str]:
    return list(dict.fromkeys(context for _, context, _ in requests(name, prompt, num_fewshot, seed)))


def has_gen_prefix(file: TaskFile, prompt: str) -> bool:
    return bool(file.config["metadata"]["prompts"][prompt].get("gen_prefix"))


# --- loading ----------------------------------------------------------------------------------------------------------


def test_there_are_two_files_for_each_of_the_nine_tasks():
    assert len(FILES) == 18
    for group in GROUPS:
        assert [file.task for file in FILES.values() if file.group == group] == list(RUSSIAN_SUPERGLUE)


@pytest.mark.parametrize("name", FILES)
def test_plain_lm_eval_loads_a_task_by_its_full_name(name):
    full_name = FILES[name].full_name
    task = manager().load([full_name])["tasks"][full_name]
    assert len(task.eval_docs) >= 24
    assert task.config.metadata["data"] == "mini"
    expected = "generate_until" if FILES[name].group == "rsg_gen" else "multiple_choice"
    assert expected == task.OUTPUT_TYPE


@pytest.mark.parametrize("name", FILES)
def test_a_task_has_the_metrics_of_its_data_and_a_description(name):
    file = FILES[name]
    assert [metric["metric"] for metric in file.config["metric_list"]] == list(get_task(file.task).metrics)
    assert file.description
    assert file.name == file.full_name.removeprefix("rsg_")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_holds_nine_tasks_and_averages_their_rsg_figures(group):
    found = manager().load([group])
    assert len(found["tasks"]) == 9
    assert set(found["tasks"]) == {f"{group}_{task}" for task in RUSSIAN_SUPERGLUE}
    (aggregation,) = found["groups"][group].aggregate_metric_list
    assert (aggregation.metric, aggregation.weight_by_size) == ("rsg", False)


# --- rendering --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_every_document_renders_without_leftovers(name, prompt):
    found = requests(name, prompt)
    assert found
    for _, context, continuation in found:
        text = context + (continuation if isinstance(continuation, str) else "")
        assert not [mark for mark in MARKS if mark in text], text
        assert "  " not in text, text
        assert " \n" not in text, text
        assert not re.search(r" [.,!?;:]", text), text
        assert not re.search(r"[.!?…],|,,|\.\.(?!\.)", text.replace("...", "…")), text
        assert text == text.lstrip()


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_a_context_never_ends_in_white_space_where_an_answer_follows(name, prompt):
    if has_gen_prefix(FILES[name], prompt):
        assert [context for context in contexts(name, prompt) if context != context.rstrip()] == []
    for _, context, continuation in requests(name, prompt):
        if isinstance(continuation, str):
            joined = context[-1:] + continuation[:1]
            assert joined != joined.strip() or "\n" in joined  # something separates the two
            assert not re.search(r"\s\s", context[-2:] + continuation[:2])


@pytest.mark.parametrize(("name", "prompt"), [pair for pair in PROMPTS if FILES[pair[0]].group == "rsg"])
def test_choices_are_several_different_and_not_empty(name, prompt):
    choices: dict[str, list[str]] = {}
    for doc, _, continuation in requests(name, prompt):
        choices.setdefault(str(doc["idx"]), []).append(continuation)
    for texts in choices.values():
        assert len(set(texts)) == len(texts) >= 2
        assert all(text.strip() and text == text.rstrip() for text in texts)


@pytest.mark.parametrize(("name", "prompt"), [pair for pair in PROMPTS if FILES[pair[0]].group == "rsg"])
def test_the_right_choice_stands_at_the_index_of_the_label(name, prompt):
    """Yes and no in the wrong order would turn every figure round."""
    task = loaded(name, prompt)
    for doc in task.eval_docs:
        choices, right = task.doc_to_choice(doc), task.doc_to_target(doc)
        label = right if FILES[name].task == "rucos" else doc["label"]
        assert right == label
        chosen = choices[right]
        match FILES[name].task:
            case "terra" | "lidirus":
                assert chosen == ("да", "нет")[label]
            case "danetqa" | "rwsd" | "muserc":
                assert chosen == ("нет", "да")[label]
            case "russe" if prompt == "texts":
                assert [doc[f"sentence{number + 1}"] in text for number, text in enumerate(choices)] == [True, True]
            case "russe":
                assert (
                    chosen
                    in (
                        ("нет", "разные значения", "разные"),
                        ("да", "одно и то же значение", "одинаковые"),
                    )[label]
                )
            case "rcb":
                assert (
                    chosen
                    in (
                        ("да", "следует", "верно"),
                        ("нет", "противоречит", "неверно"),
                        ("неизвестно", "не связана", "возможно"),
                    )[label]
                )
            case "parus":
                assert chosen.lower() in (str(label + 1), doc[f"choice{label + 1}"].lower())
            case "rucos":
                assert doc["entities"][right] in doc["answers"]
                assert doc["entities"][right] in chosen


@pytest.mark.parametrize(("name", "prompt"), [pair for pair in PROMPTS if FILES[pair[0]].group == "rsg_gen"])
def test_generated_answers_may_name_the_choices_of_the_file(name, prompt):
    task = loaded(name, prompt)
    for doc in task.eval_docs:
        choices = task.doc_to_choice(doc)
        if FILES[name].task == "rucos":
            assert choices == doc["entities"]
        else:
            assert tuple(choices) == get_task(doc["task"]).generated


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.group == "rsg_gen"])
def test_generation_is_greedy_short_and_ends_with_the_line(name):
    for _, _, settings in requests(name, FILES[name].prompts[0]):
        assert settings["until"] == ["\n"]
        assert not settings["do_sample"]
        assert 1 <= settings["max_gen_toks"] <= 64


def test_all_requests_of_a_document_are_of_that_document():
    """A column of the documents that lm-eval's datasets dropped or mixed would show here."""
    for doc, context, _ in requests("terra", "statement"):
        assert doc["premise"] in context
        assert doc["hypothesis"] in context


# --- the two ways of RuCoS --------------------------------------------------------------------------------------------


def test_filled_rucos_queries_follow_the_passage_on_a_line_of_their_own():
    for doc, context, continuation in requests("rucos", "filled"):
        assert context == rucos_passage(doc)
        assert continuation.startswith("\n")
        assert continuation[1:] in [doc["query"].replace("@placeholder", entity) for entity in doc["entities"]]


def test_rucos_entities_follow_the_gap_prompt_after_a_space():
    for doc, context, continuation in requests("rucos", "gap"):
        assert context.endswith("\nПропущено:")
        assert "___" in context
        assert continuation[:1] == " "
        assert continuation[1:] in doc["entities"]


def test_the_default_prompt_is_the_same_with_and_without_a_specification():
    for name, file in FILES.items():
        task = manager().load([file.full_name])["tasks"][file.full_name]
        task.set_config("num_fewshot", 0)
        task.build_all_requests(rank=0, world_size=1)
        assert [instance.args for instance in task.instances] == [
            (context, rest) for _, context, rest in requests(name, file.prompts[0])
        ]


# --- few-shot examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "prompt"), PROMPTS)
def test_few_shot_prompts_share_one_prefix_that_shows_the_right_answers(name, prompt):
    task = loaded(name, prompt, 2)
    bare, shown = requests(name, prompt), requests(name, prompt, 2)
    prefixes = set()
    for (_, context, rest), (_, with_shots, same_rest) in zip(bare, shown, strict=True):
        assert with_shots.endswith(context)
        assert same_rest == rest
        prefixes.add(with_shots.removesuffix(context))
    (prefix,) = prefixes
    assert prefix.endswith("\n\n")
    assert "  " not in prefix
    shots = task.sampler.sample(2)
    assert len(shots) == 2
    place = 0
    for shot in shots:
        answer = task.doc_to_choice(shot)[task.doc_to_target(shot)]
        question = task.doc_to_text(shot)
        gen_prefix = task.doc_to_prefix(shot)
        delimiter = task.config.target_delimiter
        block = f"{question}{gen_prefix} {answer}\n\n" if gen_prefix else f"{question}{delimiter}{answer}\n\n"
        assert prefix[place:].startswith(block)
        place += len(block)
    assert place == len(prefix)


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file.task != "rucos"])
@pytest.mark.parametrize("seed", [1234, 7])
def test_shots_are_balanced(name, seed):
    task = loaded(name, FILES[name].prompts[0], 6, seed)
    numbers = Counter(shot["label"] for shot in task.sampler.sample(6))
    assert set(numbers.values()) == {6 // len(numbers)}
    assert len(numbers) == (3 if FILES[name].task == "rcb" else 2)


def test_the_seed_chooses_the_shots():
    assert contexts("terra", "statement", 4, 1) != contexts("terra", "statement", 4, 2)


def test_lidirus_borrows_shots_of_terra_in_its_own_columns():
    pool = fewshot_pool("lidirus", "mini")
    assert pool
    assert all(row["sentence1"] == row["premise"] and row["sentence2"] == row["hypothesis"] for row in pool)


def test_the_sampler_draws_once_for_all_documents():
    pool = fewshot_pool("rcb", "mini")
    sampler = FixedShots(pool, rnd=5)
    assert sampler.sample(3, eval_doc=pool[0]) is sampler.sample(3, eval_doc=pool[1])
    assert sampler.sample(3) != FixedShots(pool, rnd=6).sample(3)


# --- data of a task ---------------------------------------------------------------------------------------------------


def test_a_limit_counts_paragraphs_of_muserc():
    found = load_dataset("muserc", data="mini", limit=3)
    assert len({row["idx"]["paragraph"] for row in found["evaluated"]}) == 3


def test_shown_examples_are_not_asked_when_the_train_split_is():
    found = load_dataset("terra", data="mini", split="train", seed=5, num_fewshot=4)
    shots = FixedShots(found["fewshot"], rnd=5).sample(4)
    assert len(found["evaluated"]) == len(found["fewshot"]) - 4
    assert not {row["idx"] for row in shots} & {row["idx"] for row in found["evaluated"]}


def test_a_document_that_is_in_train_too_is_never_shown_as_an_example(monkeypatch):
    known = load_dataset("terra", data="mini", num_fewshot=1)["fewshot"]
    asked = [{**row, "idx": 100 + row["idx"]} for row in known[:20]]
    split = SimpleNamespace(split="validation", documents=[SimpleNamespace(row=lambda row=row: row) for row in asked])
    monkeypatch.setattr("task_configs.functions.cached_split", lambda *_: split)
    assert load_dataset("terra", data="mini", num_fewshot=1)["fewshot"] == known[20:]


def test_without_shots_the_train_split_is_not_read():
    assert load_dataset("terra", data="mini", num_fewshot=0)["fewshot"] == []


def test_the_data_directory_comes_from_the_environment_where_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RSG_DATA", str(tmp_path / "nothing here"))
    with pytest.raises(UserError, match="nothing here"):
        load_dataset("terra")
    assert load_dataset("terra", data="mini")["evaluated"]
    monkeypatch.delenv("RSG_DATA")
    assert len(load_dataset("terra")["evaluated"]) == 24


def test_a_hidden_rucos_answer_has_some_index():
    assert rucos_target({"entities": ["Киев", "Минск"], "answers": ["Минск"]}) == 1
    assert rucos_target({"entities": ["Киев"], "answers": []}) == 0


# --- what the user names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["terra", "rsg_terra", "TERRa", " terra "])
def test_a_task_is_found_by_its_short_and_full_name_in_any_case(wanted):
    assert [task.file.full_name for task in choose([wanted])] == ["rsg_terra"]


@pytest.mark.parametrize("wanted", ["gen_terra", "rsg_gen_terra"])
def test_a_generating_task_is_found_by_its_short_and_full_name(wanted):
    assert [task.file.full_name for task in choose([wanted])] == ["rsg_gen_terra"]


def test_tasks_come_once_and_in_the_order_of_the_benchmark():
    names = [task.file.name for task in choose(["terra", "rcb", "rsg_terra", "lidirus"])]
    assert names == ["lidirus", "rcb", "terra"]
    assert len(choose(["rsg", "terra"])) == 9
    assert len(choose(["rsg", "rsg_gen"])) == 18


@pytest.mark.parametrize(
    ("wanted", "near"), [("tera", "terra"), ("muserk", "muserc"), ("rsg_gen_rusos", "gen_rucos"), ("rsgg", "rsg")]
)
def test_an_unknown_task_gives_the_nearest_names(wanted, near):
    with pytest.raises(UserError, match=f"unknown task '{wanted}'") as caught:
        choose([wanted])
    assert "did you mean" in caught.value.hint
    assert near in caught.value.hint


def test_a_task_that_resembles_nothing_gives_all_names():
    with pytest.raises(UserError) as caught:
        choose(["qqq"])
    assert all(name in caught.value.hint for name in FILES)


def test_no_task_at_all_is_refused():
    with pytest.raises(UserError, match="no task"):
        choose([])


def test_prompts_are_chosen_for_all_or_for_single_tasks():
    default = {name: file.prompts[0] for name, file in FILES.items()}
    assert {task.file.name: task.prompt for task in choose(["rsg", "rsg_gen"])} == default
    assert [task.prompt for task in choose(["terra"], "truth")] == ["truth"]
    chosen = choose(["terra", "rcb", "russe"], "terra=then,rcb=default")
    assert {task.file.name: task.prompt for task in chosen} == {
        "rcb": default["rcb"],
        "terra": "then",
        "russe": default["russe"],
    }


@pytest.mark.parametrize("prompt", ["trut", "terra=trut"])
def test_an_unknown_prompt_names_those_of_the_task(prompt):
    with pytest.raises(UserError, match="terra has no prompt 'trut'") as caught:
        choose(["terra"], prompt)
    assert all(name in caught.value.hint for name in ("statement", "then", "truth"))


def test_a_prompt_may_name_its_task_in_full():
    assert [task.prompt for task in choose(["terra"], "rsg_terra=truth")] == ["truth"]


@pytest.mark.parametrize("prompt", ["tera=truth", "terra=truth,statement", "=truth"])
def test_a_prompt_whose_task_is_unknown_or_missing_is_refused(prompt):
    """Silently the default prompt would run, and its figures would be taken for the other's."""
    with pytest.raises(UserError):
        choose(["terra"], prompt)


# --- mistakes in a file -----------------------------------------------------------------------------------------------

Change = Callable[[str, str], Path]


@pytest.fixture
def changed(tmp_path: Path) -> Change:
    """A copy of the task files in which one text of terra.yaml is replaced; gives the copy's directory."""

    def change(old: str, new: str) -> Path:
        for group in GROUPS:
            shutil.copytree(TASK_DIR / group, tmp_path / group)
        file = tmp_path / "rsg" / "terra.yaml"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")
        return tmp_path

    return change


def test_a_copy_of_the_files_reads_like_the_files(changed):
    directory = changed("version: 1", "version: 1")
    assert list(task_files(directory)) == list(FILES)


@pytest.mark.parametrize(
    ("old", "new", "named", "meant"),
    [
        ("process_results:", "proces_results:", "proces_results", "process_results"),
        ("metric_list:", "metrics_list:", "metrics_list", "metric_list"),
        ("      gen_prefix:", "      gen_prefx:", "gen_prefx", "gen_prefix"),
        ("default_prompt: statement", "default_prompt: statment", "statment", "statement"),
    ],
)
def test_a_mistyped_key_is_named_with_its_file_and_the_nearest_one(changed, old, new, named, meant):
    directory = changed(old, new)
    with pytest.raises(UserError, match=r"terra\.yaml") as caught:
        choose(["rcb"], directory=directory)
    assert named in caught.value.message
    assert meant in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dataset_kwargs: {task: terra}", "dataset_kwargs: {task: terra"),
        ("  default_prompt: statement", "\tdefault_prompt: statement"),
        ("task: rsg_terra", "task: rsg_terra: rsg"),
    ],
)
def test_broken_yaml_is_named_with_its_file_and_line(changed, old, new):
    directory = changed(old, new)
    lines = (directory / "rsg" / "terra.yaml").read_text(encoding="utf-8").splitlines()
    broken = next(number for number, line in enumerate(lines, start=1) if new in line)
    with pytest.raises(UserError, match="not valid YAML") as caught:
        choose(["terra"], directory=directory)
    found = re.search(r"terra\.yaml:(\d+)", caught.value.message)
    assert found
    assert broken <= int(found[1]) <= broken + 1  # the parser may notice on the next line


@pytest.mark.parametrize(
    "key",
    ["task: rsg_terra", "dataset_kwargs: {task: terra}", "  default_prompt: statement"],
    ids=lambda key: key.strip(),
)
def test_a_missing_key_is_a_user_error(changed, key):
    with pytest.raises(UserError, match=r"terra\.yaml"):
        choose(["terra"], directory=changed(f"{key}\n", ""))


def test_a_group_that_names_an_undeclared_task_is_a_user_error(changed):
    directory = changed("task: rsg_terra", "task: rsg_tera")
    with pytest.raises(UserError, match="names the task rsg_terra"):
        choose(["terra"], directory=directory)


@pytest.mark.parametrize("content", ["- a list\n", "", "just text\n"])
def test_a_file_that_is_no_mapping_is_a_user_error(changed, content):
    directory = changed("version: 1", "version: 1")
    (directory / "rsg" / "terra.yaml").write_text(content)
    with pytest.raises(UserError, match=r"terra\.yaml"):
        choose(["terra"], directory=directory)
