"""`rsg-harness distill` against a stand-in server that fails on demand."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.data import cached_split
from harness.distillation.lines import ANSWERS, DocumentLine, LabelLine, document_hash, read_lines
from harness.tasks import RUSSIAN_SUPERGLUE, trainable_tasks
from tests.integration.command import RSG_HARNESS, call_here, call_process, heed_interrupts
from tests.openai_server import TEACHER, Behaviour, OpenAIServer, picked

Distill = Callable[..., subprocess.CompletedProcess[str]]
KEY = "sk-a-key-of-the-tests-0123456789"


@pytest.fixture
def distill(environment: dict[str, str], tmp_path: Path) -> Distill:
    """Runs the command in this process, into tmp_path/out unless told otherwise, with `key` in the environment."""

    def call(
        server: OpenAIServer | str, *arguments: str | Path, key: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        given = given_to(server, tmp_path / "out", *arguments)
        return call_here(given, tmp_path, {**environment, "OPENAI_API_KEY": key or ""})

    return call


def given_to(server: OpenAIServer | str, output: Path, *arguments: str | Path) -> list[str | Path]:
    """Return the command's arguments, with the stand-in's name and the output where none are given."""
    endpoint = server if isinstance(server, str) else server.url
    given = list(map(str, arguments))
    defaults = {"--teacher": TEACHER, "--output": str(output)}
    missing = [part for name, value in defaults.items() if name not in given for part in (name, value)]
    return ["distill", "--endpoint", endpoint, *missing, *given]


def finished(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if "rsg-harness: error:" in line]
    return line


def labels(directory: Path) -> list[LabelLine]:
    found = list(read_lines(directory))
    assert all(isinstance(line, LabelLine) for line in found)
    return [line for line in found if isinstance(line, LabelLine)]


def rows(task: str, split: str = "train") -> list[dict[str, Any]]:
    return [document.row() for document in cached_split(task, split, "mini").documents]


def prompts(server: OpenAIServer) -> list[str]:
    return [body["messages"][-1]["content"] if "messages" in body else body["prompt"] for body in server.bodies]


# --- labels -----------------------------------------------------------------------------------------------------------


def test_every_train_document_is_labelled_and_no_other_is_sent(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        done = distill(server, "--split", "train")
        sent = prompts(server)
    said = finished(done)
    assert "left out: lidirus is a test set" in done.stderr
    asked = {task: rows(task) for task in trainable_tasks()}
    lines = labels(tmp_path / "out")
    assert len(lines) == len({line.key for line in lines}) == sum(map(len, asked.values()))
    assert len(sent) == len(lines) + 1  # and the probe
    hashes = {hashlib.sha256(prompt.encode()).hexdigest(): prompt for prompt in sent}
    for line in lines:
        assert line.teacher == TEACHER
        [row] = [row for row in asked[line.task] if row["idx"] == line.idx]
        assert line.document_sha256 == document_hash(row)
        text = picked(hashes[line.prompt_sha256], ("да", "нет"))
        assert line.texts == [text]
        if line.task == "rucos":
            assert line.gold == [row["entities"].index(answer) for answer in row["answers"]]
            assert line.outcome == "unparsable"
            continue
        assert line.gold == row["label"]
        assert (line.how, line.sampling.top_logprobs) == ("logprobs", 20)
        if line.task in ("terra", "danetqa"):
            # The generated word has 0.7, the other three words of the stand-in share 0.2.
            yes = 0.7 if text == "да" else 0.2 / 3
            expected = yes / (0.7 + 0.2 / 3)
            assert line.probabilities is not None
            assert line.probabilities[0 if line.task == "terra" else 1] == pytest.approx(expected)
            assert line.rest == pytest.approx(0.3 - 0.2 / 3)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    terra = [line for line in lines if line.task == "terra" and line.probabilities]
    right = sum((line.probabilities or [0]).index(max(line.probabilities or [0])) == line.gold for line in terra)
    assert report["tasks"]["terra"]["agreement_with_gold"] == pytest.approx(right / len(terra))
    assert report["tasks"]["rucos"]["unparsable"] == len(asked["rucos"])
    assert report["usage"]["completion_tokens"] == len(lines)
    assert said.strip() in (tmp_path / "out" / "report.md").read_text()
    everything = "\n".join(sent)
    hidden = [row for task in RUSSIAN_SUPERGLUE for row in rows(task, "validation")]
    shared = {text for task in asked for row in asked[task] for text in texts_of(row)}
    secret = {text for row in hidden for text in texts_of(row)} - shared
    assert len(secret) > 300
    assert not [text for text in secret if text in everything]


def texts_of(row: dict[str, Any]) -> set[str]:
    """The whole sentences of a document; RuCoS's passage is shown without its marks."""
    fields = ("premise", "hypothesis", "sentence1", "sentence2", "text", "passage", "paragraph", "query", "choice1")
    return {row[name].split("@highlight")[0].strip() for name in fields if len(row.get(name, "")) > 25}


