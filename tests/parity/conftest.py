"""The tiny models that several parity suites hold against plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.tiny_gemma import VOCABULARY_SIZE, make_tiny_gemma


@pytest.fixture(scope="module", params=["tied", "untied"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_gemma(tmp_path_factory.mktemp("gemma"), tie_word_embeddings=request.param == "tied")


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture
def random_sequence() -> Callable[[int], list[int]]:
    generator = np.random.default_rng(7)
    return lambda length: [2, *generator.integers(6, VOCABULARY_SIZE, length - 1).tolist()]
