"""The checks of `rsg-harness doctor --check`, on whatever device is here: `pytest -m device`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from adapters.registry import AS_IT_STANDS, BACKENDS
from harness.device_check import check as device_check
from harness.device_check import check_devices, checks_table, write_checks
from harness.device_check.check import CheckedBackend
from tests.integration.command import Command
from tests.tiny_models import make_tiny_model

pytestmark = [pytest.mark.device, pytest.mark.xdist_group("device")]


@pytest.fixture(scope="module")
def results() -> list[CheckedBackend]:
    return check_devices()


def test_every_backend_computes_the_right_numbers(results: list[CheckedBackend]) -> None:
    wrong = [result for result in results if result.problem]
    assert not wrong, checks_table(wrong)


def test_every_backend_and_kind_of_model_is_checked(results: list[CheckedBackend]) -> None:
    others = (
        "torch",
        AS_IT_STANDS,
    )  # one of the devices by another name; a backend of files, and these are directories
    here = {name for name, kind in BACKENDS.items() if not kind.family.problem(kind) and name not in others}
    assert {result.backend for result in results} == here
    assert {result.model for result in results} == {"gemma3_text", "qwen3", "llama"}
    for result in results:
        assert (result.tokens_per_second or 0) > 0
        assert result.prefix is not None
        # 16 bits differ, or nothing was compared
        exact = 1e-2 if result.execution == "llama.cpp" else 1e-3  # whose table for GELU holds 16-bit numbers
        assert ((result.logprobs or 0) > exact) == (result.dtype != "float32"), result
    assert any(result.gradient is not None for result in results)


def test_the_results_can_be_sent(results: list[CheckedBackend], tmp_path: Path) -> None:
    write_checks(tmp_path / "check.json", results)
    content = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert content["checks"][0] == dataclasses.asdict(results[0])
    assert content["machine"]["cores"] > 0


def test_a_backend_that_computes_wrong_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that is off by one percent, as that of a faulty kernel might be."""
    from adapters import torch_attention

    plain = torch_attention.grouped_attention

    def inexact(*args: object, **options: object) -> object:
        found = plain(*args, **options)  # type: ignore[arg-type]
        return found[0] * 1.01, None

    monkeypatch.setitem(torch_attention.AttentionInterface._global_mapping, torch_attention.CPU_ATTENTION, inexact)
    monkeypatch.setattr(device_check, "ARCHITECTURES", {"llama": device_check.ARCHITECTURES["llama"]})
    monkeypatch.setattr(device_check, "BACKENDS", {"torch-cpu": BACKENDS["torch-cpu"]})
    float32 = next(result for result in check_devices() if result.dtype == "float32")
    assert float32.problem.startswith("logprobs off by")
    assert (float32.logprobs or 0) > 1e-3


def test_the_command_checks_a_model_of_the_user(
    rsg_harness: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: BACKENDS[name] for name in ("torch-cpu", "mlx-q4")}
    monkeypatch.setattr(device_check, "BACKENDS", some)
    model = make_tiny_model("qwen2", tmp_path / "mine")
    done = rsg_harness("doctor", "--check", "--model", model, "--json", "check.json")
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
    assert "checks passed" in done.stdout
    checked = json.loads((tmp_path / "check.json").read_text())["checks"]
    assert {"mine", "llama"} <= {check["model"] for check in checked}
    assert not list((tmp_path / "cache").glob("models/*gemma3*"))
    quantised = rsg_harness("quantize", "--model", model, "--bits", "4", "--group-size", "32", "--output", "four")
    assert quantised.returncode == 0, quantised.stderr
    done = rsg_harness("doctor", "--check", "--model", "four")
    assert done.returncode == 0, done.stderr
    assert "not run: " in done.stdout


def test_options_of_the_check_need_it(rsg_harness: Command) -> None:
    done = rsg_harness("doctor", "--json", "check.json")
    assert done.returncode == 2
    assert "--json goes with --check" in done.stderr
    done = rsg_harness("doctor", "--check", "--model", "nowhere")
    assert done.returncode == 2
    assert "no model 'nowhere'" in done.stderr