@pytest.mark.parametrize("shape", ["vllm", "llama.cpp", "mlx"])
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_three_servers_and_two_apis_give_the_same_soft_labels(
    distill: Distill, tmp_path: Path, shape: str, api: str
) -> None:
    most = 11 if shape == "mlx" else 20
    with OpenAIServer(Behaviour(shape=shape, most_logprobs=most)) as server:
        finished(distill(server, "--tasks", "terra", "--api", api))
        sent = prompts(server)
    for line in labels(tmp_path / "out"):
        assert line.how == "logprobs"
        assert line.sampling.top_logprobs == (10 if shape == "mlx" else 20)
        assert line.probabilities is not None
        assert max(line.probabilities) == pytest.approx(0.7 / (0.7 + 0.2 / 3))
    assert all(prompt.endswith("Ответ:") for prompt in sent) == (api == "completions")


def test_a_server_without_log_probabilities_is_read_by_its_words(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer(Behaviour(shape="none", texts=("Да.", "Нет, не следует", "мяу", "Извините, не могу."))) as server:
        done = distill(server, "--tasks", "terra")
    finished(done)
    assert "gives no log-probabilities" in done.stderr
    found = Counter((line.texts[0], line.outcome, line.how) for line in labels(tmp_path / "out"))
    assert set(found) <= {
        ("Да.", "answered", "text"), ("Нет, не следует", "answered", "text"), ("мяу", "unparsable", None),
        ("Извините, не могу.", "refused", None),
    }  # fmt: skip
    assert len(found) == 4
    report = json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]["terra"]
    assert report["refused"] == sum(n for (_, outcome, _), n in found.items() if outcome == "refused")
    assert report["unparsable"] == sum(n for (_, outcome, _), n in found.items() if outcome == "unparsable")


@pytest.mark.parametrize("status", [400, 403])
def test_a_server_that_refuses_log_probabilities_is_read_by_its_words(
    distill: Distill, tmp_path: Path, status: int
) -> None:
    with OpenAIServer(Behaviour(logprobs_status=status)) as server:
        finished(distill(server, "--tasks", "terra", "--limit", "4"))
    assert {line.how for line in labels(tmp_path / "out")} == {"text"}


def test_a_parameter_that_the_server_does_not_take_is_left_out_or_called_otherwise(
    distill: Distill, tmp_path: Path
) -> None:
    with OpenAIServer(Behaviour(unsupported=("max_tokens", "temperature"))) as server:
        done = distill(server, "--tasks", "terra", "--limit", "4")
    finished(done)
    assert "refuses max_tokens" in done.stderr
    asked = server.bodies[-1]
    assert asked["max_completion_tokens"] == 24
    assert {"max_tokens", "temperature"}.isdisjoint(asked)
    assert len(labels(tmp_path / "out")) == 4


def test_an_error_with_status_200_is_shown_in_the_servers_words(distill: Distill) -> None:
    with OpenAIServer(Behaviour(error="daily quota used up")) as server:
        done = distill(server, "--tasks", "terra", "--limit", "4")
    assert done.returncode == 2
    assert "daily quota used up" in done.stderr.splitlines()[-1]


