"""`rsg-harness run --endpoint` has the answers and figures of a run on this machine, and sends what it should."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.data import cached_split
from harness.records.run import read_run
from harness.tasks import registry
from tests.integration.command import call_here
from tests.integration.endpoint import KEY, Done, Evaluate, bodies, finished, refusal, samples
from tests.lm_eval_tasks import write_lm_eval_tasks
from tests.openai_server import TEACHER, Behaviour, OpenAIServer
from tests.served_model import ServedModel
from tests.tiny_gemma import CHAT_TEMPLATE, make_tiny_gemma

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


def test_a_chat_that_is_asked_for_is_not_replaced(evaluate: Evaluate, server: OpenAIServer) -> None:
    said = refusal(evaluate(server, "--tasks", "gen_terra", "--apply-chat-template", "on"))
    assert "status 400: As of transformers" in said
    assert "--apply-chat-template off asks by the completions API" in said


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
