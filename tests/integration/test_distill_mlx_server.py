"""`rsg-harness distill` against a real `mlx_lm.server`: the soft labels are those that transformers computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.data import cached_split
from harness.distillation.lines import LabelLine, read_lines
from harness.distillation.options import DistillOptions, chosen_tasks
from harness.distillation.prompts import Question, Renderer
from harness.models.chat import chat_template
from harness.tasks.rendering import load_tasks
from tests.integration.command import call_here
from tests.tiny_gemma import WHOLE_WORDS, make_tiny_gemma

pytestmark = pytest.mark.slow

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>user\n{{ message['content'] }}<end_of_turn>\n"
    "{% endfor %}<start_of_turn>model\n"
)
ROWS = [document.row() for document in cached_split("terra", "train", "mini").documents]


def token_lists(directory: Path, api: str) -> list[list[int]]:
    """Return the token ids that the server should make of each document's prompt."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    options = DistillOptions("http://-/v1", "-", Path("-"), tasks=("terra",), api=api)
    chosen = chosen_tasks(options)
    renderer = Renderer(chosen, load_tasks(chosen, data="mini", split="train"), options)
    prompts = [renderer.prompt(Question("-", "terra", row)) for row in ROWS]
    if api == "completions":
        return [tokenizer(prompt).input_ids for prompt in prompts]
    template = chat_template(tokenizer)
    turns = [template.text([{"role": "user", "content": prompt}]) for prompt in prompts]
    return [tokenizer(turn, add_special_tokens=False).input_ids for turn in turns]


@torch.no_grad()
def last_states(model: Any, lists: list[list[int]]) -> torch.Tensor:
    """Return the last hidden state of each prompt, float32 [prompts, hidden size]."""
    return torch.stack([model.model(torch.tensor([tokens])).last_hidden_state[0, -1] for tokens in lists])


@pytest.fixture(scope="module")
def answering_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma that answers " да" or " нет" with some confidence: these rows are turned to its last states."""
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    directory = make_tiny_gemma(
        tmp_path_factory.mktemp("models") / "answering",
        dtype="float32",
        max_position_embeddings=4096,
        sliding_window_pattern=6,  # mlx-lm's default, which does not read layer_types
    )
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(directory)
    model = Gemma3ForCausalLM.from_pretrained(directory, dtype=torch.float32)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in WHOLE_WORDS[:2])
    lists = token_lists(directory, "completions") + token_lists(directory, "chat")
    rows = model.get_input_embeddings().weight.data
    for _ in range(4):  # the words stand in the prompts too, so the states move with their rows
        states = last_states(model, lists)
        mean = states.mean(0)
        towards = 14 * mean / mean.dot(mean)
        spread = torch.linalg.svd(states - mean)[2][0]
        spread -= mean * spread.dot(mean) / mean.dot(mean)
        spread *= 0.5 / (states @ spread).std()
        rows[yes], rows[no] = towards + spread, towards - spread
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mlx_server(answering_model: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_lm", "server", "--model", str(answering_model), "--host", "127.0.0.1",
         "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_soft_labels_are_the_probabilities_of_the_models_words(
    answering_model: Path, mlx_server: str, shared_environment: dict[str, str], tmp_path: Path, api: str
) -> None:
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    output = tmp_path / "out"
    arguments = (
        "distill", "--endpoint", mlx_server, "--teacher", answering_model, "--tasks", "terra", "--api", api, "--output",
        output, "--max-tokens", "3", "--concurrency", "4",
    )  # fmt: skip
    done = call_here(arguments, tmp_path, shared_environment)
    assert done.returncode == 0, done.stderr
    model = Gemma3ForCausalLM.from_pretrained(answering_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(answering_model)
    lists = token_lists(answering_model, api)
    with torch.no_grad():
        logits = model.lm_head(last_states(model, lists))
    shares = torch.softmax(logits, -1).numpy()
    # The server gives the ten likeliest tokens.
    shares[shares < np.sort(shares, axis=1)[:, -10:-9]] = 0
    words = [tokenizer.decode([token]).strip().lower() for token in range(shares.shape[1])]
    begins = np.array([[bool(word) and choice.startswith(word) for word in words] for choice in ("да", "нет")])
    expected = shares @ begins.T
    lines = {line.idx: line for line in read_lines(output) if isinstance(line, LabelLine)}
    assert len(lines) == len(ROWS)
    for row, tokens, share in zip(ROWS, lists, expected, strict=True):
        line = lines[row["idx"]]
        assert line.usage.prompt_tokens == len(tokens)
        assert (line.how, line.sampling.top_logprobs) == ("logprobs", 10)
        assert line.probabilities == pytest.approx((share / share.sum()).tolist(), abs=1e-3)
        assert line.rest == pytest.approx(1 - share.sum(), abs=1e-3)
    confidences = [max(line.probabilities or [0]) for line in lines.values()]
    assert max(confidences) - min(confidences) > 0.01  # ten times the tolerance: a label of each document


def test_a_wrong_model_is_named(mlx_server: str, shared_environment: dict[str, str], tmp_path: Path) -> None:
    arguments = (
        "distill", "--endpoint", mlx_server, "--teacher", "no/such-model", "--tasks", "terra", "--api", "completions",
        "--output", tmp_path / "out",
    )  # fmt: skip
    done = call_here(arguments, tmp_path, shared_environment)
    assert done.returncode == 2, done.stderr
    assert f"{mlx_server} has no model 'no/such-model'" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["teacher"] == "no/such-model"
