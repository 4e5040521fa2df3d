"""The self-check passes a right backend and refuses a wrong one with both numbers."""

from __future__ import annotations

import numpy as np
import pytest

from adapters.base import UserError
from adapters.torch_backend import TorchBackend, load_torch
from harness.models.check import TOLERANCES, check_backend
from harness.scoring.encoding import TextEncoder
from tests.tiny_gemma import make_tiny_gemma


@pytest.fixture
def backend(tmp_path) -> TorchBackend:
    return load_torch("torch-cpu", make_tiny_gemma(tmp_path / "gemma"), device="cpu", dtype="float32")


def test_a_right_backend_passes(backend):
    assert check_backend(backend, TextEncoder(backend.tokenizer)) < TOLERANCES["float32"]


def test_wrong_logits_are_refused_with_both_numbers(backend, monkeypatch):
    project = backend.project
    monkeypatch.setattr(backend, "project", lambda *given: (project(*given)[0] - 0.01, project(*given)[1]))
    with pytest.raises(UserError, match=r"log-probability -\d+\.\d+, and -\d+\.\d+ by torch's own"):
        check_backend(backend, TextEncoder(backend.tokenizer))


def test_a_prefix_that_is_forgotten_is_refused(backend, monkeypatch):
    hidden_states = backend.hidden_states
    monkeypatch.setattr(
        backend, "hidden_states", lambda rows, positions, prefix, keep: hidden_states(rows, positions, None, keep)
    )
    with pytest.raises(UserError, match="cannot be scored"):
        check_backend(backend, TextEncoder(backend.tokenizer))


def test_nan_is_refused(backend, monkeypatch):
    monkeypatch.setattr(backend, "library_logprobs", lambda tokens: np.full(len(tokens) - 1, np.nan))
    with pytest.raises(UserError, match="cannot be scored"):
        check_backend(backend, TextEncoder(backend.tokenizer))
