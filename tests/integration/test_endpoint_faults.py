"""`rsg-harness run --endpoint` against a stand-in that fails on demand: what is kept, and what the user is told."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from harness.data import cached_split
from harness.endpoint import connection
from harness.models.checkpoint import DESCRIPTION
from harness.records.run import read_run
from tests.integration.command import RSG_HARNESS, call_here, heed_interrupts
from tests.integration.endpoint import KEY, Evaluate, finished, given_to, refusal, samples
from tests.openai_server import TEACHER, Behaviour, OpenAIServer
from tests.served_model import ServedModel
from tests.tiny_gemma import make_tiny_gemma

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
    assert f"lists no model stand-on: did you mean {TEACHER}?" in done.stderr


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
