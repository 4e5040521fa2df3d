"""`rsg-harness run --endpoint` against a small model served over HTTP, and a stand-in that fails on demand."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.data import cached_split
from harness.endpoint import connection
from harness.models.checkpoint import DESCRIPTION
from harness.records.run import SampleRecord, read_run, read_samples
from harness.tasks import registry
from tests.integration.command import RSG_HARNESS, call_here, heed_interrupts
from tests.lm_eval_tasks import write_lm_eval_tasks
from tests.openai_server import TEACHER, Behaviour, OpenAIServer
from tests.served_model import ServedModel
from tests.tiny_gemma import CHAT_TEMPLATE, make_tiny_gemma

Done = subprocess.CompletedProcess[str]
Evaluate = Callable[..., Done]
KEY = "sk-a-key-of-the-tests-0123456789"
OURS = ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa", "rucos")


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_gemma(tmp_path_factory.mktemp("models") / "tiny-chat", max_position_embeddings=4096)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[OpenAIServer]:
    """The base model, as vLLM serves it."""
    with OpenAIServer(model=ServedModel(tiny_model)) as served:
        yield served


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks that a command includes."""
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_directories", [])


@pytest.fixture
def evaluate(environment: dict[str, str], tmp_path: Path) -> Evaluate:
    """Runs the command in this process, into tmp_path/out unless told otherwise, with `key` in the environment."""

    def call(server: OpenAIServer | str, *arguments: str | Path, key: str = "") -> Done:
        return call_here(given_to(server, tmp_path, *arguments), tmp_path, {**environment, "OPENAI_API_KEY": key})

    return call


def given_to(server: OpenAIServer | str, root: Path, *arguments: str | Path) -> list[str | Path]:
    """Return the command's arguments, with the stand-in's name and the output where none are given."""
    given = list(map(str, arguments))
    defaults = {"--model": TEACHER, "--output": str(root / "out")}
    missing = [part for name, value in defaults.items() if name not in given for part in (name, value)]
    return ["run", "--endpoint", server if isinstance(server, str) else server.url, *missing, *given]


def finished(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(done: Done) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "rsg-harness: error:" in line]
    return line


def samples(directory: Path) -> list[SampleRecord]:
    return list(read_samples(directory))


def bodies(server: OpenAIServer, probes: int = 1) -> list[dict[str, Any]]:
    """What was asked after the probes."""
    return server.bodies[probes:]


def same_as_here(done: Done, served: Path, here: Path) -> None:
    """Asserts that a run through a server has the answers and figures of a run on this machine."""
    finished(done)
    records = read_run(served), read_run(here)
    assert {name: task.metrics for name, task in records[0].tasks.items()} == {
        name: task.metrics for name, task in records[1].tasks.items()
    }
    assert {name: task.prompt_sha256 for name, task in records[0].tasks.items()} == {
        name: task.prompt_sha256 for name, task in records[1].tasks.items()
    }
    assert records[0].mean == records[1].mean
    pairs = list(zip(samples(served), samples(here), strict=True))
    assert pairs
    for one, other in pairs:
        assert (one.task, one.idx, one.prediction, one.text) == (other.task, other.idx, other.prediction, other.text)
        assert one.scores == pytest.approx(other.scores, abs=1e-4)


# --- the same as on this machine --------------------------------------------------------------------------------------


