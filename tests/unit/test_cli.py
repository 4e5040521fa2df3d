"""The command line: what is parsed, what is imported when, and what is left behind."""

from __future__ import annotations

import argparse
import dataclasses
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import progress
from harness.adaptation.options import AdaptOptions
from harness.bot.options import BotOptions
from harness.cli import build_parser, main
from harness.commands import COMMANDS
from harness.distillation.options import DistillOptions
from harness.errors import UserError
from harness.evaluation.options import PredictOptions, RunOptions, SweepOptions, check_run_options
from harness.quantization.options import QuantizeOptions, check_quantize_options
from harness.tasks import registry
from harness.training.options import TrainOptions

OPTIONS: dict[str, type] = {
    "run": RunOptions,
    "sweep": SweepOptions,
    "train": TrainOptions,
    "distill": DistillOptions,
    "predict": PredictOptions,
    "quantize": QuantizeOptions,
    "adapt": AdaptOptions,
    "bot": BotOptions,
}
# What is not a field of the options: adapt either analyses or adapts.
NOT_OPTIONS = {"analyse"}
# Fields that no argument sets: the dispatcher knows the command line, and sweep names backends of its own.
NOT_ARGUMENTS = {"sweep": {"backend", "backend_args", "endpoint", "api_key_file", "concurrency", "timeout"}}
REQUIRED = {
    "train": ["--recipe", "small"],
    "distill": ["--endpoint", "http://localhost/v1", "--teacher", "large", "--output", "labels"],
    "predict": ["--task", "terra"],
    "quantize": ["--output", "small"],
    "compare": ["one", "two"],
    "submit": ["one"],
}
PATHS = {"DIR", "FILE", "PREFIX", "ZIP", "RUN_A", "RUN_B", "RUN"}


def actions(name: str) -> list[argparse.Action]:
    """The arguments of a command."""
    [verbs] = [found for found in build_parser()._actions if isinstance(found, argparse._SubParsersAction)]
    return [action for action in verbs.choices[name]._actions if action.dest != "help"]


def parse(name: str, *words: str) -> dict[str, Any]:
    """The arguments of a command line with what the command requires."""
    arguments = vars(build_parser(only=name).parse_args([name, *REQUIRED.get(name, []), *words]))
    assert arguments.pop("verb") == name
    return arguments


@pytest.mark.parametrize("name", OPTIONS)
def test_arguments_are_named_after_the_fields_of_the_options(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(OPTIONS[name])}
    records_command = getattr(COMMANDS[name], "RECORDS_COMMAND", False)
    assert records_command == ("command" in fields)
    given = {action.dest for action in actions(name)} - NOT_OPTIONS
    assert given == fields - {"command"} - NOT_ARGUMENTS.get(name, set())


@pytest.mark.parametrize("name", OPTIONS)
def test_the_parser_makes_the_options_and_leaves_the_defaults_to_them(name: str) -> None:
    arguments = parse(name)
    required = {action.dest for action in actions(name) if action.required}
    assert set(arguments) == required
    OPTIONS[name](**arguments)


@pytest.mark.parametrize("name", OPTIONS)
def test_help_tells_the_defaults_of_the_options(name: str) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(OPTIONS[name])}
    if name == "distill":
        defaults.pop("tasks")  # "all but lidirus"
    for action in actions(name):
        default = defaults.get(action.dest, dataclasses.MISSING)
        if default in (None, (), False, dataclasses.MISSING):
            continue
        shown = ",".join(default) if isinstance(default, tuple) else str(default).removesuffix(".0")
        assert re.search(rf"(^|[ (]){re.escape(shown)}($|[ ),;:])", action.help or ""), (name, action.dest)