def test_several_samples_differ_by_their_seed_and_become_shares(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        finished(distill(server, "--tasks", "rcb", "--samples", "3", "--limit", "5", "--seed", "7"))
        bodies = server.bodies[1:]
    lines = labels(tmp_path / "out")
    assert len(lines) == 5
    assert {line.how for line in lines} == {"samples"}
    assert all(len(line.texts) == 3 and max(line.probabilities or []) == 1 for line in lines)
    assert Counter(body["seed"] for body in bodies) == {7: 5, 8: 5, 9: 5}
    assert all(body["temperature"] == 0.7 and "logprobs" not in body for body in bodies)


def test_an_explanation_is_asked_for_and_kept(distill: Distill, tmp_path: Path) -> None:
    text = "Да, дождь упомянут, но не в этот день.\nОтвет: нет"
    with OpenAIServer(Behaviour(texts=(text,), shape="none")) as server:
        finished(distill(server, "--tasks", "terra", "--rationale", "--limit", "3"))
        assert all("напишите «Ответ:»" in prompt for prompt in prompts(server))
    for line in labels(tmp_path / "out"):
        assert line.rationale == "Да, дождь упомянут, но не в этот день."
        assert line.probabilities == [0, 1]


def test_answers_that_are_cut_are_counted_and_reported(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer(
        Behaviour(texts=("Начнём с того, что", "нет, потому что"), shape="none", finish="length")
    ) as server:
        said = finished(distill(server, "--tasks", "terra"))
    lines = labels(tmp_path / "out")
    lost = sum(line.probabilities is None for line in lines)
    assert 0 < lost < len(lines)
    assert f"{len(lines)} answers end at --max-tokens 24, {lost} of them before they answer" in said


def test_prices_give_an_estimate_and_a_sum(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer() as server:
        done = distill(server, "--tasks", "terra", "--price-input", "1000", "--price-output", "2000")
    said = finished(done)
    assert "at most about" in done.stderr
    usage = json.loads((tmp_path / "out" / "report.json").read_text())["usage"]
    cost = (usage["prompt_tokens"] * 1000 + usage["completion_tokens"] * 2000) / 1e6
    assert f"cost {cost:.2f}" in said


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["429", "500", "503", "drop", "half", "garbage", "nothing", "hang"])
def test_a_fault_that_passes_costs_nothing_but_time(distill: Distill, tmp_path: Path, fault: str) -> None:
    behaviour = Behaviour(faults=("", "", fault, "", fault, fault), retry_after=0.05)
    with OpenAIServer(behaviour) as server:
        finished(distill(server, "--tasks", "terra", "--timeout", "1.5" if fault == "hang" else "60"))
        assert server.requests == 24 + 1 + 3
    keys = [line.key for line in labels(tmp_path / "out")]
    assert len(keys) == len(set(keys)) == 24


def test_the_wait_that_the_server_asks_for_is_obeyed(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer(Behaviour(faults=("", "429"), retry_after=3)) as server:
        finished(distill(server, "--tasks", "terra", "--limit", "2", "--concurrency", "1"))
        times = server.times
    assert len(times) == 4
    assert times[2] - times[1] >= 3
    assert times[3] - times[2] < 1


def test_a_question_that_is_refused_is_left_open_and_the_rest_goes_on(distill: Distill, tmp_path: Path) -> None:
    refused = [row["premise"] for row in rows("terra")[3:9]]
    with OpenAIServer(Behaviour(refused=tuple(refused))) as server:
        done = distill(server, "--tasks", "terra")
    message = refusal(done)
    assert "6 of 24 items got no answer" in message
    assert "status 400: 'max_tokens' is too large: the maximum context length is exceeded" in message
    assert "--resume" in message
    assert "18 of 24 items answered" in done.stdout
    with OpenAIServer() as server:
        said = finished(distill(server, "--tasks", "terra", "--resume"))
        assert server.requests == 6 + 1
    assert "24 of 24 items answered" in said
    assert len({line.key for line in labels(tmp_path / "out")}) == len(labels(tmp_path / "out")) == 24


def test_a_server_that_dies_stops_the_work_and_loses_nothing(distill: Distill, tmp_path: Path) -> None:
    with OpenAIServer(Behaviour(dead_after=11, retry_after=0.01)) as server:
        message = refusal(distill(server, "--tasks", "terra", "--concurrency", "4"))
    assert "5 questions in a row got no answer" in message
    assert "status 500" in message
    assert len(labels(tmp_path / "out")) == 10
    with OpenAIServer() as server:
        finished(distill(server, "--tasks", "terra", "--resume"))
        assert server.requests == 14 + 1
    assert len({line.key for line in labels(tmp_path / "out")}) == 24


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interruption_keeps_what_was_answered(
    environment: dict[str, str], distill: Distill, tmp_path: Path, number: signal.Signals
) -> None:
    with OpenAIServer(Behaviour(seconds=0.1)) as server:
        process = subprocess.Popen(
            [RSG_HARNESS, *given_to(server, tmp_path / "out", "--tasks", "muserc", "--concurrency", "4")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
        )  # fmt: skip
        wait_for_lines(process, tmp_path / "out" / ANSWERS, 9)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in said
        assert "--resume" in said
        before = labels(tmp_path / "out")
        assert 9 <= len(before) < 186
        finished(distill(server, "--tasks", "muserc", "--resume", "--concurrency", "16"))
    after = labels(tmp_path / "out")
    assert after[: len(before)] == before
    assert len({line.key for line in after}) == len(after) == 186


def wait_for_lines(process: subprocess.Popen[str], path: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_no_more_is_asked_at_once_than_allowed(distill: Distill) -> None:
    with OpenAIServer(Behaviour(seconds=0.05)) as server:
        finished(distill(server, "--tasks", "muserc", "--concurrency", "7"))
        assert server.most_at_once == 7


@pytest.mark.slow
def test_ten_thousand_items_survive_a_kill_whole_and_single(environment: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "TERRa").mkdir(parents=True)
    documents = [
        {"premise": f"В доме номер {n} живут люди.", "hypothesis": f"Дом {n} жилой.", "label": "entailment", "idx": n}
        for n in range(10_000)
    ]
    (data / "TERRa" / "train.jsonl").write_text(
        "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8"
    )
    arguments = ("--tasks", "terra", "--data", data, "--concurrency", "64")
    with OpenAIServer() as server:
        process = subprocess.Popen(
            [RSG_HARNESS, *given_to(server, tmp_path / "out", *arguments)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_for_lines(process, tmp_path / "out" / ANSWERS, 3000)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = sum(1 for _ in read_lines(tmp_path / "out"))
        assert 3000 <= kept < 10_000
        # In a process of its own too: the server's thread needs this one.
        done = call_process(given_to(server, tmp_path / "out", *arguments, "--resume"), tmp_path, environment)
        said = finished(done)
    assert "10,000 of 10,000 items answered" in said
    found = Counter(line.idx for line in labels(tmp_path / "out"))
    assert found == Counter(range(10_000))
    print(f"{10_000 - kept} items after the kill: {done.stderr.splitlines()[-1].rpartition('[')[2]}")


# --- what the user can fix --------------------------------------------------------------------------------------------


def test_an_endpoint_that_is_down_is_named(distill: Distill, tmp_path: Path) -> None:
    assert "cannot reach http://127.0.0.1:9/v1" in refusal(distill("http://127.0.0.1:9/v1", "--tasks", "terra"))
    with OpenAIServer() as server:  # the failed attempt left nothing in the way
        finished(distill(server, "--tasks", "terra", "--limit", "2"))


def test_a_wrong_model_names_the_right_one(distill: Distill) -> None:
    with OpenAIServer() as server:
        message = refusal(distill(server, "--tasks", "terra", "--teacher", "stand-on"))
    assert "has no model 'stand-on': The model `stand-on` does not exist." in message
    assert "did you mean stand-in?" in message


def test_a_server_that_never_speaks_json_is_named(distill: Distill) -> None:
    with OpenAIServer(Behaviour(faults=("garbage",) * 9)) as server:
        assert "not an answer of an OpenAI-compatible server: invalid json" in refusal(
            distill(server, "--tasks", "terra")
        )


def test_the_key_is_sent_and_stands_nowhere(distill: Distill, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    with OpenAIServer(Behaviour(key=KEY)) as server:
        message = refusal(distill(server, "--tasks", "terra", key="sk-wrong-key"))
        assert "refuses the API key: Incorrect API key provided: KEY" in message
        assert "OPENAI_API_KEY" in message
        outputs = [
            distill(server, "--tasks", "terra", key=KEY),
            distill(server, "--tasks", "terra", "--api-key-file", path, "--output", tmp_path / "other"),
        ]
    written = [file.read_text() for out in ("out", "other") for file in (tmp_path / out).iterdir()]
    for done in outputs:
        finished(done)
        written += [done.stdout, done.stderr]
    assert len(written) == 12
    assert not [text for text in written if KEY in text]


def test_other_settings_are_refused_and_named(distill: Distill) -> None:
    with OpenAIServer() as server:
        finished(distill(server, "--tasks", "terra", "--limit", "2"))
        asked = server.requests
        assert "holds a distillation" in refusal(distill(server, "--tasks", "terra", "--limit", "2"))
        message = refusal(distill(server, "--tasks", "terra", "--limit", "2", "--temperature", "0.5", "--resume"))
        assert "sampling.temperature (0.0, now 0.5)" in message
        assert "limit (2, now 3)" in refusal(distill(server, "--tasks", "terra", "--limit", "3", "--resume"))
        # Where the teacher stands, and how many are asked at once, is no setting; nothing is left to ask.
        assert "2 of 2" in finished(
            distill("http://127.0.0.1:9/v1", "--tasks", "terra", "--limit", "2", "--concurrency", "2", "--resume")
        )
        assert server.requests == asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--split", "validation"), "only train documents are sent"),
        (("--split", "test"), "only train documents are sent"),
        (("--tasks", "terra,lidirus"), "lidirus is a test set"),
        (("--tasks", "tera"), "unknown task 'tera'"),
        (("--data", "nowhere"), "no data source 'nowhere'"),
        (("--generate", "poems"), "--generate 'poems' is unknown"),
    ],
)
def test_what_must_not_be_asked_reaches_no_server(distill: Distill, arguments: tuple[str, ...], message: str) -> None:
    with OpenAIServer() as server:
        assert message in refusal(distill(server, *arguments))
        assert server.requests == 0


# --- documents --------------------------------------------------------------------------------------------------------


def documents(directory: Path) -> list[DocumentLine]:
    return [line for line in read_lines(directory) if isinstance(line, DocumentLine)]


def test_written_documents_are_checked_compared_and_counted(distill: Distill, tmp_path: Path) -> None:
    """Four answers: a new document, each time with a number of its own, one of the validation split, a broken one,
    and words."""
    stolen = rows("rcb", "validation")[0]
    new = {"premise": "Слово {hash} написал на доске учитель и ушёл.", "hypothesis": "На доске есть слово {hash}."}
    texts = (
        json.dumps(new, ensure_ascii=False),
        json.dumps({"premise": stolen["premise"], "hypothesis": stolen["hypothesis"]}, ensure_ascii=False),
        '{"premise": "Текст без утверждения."}',
        "Не могу.",
    )
    with OpenAIServer(Behaviour(texts=texts)) as server:
        done = distill(server, "--tasks", "rcb", "--generate", "examples", "--count", "40")
        sent = prompts(server)
    finished(done)
    lines = documents(tmp_path / "out")
    assert len({line.key for line in lines}) == len(lines) == 40
    reasons = Counter(line.dropped for line in lines)
    assert set(reasons) >= {"the same as in rcb validation", "no text in the field hypothesis", "no JSON object"}
    kept = [line.document for line in lines if line.document is not None]
    assert kept
    assert {row["label"] for row in kept} <= {0, 1, 2}
    # The new ones are too like each other to be all kept, and nothing of a refused one is.
    assert stolen["premise"] not in (tmp_path / "out" / ANSWERS).read_text(encoding="utf-8")
    assert stolen["premise"] not in "".join(sent)
    assert "rcb test (the mini set has no test split" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())["tasks"]["rcb"]
    assert report["kept"] == len(kept)
    assert report["dropped"] == {reason: count for reason, count in reasons.items() if reason}
    assert sum(report["labels"].values()) == len(kept)


def test_resuming_compares_with_what_was_kept_before(distill: Distill, tmp_path: Path) -> None:
    text = json.dumps({"premise": "На столе лежит книга.", "choice1": "Её читали.", "choice2": "Её съели.",
                       "question": "cause"}, ensure_ascii=False)  # fmt: skip
    refused = Behaviour(texts=(text,), refused=(rows("parus")[5]["premise"],))
    with OpenAIServer(refused) as server:
        refusal(distill(server, "--tasks", "parus", "--generate", "paraphrases", "--count", "24"))
    with OpenAIServer(Behaviour(texts=(text,))) as server:
        finished(distill(server, "--tasks", "parus", "--generate", "paraphrases", "--count", "24", "--resume"))
    lines = documents(tmp_path / "out")
    assert Counter(line.dropped for line in lines) == {None: 1, "the same as in another new one": 23}


def test_paraphrases_keep_the_label_of_their_source(distill: Distill, tmp_path: Path) -> None:
    text = json.dumps({"text": "Мальчик {hash} позвал друга {hash}, но он не пришёл.", "span1_text": "Мальчик",
                       "span2_text": "он не пришёл"}, ensure_ascii=False)  # fmt: skip
    with OpenAIServer(Behaviour(texts=(text,))) as server:
        finished(distill(server, "--tasks", "rwsd", "--generate", "paraphrases", "--count", "30"))
        sent = prompts(server)[1:]
    assert all("Перескажите текст другими словами" in prompt for prompt in sent)
    lines = documents(tmp_path / "out")
    assert len(lines) == 30
    assert Counter(line.key.rpartition("/")[2] for line in lines) == {"0": 24, "1": 6}
    by_idx = {row["idx"]: row for row in rows("rwsd")}
    kept = [line for line in lines if line.document is not None]
    assert len(kept) >= 20
    for line in kept:
        assert line.document is not None
        assert line.document["label"] == by_idx[line.idx]["label"]
        assert line.document["span2_start"] > line.document["span1_start"] == 8 - len("Мальчик ")