def test_all_nine_tasks_have_the_scores_of_the_model_on_this_machine(
    evaluate: Evaluate, server: OpenAIServer, tiny_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    tasks = ("--tasks", "rsg", "--limit", "2")
    done = evaluate(server, *tasks)
    here = ("run", "--model", tiny_model, "--backend", "torch", "--dtype", "float32", "--output", tmp_path / "here")
    finished(call_here((*here, *tasks), tmp_path, environment))
    same_as_here(done, tmp_path / "out", tmp_path / "here")
    record = read_run(tmp_path / "out")
    assert tuple(record.tasks) == OURS
    assert record.score == read_run(tmp_path / "here").score
    assert (record.backend, record.execution) == ("endpoint", "endpoint")
    assert record.endpoint is not None
    assert (record.model.name, record.endpoint.address) == (TEACHER, server.url)
    assert record.endpoint.apis == ("completions",)
    assert (record.model.weights_bytes, record.model.parameters, record.memory, record.tokens) == (None,) * 4
    assert not record.chat_template

    # What is made of records takes this one too.
    compared = finished(call_here(("compare", "here", "out"), tmp_path, environment))
    assert f"executed by endpoint {server.url}" in compared
    assert "the same: 0.0 points" in compared
    (tmp_path / "results" / "runs").mkdir(parents=True)
    for name in ("here", "out"):
        shutil.copytree(tmp_path / name, tmp_path / "results" / "runs" / name)
    finished(call_here(("leaderboard",), tmp_path, environment))
    finished(call_here(("report",), tmp_path, environment))
    board = (tmp_path / "results" / "leaderboard.md").read_text(encoding="utf-8")
    [row] = [line for line in board.splitlines() if line.startswith(f"| {TEACHER} ")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["endpoint", f"endpoint {server.url}"]
    assert cells[-4:-1] == ["–", "–", "–"]
    assert server.url in (tmp_path / "results" / "index.html").read_text(encoding="utf-8")


def test_answers_by_the_completions_api_are_those_of_the_model_on_this_machine(
    evaluate: Evaluate, server: OpenAIServer, tiny_model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    tasks = (
        "--tasks",
        "gen_terra,gen_rcb,gen_rwsd",
        "--limit",
        "2",
        "--num-fewshot",
        "1",
        "--system-instruction",
        "Да.",
    )
    done = evaluate(server, *tasks)
    here = ("run", "--model", tiny_model, "--backend", "torch", "--dtype", "float32", "--output", tmp_path / "here")
    finished(call_here((*here, *tasks), tmp_path, environment))
    same_as_here(done, tmp_path / "out", tmp_path / "here")
    # The base model has no chat template, and `auto` found that out.
    assert "asking by the completions API, since the chat API says status 400: As of transformers" in done.stderr
    assert read_run(tmp_path / "out").endpoint.apis == ("completions",)  # type: ignore[union-attr]


@pytest.fixture
def own_tasks(tmp_path: Path, index: Path, environment: dict[str, str]) -> Path:
    shutil.copytree(index, Path(environment["RSG_HARNESS_CACHE"]) / "lm-eval")
    return write_lm_eval_tasks(tmp_path / "own")


def test_lm_evals_tasks_of_every_kind_have_the_figures_of_the_model_on_this_machine(
    evaluate: Evaluate, server: OpenAIServer, tiny_model: Path, own_tasks: Path, tmp_path: Path,
    environment: dict[str, str],
) -> None:  # fmt: skip
    names = ("own_choice", "own_shots", "own_last", "own_text", "own_writing")
    tasks = ("--include-path", own_tasks, "--tasks", ",".join((*names, "own_votes")))
    finished(evaluate(server, *tasks))
    here = ("run", "--model", tiny_model, "--backend", "torch", "--dtype", "float32", "--output", tmp_path / "here")
    finished(call_here((*here, *tasks), tmp_path, environment))
    records = read_run(tmp_path / "out"), read_run(tmp_path / "here")
    for name in names:  # own_votes is sampled
        found, expected = records[0].foreign[name].metrics, records[1].foreign[name].metrics
        assert found.keys() == expected.keys()
        for metric, value in expected.items():
            assert found[metric].value == pytest.approx(value.value, rel=1e-5), (name, metric)
    pairs = zip(samples(tmp_path / "out"), samples(tmp_path / "here"), strict=True)
    assert all(one.text == other.text for one, other in pairs if one.task == "own_writing")


def test_the_chat_api_gives_what_the_chat_template_gives_on_this_machine(
    evaluate: Evaluate, chat_model: Path, own_tasks: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    tasks = ("--include-path", own_tasks, "--tasks", "own_writing", "--apply-chat-template", "on")
    with OpenAIServer(model=ServedModel(chat_model)) as server:
        finished(evaluate(server, *tasks, "--system-instruction", "Кратко."))
        assert all("messages" in body for body in server.bodies)
    here = ("run", "--model", chat_model, "--backend", "torch", "--dtype", "float32", "--output", tmp_path / "here")
    finished(call_here((*here, *tasks, "--system-instruction", "Кратко."), tmp_path, environment))
    texts = [[sample.text for sample in samples(tmp_path / name)] for name in ("out", "here")]
    assert texts[0] == texts[1]
    assert any(texts[0])
    record = read_run(tmp_path / "out")
    assert record.foreign_chat_template
    assert record.endpoint is not None
    assert record.endpoint.apis == ("chat",)


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_conversations_hold_the_instruction_the_examples_and_the_question_without_the_answers_beginning(
    evaluate: Evaluate,
) -> None:
    with OpenAIServer() as server:
        finished(
            evaluate(
                server, "--tasks", "gen_terra", "--limit", "2", "--num-fewshot", "2", "--system-instruction", "Кратко."
            )
        )
        asked = bodies(server)
    assert len(asked) == 2
    for body in asked:
        roles = [message["role"] for message in body["messages"]]
        assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
        assert body["messages"][0]["content"] == "Кратко."
        assert {body["messages"][place]["content"] for place in (2, 4)} <= {"да", "нет"}
        assert body["messages"][-1]["content"].endswith("Ответьте одним словом: да или нет.")
        assert (body["max_tokens"], body["temperature"], body["seed"], body["stop"]) == (24, 0.0, 1234, ["\n"])
        assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_texts_are_cut_at_stop_strings_here_too_and_thoughts_are_no_answer(evaluate: Evaluate, tmp_path: Path) -> None:
    texts = ("да\nи ещё строка", "<think>нет,\nто есть</think>нет", "<think>да, потому")
    with OpenAIServer(Behaviour(texts=texts, finish="length")) as server:
        done = evaluate(server, "--tasks", "gen_terra")
    finished(done)
    found = {sample.text for sample in samples(tmp_path / "out")}
    assert found == {"да", "нет", ""}
    assert "answers are empty and used up their tokens" in done.stderr


def test_parameters_that_the_server_does_not_take_are_left_out(evaluate: Evaluate) -> None:
    refused = ("stop", "chat_template_kwargs", "max_tokens", "seed")
    with OpenAIServer(Behaviour(unsupported=refused)) as server:
        finished(evaluate(server, "--tasks", "gen_terra", "--limit", "2", "--concurrency", "1"))
        asked = server.bodies[-1]
    assert asked["max_completion_tokens"] == 24
    assert set(refused).isdisjoint(asked)


def test_equal_questions_are_asked_once(evaluate: Evaluate, tiny_model: Path, own_tasks: Path) -> None:
    with OpenAIServer(model=ServedModel(tiny_model)) as served:
        finished(evaluate(served, "--include-path", own_tasks, "--tasks", "own_choice"))
        asked = [body["prompt"] for body in bodies(served)]
    # Eight documents with two or three choices each; the seven choices are asked without a document too.
    assert len(asked) == len(set(asked)) == 18 + 7


def test_samples_have_seeds_of_their_own_and_no_more_is_asked_at_once_than_allowed(
    evaluate: Evaluate, own_tasks: Path
) -> None:
    with OpenAIServer(Behaviour(seconds=0.05)) as server:
        finished(evaluate(server, "--include-path", own_tasks, "--tasks", "own_votes", "--concurrency", "5"))
        asked = bodies(server)
        assert server.most_at_once == 5
    assert len({(body["prompt"], body["seed"]) for body in asked}) == len(asked) == 3 * 8
    assert {(body["temperature"], body["max_tokens"]) for body in asked} == {(1.0, 4)}


def test_the_only_model_of_a_server_needs_no_name(
    evaluate: Evaluate, tmp_path: Path, environment: dict[str, str]
) -> None:
    with OpenAIServer() as server:
        arguments = ("run", "--endpoint", server.url, "--tasks", "gen_terra", "--limit", "2")
        finished(call_here(arguments, tmp_path, environment))
    [directory] = (tmp_path / "results" / "runs").iterdir()
    assert directory.name.endswith(f"-{TEACHER}-endpoint")
    assert read_run(directory).model.name == TEACHER


def test_a_record_holds_no_key_and_no_password(evaluate: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    with OpenAIServer(Behaviour(key=KEY)) as server:
        secret = server.url.replace("http://", "http://user:pass-word-1@") + "?token=query-secret-2"
        # A password in the address takes the place of the key.
        outputs = [
            evaluate(secret, "--tasks", "gen_terra", "--limit", "2"),
            evaluate(
                server, "--tasks", "gen_terra", "--limit", "2", "--api-key-file", path, "--output", tmp_path / "b"
            ),
            evaluate(server, "--tasks", "gen_terra", "--limit", "2", "--output", tmp_path / "c", key=KEY),
        ]
    assert "refuses the API key" in refusal(outputs[0])
    with OpenAIServer() as server:
        secret = server.url.replace("http://", "http://user:pass-word-1@") + "?token=query-secret-2"
        outputs.append(evaluate(secret, "--tasks", "gen_terra", "--limit", "2"))
    for done in outputs[1:]:
        finished(done)
    record = read_run(tmp_path / "out")
    assert record.endpoint is not None
    assert record.endpoint.address == record.model.origin == server.url
    assert f"--endpoint {server.url} " in record.command
    written = [text for done in outputs for text in (done.stdout, done.stderr)]
    written += [file.read_text() for name in ("out", "b", "c") for file in (tmp_path / name).iterdir()]
    assert not [text for text in written for word in (KEY, "pass-word-1", "query-secret-2") if word in text]


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "drop", "half", "garbage", "nothing", "hang"])
def test_a_fault_that_passes_costs_nothing_but_time(evaluate: Evaluate, tmp_path: Path, fault: str) -> None:
    behaviour = Behaviour(faults=("", "", fault, "", fault, fault), retry_after=0.05)
    with OpenAIServer(behaviour) as server:
        finished(evaluate(server, "--tasks", "gen_terra", "--timeout", "1.5" if fault == "hang" else "60"))
        assert server.requests == 24 + 1 + 3
    assert len(samples(tmp_path / "out")) == 24


def test_the_wait_that_the_server_asks_for_is_obeyed(evaluate: Evaluate) -> None:
    with OpenAIServer(Behaviour(faults=("", "429"), retry_after=3)) as server:
        finished(evaluate(server, "--tasks", "gen_terra", "--limit", "2", "--concurrency", "1"))
        times = server.times
    assert len(times) == 4
    assert times[2] - times[1] >= 3
    assert times[3] - times[2] < 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("half", "the connection broke"),
        ("garbage", "not an answer of an OpenAI-compatible server: invalid json"),
        ("nothing", "not an answer of an OpenAI-compatible server in choices"),
        ("503", "status 503: on demand"),
    ],
)
def test_a_fault_that_stays_is_named_and_finished_answers_stay(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setattr(connection, "_RETRIES", 1)  # in place of 40 seconds
    good = 6
    with OpenAIServer(Behaviour(faults=("",) * (1 + good) + (fault,) * 200, retry_after=0.01)) as server:
        said = refusal(evaluate(server, "--tasks", "gen_terra", "--concurrency", "2"))
    assert message in said
    assert "--resume" in said
    assert not (tmp_path / "out" / "results.json").exists()
    with OpenAIServer() as server:
        finished(evaluate(server, "--tasks", "gen_terra", "--resume"))
        assert server.requests == 1 + 24 - good


def test_prompts_that_are_too_long_are_named_and_asked_again_with_resume(evaluate: Evaluate, tmp_path: Path) -> None:
    rows = [document.row() for document in cached_split("terra", "validation", "mini").documents]
    with OpenAIServer(Behaviour(refused=tuple(row["premise"] for row in rows[3:6]))) as server:
        said = refusal(evaluate(server, "--tasks", "gen_terra"))
    assert "3 of 24 questions got no answer, first rsg_gen_terra, document" in said
    assert "status 400: 'max_tokens' is too large: the maximum context length is exceeded" in said
    assert "show fewer examples" in said
    with OpenAIServer() as server:
        finished(evaluate(server, "--tasks", "gen_terra", "--resume"))
        assert server.requests == 1 + 3
    assert read_run(tmp_path / "out").resumed


def test_a_context_that_a_served_model_does_not_hold_is_refused_in_its_words(
    evaluate: Evaluate, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = make_tiny_gemma(tmp_path_factory.mktemp("models") / "short", max_position_embeddings=64)
    with OpenAIServer(model=ServedModel(small)) as server:
        said = refusal(evaluate(server, "--tasks", "terra", "--limit", "2"))
    assert "4 of 4 questions got no answer" in said
    assert "maximum context length is 64 tokens" in said


def wait_for_answers(store: Path, count: int, process: subprocess.Popen[str], table: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if store.exists():
            try:
                with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
                    (stored,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()
                if stored >= count:
                    return
            except sqlite3.Error:
                pass
        time.sleep(0.01)
    raise AssertionError("the run stored nothing in two minutes")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_ended_asks_only_what_is_missing(
    evaluate: Evaluate, environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ("--tasks", "gen_terra,gen_rcb", "--concurrency", "2")
    with OpenAIServer(Behaviour(texts=("да", "нет", "{hash}"))) as server:
        finished(evaluate(server, *arguments, "--output", tmp_path / "undisturbed"))
    with OpenAIServer(Behaviour(texts=("да", "нет", "{hash}"), seconds=0.1)) as server:
        process = subprocess.Popen(
            [RSG_HARNESS, *map(str, given_to(server, tmp_path, *arguments))],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        store = tmp_path / "out" / "progress.sqlite"
        wait_for_answers(store, 9, process, "texts")
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert "--resume" in said
            assert "Traceback" not in said
        with sqlite3.connect(store) as database:
            (before,) = database.execute("SELECT count(*) FROM texts").fetchone()
        assert 9 <= before < 48
        assert "holds an unfinished run" in refusal(evaluate(server, *arguments))
        time.sleep(0.3)  # what was in flight has arrived
        asked = server.requests
        finished(evaluate(server, *arguments, "--resume"))
        assert server.requests == asked + 1 + 48 - before
    assert samples(tmp_path / "out") == samples(tmp_path / "undisturbed")
    assert read_run(tmp_path / "out").mean == read_run(tmp_path / "undisturbed").mean


def test_stored_scores_are_not_asked_again(
    evaluate: Evaluate, server: OpenAIServer, tmp_path: Path, tiny_model: Path
) -> None:
    rows = [document.row() for document in cached_split("terra", "validation", "mini").documents]
    arguments = ("--tasks", "terra", "--limit", "4")
    finished(evaluate(server, *arguments, "--output", tmp_path / "undisturbed"))
    with OpenAIServer(Behaviour(refused=(rows[6]["hypothesis"],)), ServedModel(tiny_model)) as other:
        assert "2 of 8 questions got no answer" in refusal(evaluate(other, *arguments))
    asked = server.requests
    finished(evaluate(server, *arguments, "--resume"))
    assert server.requests == asked + 1 + 2
    assert samples(tmp_path / "out") == samples(tmp_path / "undisturbed")
    assert np.ptp([score for sample in samples(tmp_path / "out") for score in sample.scores]) > 0.1


# --- what the user can fix --------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_down_is_named_and_leaves_nothing_in_the_way(evaluate: Evaluate) -> None:
    arguments = ("--tasks", "gen_terra", "--limit", "2")
    assert "cannot reach http://127.0.0.1:9/v1" in refusal(evaluate("http://127.0.0.1:9/v1", *arguments))
    with OpenAIServer() as server:
        finished(evaluate(server, *arguments))


def test_a_wrong_key_and_a_wrong_model_are_named_with_what_to_do(evaluate: Evaluate) -> None:
    with OpenAIServer(Behaviour(key=KEY)) as server:
        said = refusal(evaluate(server, "--tasks", "gen_terra", key="sk-wrong-key"))
        assert "refuses the API key: Incorrect API key provided: KEY" in said
        assert "OPENAI_API_KEY" in said
        done = evaluate(server, "--tasks", "gen_terra", "--model", "stand-on", key=KEY)
    with OpenAIServer(Behaviour(faults=("403",))) as server:
        assert "refuses the API key: on demand — set OPENAI_API_KEY" in refusal(
            evaluate(server, "--tasks", "gen_terra")
        )
    assert "has no model 'stand-on': The model `stand-on` does not exist. — did you mean stand-in?" in refusal(done)
    assert f"lists no model stand-on, but {TEACHER}" in done.stderr


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(), "the answer holds no log-probabilities of the prompt"),
        (Behaviour(shape="llama.cpp"), "the answer holds no log-probabilities of the prompt"),
        (Behaviour(shape="none"), "the answer holds no log-probabilities of the prompt"),
        (Behaviour(unsupported=("echo",)), "status 400: Unsupported parameter: 'echo'"),
        (Behaviour(logprobs_status=403), "status 403: you may not ask for logprobs"),
    ],
)
def test_a_server_without_log_probabilities_of_prompts_is_refused_before_the_first_document(
    evaluate: Evaluate, behaviour: Behaviour, reason: str
) -> None:
    with OpenAIServer(behaviour) as server:
        said = refusal(evaluate(server, "--tasks", "gen_rcb,terra"))
        assert server.requests == 1
    assert f"gives no log-probabilities of a prompt ({reason}), and terra needs them" in said
    assert "--tasks rsg_gen" in said


def test_choices_do_not_go_through_a_chat(evaluate: Evaluate) -> None:
    with OpenAIServer() as server:
        said = refusal(evaluate(server, "--tasks", "terra", "--apply-chat-template", "on"))
        assert server.requests == 0
    assert "the chat API gives no log-probabilities of a prompt, and terra needs them" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--backend", "torch"), "--backend is for a model on this machine"),
        (("--backend-arg", "threads=2"), "--backend-arg is for a model on this machine"),
        (("--dtype", "float32"), "--dtype is for a model on this machine"),
        (("--execution", "torch"), "--execution is for a model on this machine"),
        (("--batch-tokens", "100"), "--batch-tokens is for a model on this machine"),
        (("--concurrency", "0"), "--concurrency 0 makes no sense"),
        (("--timeout", "nan"), "--timeout nan makes no sense"),
        (("--api-key-file", "none"), "cannot read none"),
    ],
)
def test_options_that_make_no_sense_with_a_server_reach_none(
    evaluate: Evaluate, arguments: tuple[str, ...], message: str
) -> None:
    with OpenAIServer() as server:
        assert message in refusal(evaluate(server, "--tasks", "gen_terra", *arguments))
        assert server.requests == 0


def test_an_endpoints_options_need_one_and_its_address_a_host(
    evaluate: Evaluate, tmp_path: Path, environment: dict[str, str]
) -> None:
    for option in (("--concurrency", "4"), ("--timeout", "5"), ("--api-key-file", "key")):
        said = refusal(call_here(("run", "--tasks", "gen_terra", *option), tmp_path, environment))
        assert f"{option[0]} is for a model behind a server" in said
    assert "--endpoint 'localhost:8000/v1' is no address" in refusal(evaluate("localhost:8000/v1"))


def test_a_checkpoints_heads_are_not_asked_through_a_server(evaluate: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / DESCRIPTION).touch()
    with OpenAIServer() as server:
        said = refusal(evaluate(server, "--tasks", "gen_terra", "--model", tmp_path / "checkpoint"))
    assert "is a checkpoint, whose heads answer on this machine only" in said