def test_repeated_options_and_names_become_tuples() -> None:
    arguments = parse("run", "--backend-arg", "threads=2", "--backend-arg", "x=1", "--tasks", "terra, rcb,")
    assert arguments == {"backend_args": ("threads=2", "x=1"), "tasks": ("terra", "rcb")}
    assert parse("adapt", "--corpus", "a", "--corpus", "b")["corpora"] == ("a", "b")
    assert parse("train", "--distilled", "a", "--distilled", "b")["distilled"] == (Path("a"), Path("b"))
    assert parse("run", "--include-path", "a", "--include-path", "b")["include_path"] == (Path("a"), Path("b"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_expands_the_home_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    named = [action for action in actions(name) if action.metavar in PATHS]
    for action in [*named, *(found for found in actions(name) if found.dest in ("recipe", "model") and found.type)]:
        assert action.type is not None, action.dest
        assert str(action.type("~/x")) == "/home/somebody/x"  # type: ignore[operator]
        assert str(action.type("x/~")) == "x/~"  # type: ignore[operator]


def test_a_path_after_an_equals_sign_expands_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse("run", "--output=~/x")["output"] == Path("/home/somebody/x")
    assert vars(build_parser("train").parse_args(["train", "--recipe=~/x.yaml"]))["recipe"] == "/home/somebody/x.yaml"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (RunOptions(seed=-1), "--seed -1 makes no sense"),
        (SweepOptions(seed=-1), "--seed -1 makes no sense"),
        (RunOptions(limit=0), "--limit 0 makes no sense"),
        (RunOptions(num_fewshot=-1), "--num-fewshot -1 makes no sense"),
        (RunOptions(batch_tokens=0), "--batch-tokens 0 makes no sense"),
        (RunOptions(split="val"), "--split 'val' is unknown"),
        (RunOptions(apply_chat_template="yes"), "--apply-chat-template 'yes' is unknown"),
    ],
)
def test_options_that_cannot_work_are_refused(options: RunOptions, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_run_options(options)


def test_a_file_in_place_of_a_directory_to_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not empty"):
        check_quantize_options(QuantizeOptions(output=tmp_path / "file"))
    check_quantize_options(QuantizeOptions(output=tmp_path / "new"))


def test_a_negative_seed_is_refused_before_anything_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--seed", "-1"]) == 2
    output = capsys.readouterr()
    assert output.err == "rsg-harness: error: --seed -1 makes no sense — give 0 or more, or leave it out\n"
    assert not output.out


def imported(statement: str, *modules: str) -> set[str]:
    """Which of the modules a new process has imported after a statement."""
    found = subprocess.run(
        [sys.executable, "-c", f"import sys\n{statement}\nprint(*({set(modules)!r} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(found.stdout.split())


def test_parsing_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "lm_eval", "mlx", "numpy", "pydantic", "yaml", "tqdm")
    assert not imported("from harness.cli import build_parser; build_parser('run')", *heavy)
    assert imported("from harness.cli import build_parser; build_parser('predict')", *heavy) <= {"numpy", "pydantic"}


def test_fields_of_predict_come_from_the_tasks() -> None:
    given = parse("predict", "--premise", "a", "--span1-text", "b")["fields"]
    assert given == {"premise": "a", "span1_text": "b"}
    lines = {action.const: action.help for action in actions("predict") if action.dest == "fields"}
    assert lines["hypothesis"] == "rcb, terra"
    assert lines["question"] == "muserc, danetqa; parus: cause or effect"
    assert lines["entities"] == "rucos: separated by semicolons"


OWN_TASK = """
import dataclasses
from harness.tasks import InputField, get_task, register
fields = (InputField("FIELD", "100% your own"),)
register(dataclasses.replace(get_task("terra"), name="mine", fields=fields))
"""


@pytest.fixture
def own_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a task of one's own, which is forgotten afterwards."""
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_directories", [])
    (tmp_path / "mine.py").write_text(OWN_TASK.replace("FIELD", "remark"), encoding="utf-8")
    return tmp_path


def test_an_included_task_has_its_fields_in_predict(own_tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--include-path", str(own_tasks), "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--remark TEXT mine: 100% your own" in shown
    assert "--premise TEXT rcb, parus, terra" in shown


def test_a_field_that_is_named_as_an_option_is_refused(own_tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_tasks / "mine.py").write_text(OWN_TASK.replace("FIELD", "dtype"), encoding="utf-8")
    assert main(["predict", "--include-path", str(own_tasks), "--task", "mine"]) == 2
    assert "predict has a --dtype of its own — give the task's field another name" in capsys.readouterr().err


def test_a_directory_of_tasks_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--include-path", str(tmp_path / "nowhere")]) == 2
    assert f"no directory {tmp_path / 'nowhere'}" in capsys.readouterr().err


def replace_call(monkeypatch: pytest.MonkeyPatch, name: str, call: Any) -> None:
    """Let a command do something else."""
    monkeypatch.setattr(COMMANDS[name], "call", call)


def raising(error: BaseException) -> Any:
    def call(arguments: dict[str, Any]) -> None:
        raise error

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_what_is_kept(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_call(monkeypatch, name, raising(KeyboardInterrupt()))
    assert main([name, *REQUIRED.get(name, [])]) == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"rsg-harness: {COMMANDS[name].INTERRUPTED}"
    resumable = "resume" in {action.dest for action in actions(name)}
    assert ("--resume" in line) == resumable


def test_an_error_of_the_user_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    replace_call(monkeypatch, "doctor", raising(UserError("it is broken", "repair it")))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "rsg-harness: error: it is broken — repair it\n"
    replace_call(monkeypatch, "doctor", raising(UserError("it is broken")))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == "rsg-harness: error: it is broken\n"


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_call(monkeypatch, "doctor", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_unknown_commands_and_options_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rum"]) == 2
    assert main([]) == 2
    assert main(["run", "--lim", "3"]) == 2  # no abbreviations
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rsg-harness ")


@pytest.mark.parametrize("name", ["run", "sweep", "train", "adapt"])
def test_the_command_line_is_kept_for_the_record(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    replace_call(monkeypatch, name, seen.append)
    assert main([name, *REQUIRED.get(name, []), "--data", "two words"]) == 0
    assert seen[0]["command"].startswith(f"rsg-harness {name}")
    assert seen[0]["command"].endswith("--data 'two words'")


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "ascii", "utf-8"])
def test_a_character_that_the_output_lacks_is_replaced(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, errors = io.BytesIO(), io.BytesIO()
    stdout, stderr = io.TextIOWrapper(content, encoding), io.TextIOWrapper(errors, encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setattr(sys, "stderr", stderr)

    def call(arguments: dict[str, Any]) -> None:
        print("57.3 ± 2.8 → да · \ud800")
        raise UserError("№ ± → \ud800")

    replace_call(monkeypatch, "doctor", call)
    assert main(["doctor"]) == 2
    stdout.flush()
    stderr.flush()
    assert "57.3" in content.getvalue().decode(encoding)
    assert errors.getvalue().decode(encoding).startswith("rsg-harness: error: ")
    assert (stdout.errors, stderr.errors) == ("strict", "strict")


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m harness.cli tasks | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    root = logging.getLogger("harness")
    before = dict(os.environ), root.handlers[:], root.level, root.propagate, progress.output_is_shown()
    inside: list[Any] = []

    def call(arguments: dict[str, Any]) -> None:
        os.environ["LEFT"] = "1"
        inside.append((progress.output_is_shown(), os.environ["TQDM_DISABLE"]))
        logging.getLogger("harness.somewhere").info("hello")
        logging.getLogger("harness.somewhere").warning("careful")
        progress.show_library_bars()
        inside.append(os.environ.get("TQDM_DISABLE"))

    replace_call(monkeypatch, "doctor", call)
    assert main(["doctor"]) == 0
    assert inside == [(True, "1"), None]
    assert capsys.readouterr().err == "hello\nwarning: careful\n"
    assert before == (dict(os.environ), root.handlers[:], root.level, root.propagate, progress.output_is_shown())


def test_a_user_who_hides_the_bars_of_libraries_hides_them_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def call(arguments: dict[str, Any]) -> None:
        progress.show_library_bars()
        assert os.environ["TQDM_DISABLE"] == "1"

    replace_call(monkeypatch, "doctor", call)
    assert main(["doctor"]) == 0
