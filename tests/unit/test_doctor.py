from __future__ import annotations

import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from adapters import gguf_family, mlx_family, torch_family
from adapters.registry import BACKENDS
from harness import doctor


def fake_torch(*, cuda=False, mps=False, version="2.11.0", bfloat16=True):
    mkldnn = SimpleNamespace(_is_mkldnn_bf16_supported=lambda: bfloat16)
    return SimpleNamespace(
        __version__=version,
        cuda=SimpleNamespace(is_available=lambda: cuda, is_bf16_supported=lambda: bfloat16),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)),
        ops=SimpleNamespace(mkldnn=mkldnn),
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A Linux machine with PyTorch on the processor and MLX without a GPU, in an empty directory. Gives a changer."""

    def become(*, torch=None, mlx="", metal=False, system="Linux"):
        found = fake_torch() if torch is None else torch
        monkeypatch.setattr(torch_family, "import_torch", lambda: found)
        monkeypatch.setattr(mlx_family, "mlx_problem", lambda: mlx)
        monkeypatch.setattr(mlx_family, "metal_is_there", lambda: metal)
        monkeypatch.setattr(doctor.platform, "system", lambda: system)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("RSG_DATA", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * doctor.GIB))
    become()
    return become


def here():
    return {name: availability for name, availability, _ in doctor.backend_rows()}


def found(name):
    """The value and the advice of a line of the report."""
    lines = doctor.report().splitlines()
    number = next(number for number, line in enumerate(lines) if line.strip().startswith(f"{name}  "))
    advice = lines[number + 1].strip() if number + 1 < len(lines) else ""
    return lines[number].strip().removeprefix(name).strip(), advice.removeprefix("-> ") if "->" in advice else ""


def test_every_backend_has_a_row_with_its_summary():
    assert [(name, summary) for name, _, summary in doctor.backend_rows()] == [
        (kind.name, kind.summary) for kind in BACKENDS.values()
    ]


def test_without_a_gpu_mlx_backends_are_computed_by_torch():
    rows = here()
    assert rows["torch"] == rows["torch-cpu"] == "yes"
    assert rows["torch-mps"] == "no: PyTorch finds no mps device"
    assert rows["torch-cuda"] == "no: PyTorch finds no cuda device"
    assert {rows[name] for name in rows if name.startswith("mlx")} == {"yes, computed by torch"}


def test_on_an_apple_gpu_mlx_computes_itself(machine):
    machine(torch=fake_torch(mps=True), metal=True, system="Darwin")
    rows = here()
    assert rows["torch-mps"] == rows["mlx-q4"] == "yes"
    assert rows["torch-cuda"].startswith("no")


def test_without_mlx_its_backends_say_so(machine):
    machine(mlx="mlx is not installed")
    assert here()["mlx-q4"] == "no: mlx is not installed"
    value, advice = found("mlx-* backends")
    assert value == "mlx is not installed"
    assert advice == "pip install 'mlx[cpu]' mlx-lm"


def test_without_torch_nothing_runs_but_the_report_is_still_made(machine):
    machine(torch="PyTorch is not installed")
    others = {value for name, value in here().items() if not name.startswith("gguf")}  # llama.cpp needs no PyTorch
    assert others == {"no: PyTorch is not installed"}
    assert found("devices of torch") == ("PyTorch is not installed", "pip install 'torch>=2.11'")


def test_a_torch_that_cannot_be_loaded_is_a_finding(monkeypatch):
    monkeypatch.undo()
    torch_family.import_torch.cache_clear()
    monkeypatch.setattr(torch_family, "is_installed", lambda module: True)
    monkeypatch.setitem(sys.modules, "torch", None)
    try:
        assert str(torch_family.import_torch()).startswith("PyTorch cannot be loaded: ")
    finally:
        torch_family.import_torch.cache_clear()


@pytest.mark.parametrize(
    ("version", "is_wrong"), [("2.10.1", True), ("2.9.0+cpu", True), ("2.11.0", False), ("3.0", False)]
)
def test_a_mac_with_an_old_torch_is_warned_of_wrong_attention(machine, version, is_wrong):
    machine(torch=fake_torch(mps=True, version=version), metal=True, system="Darwin")
    value, advice = found("attention on mps")
    assert ("wrong" in value) == is_wrong
    assert ("pip install 'torch>=2.11'" in advice) == is_wrong


def test_no_mac_no_word_of_its_attention():
    assert "attention on mps" not in doctor.report()


def test_a_processor_without_bfloat16_computes_in_float32(machine):
    assert found("bfloat16")[0] == "yes"
    machine(torch=fake_torch(bfloat16=False))
    assert found("bfloat16")[0].startswith("no: --dtype auto computes in float32")


def test_the_token_of_the_hub_is_never_printed():
    text = doctor.report()
    assert found("hub token") == ("there", "")
    assert "hf_secret" not in text


def test_without_a_token_the_report_says_how_to_log_in(monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    value, advice = found("hub token")
    assert value == "none"
    assert "hf auth login" in advice


def test_a_missing_package_comes_with_the_command_that_installs_it(monkeypatch):
    known = metadata.version

    def version(name):
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "0.0.1" if name == "tabulate" else known(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert found("peft") == ("missing", "pip install 'peft>=0.18'")
    value, advice = found("tabulate")
    assert value.startswith("0.0.1, and rsg-harness wants >=")
    assert advice.startswith("pip install 'tabulate>=")


def test_a_program_that_is_not_installed_as_a_package_is_a_finding(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", requires)
    assert found("rsg-harness")[0] == "not installed as a package"


def test_rsg_data_is_searched_for_the_nine_tasks(monkeypatch, tmp_path):
    root = tmp_path / "official"
    for name in ("TERRa", "RCB"):
        (root / name).mkdir(parents=True)
    (root / "TERRa" / "train.jsonl").touch()  # RCB's directory is empty
    monkeypatch.setenv("RSG_DATA", str(root))
    value, advice = found("RSG_DATA")
    assert value == f"{root}: 1 of the nine tasks"
    assert "rcb" in advice
    assert "terra" not in advice


def test_rsg_data_may_be_a_directory_of_the_hubs_parquet_files(monkeypatch, tmp_path):
    (tmp_path / "terra" / "train").mkdir(parents=True)
    (tmp_path / "terra" / "train" / "0000.parquet").touch()
    monkeypatch.setenv("RSG_DATA", f"hub:{tmp_path}")
    assert found("RSG_DATA")[0] == f"hub:{tmp_path}: 1 of the nine tasks"


def test_rsg_data_that_is_no_directory_is_a_problem(monkeypatch):
    monkeypatch.setenv("RSG_DATA", "nowhere")
    assert found("RSG_DATA") == ("nowhere is no directory", "name the unpacked official archive, or unset it")


def test_the_cache_is_measured_and_not_made(tmp_path):
    assert found("cache") == (f"{tmp_path / 'cache'}: 0.0 GiB", "")
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache" / "models").mkdir(parents=True)
    with (tmp_path / "cache" / "models" / "weights").open("wb") as file:
        file.truncate(3 * doctor.GIB)  # sparse
    assert found("cache")[0].endswith(": 3.0 GiB")


def test_a_cache_that_cannot_be_written_comes_with_the_way_out(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "file" / "cache"))
    value, advice = found("cache")
    assert "cannot be written" in value
    assert "RSG_HARNESS_CACHE" in advice


def test_little_disk_is_a_problem(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=doctor.GIB))
    value, advice = found("free disk for the cache")
    assert value == "1.0 GiB"
    assert "free some" in advice


def test_results_are_counted_and_probed_without_leaving_a_trace(tmp_path):
    assert found("results") == (f"{tmp_path / 'results' / 'runs'}, finished runs: 0", "")
    assert list(tmp_path.iterdir()) == []
    run = tmp_path / "results" / "runs" / "one"
    run.mkdir(parents=True)
    (run / "results.json").touch()
    assert found("results")[0].endswith("finished runs: 1")


def test_results_that_cannot_be_written_are_a_problem(tmp_path):
    (tmp_path / "results").touch()
    value, advice = found("results")
    assert "cannot be written" in value
    assert "--output" in advice


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_last_line_counts_the_problems(monkeypatch, count):
    monkeypatch.setattr(doctor, "embedded_version", lambda: "1.0.0" if count < 1 else None)
    if count == 2:
        monkeypatch.setenv("RSG_DATA", "nowhere")
    text = doctor.report()
    expected = ["No problems found.", "1 thing to look at, marked ->.", "2 things to look at, marked ->."]
    assert text.splitlines()[-1] == expected[count]
    assert text.count("  -> ") == count


def test_the_report_is_aligned():
    lines = [line for line in doctor.report().splitlines() if line.startswith("  ")]
    starts = {len(line) - len(line[2:].lstrip()) for line in lines}
    assert starts == {2}
    width = max(len(line[2:].split("  ")[0]) for line in lines)
    assert all(line[2 + width : 4 + width] == "  " and line[4 + width] != " " for line in lines)


def test_an_extra_that_is_not_installed_is_no_problem(monkeypatch):
    monkeypatch.setattr(gguf_family, "library_file", lambda: None)
    assert found("gguf backends") == ("llama.cpp is not installed (pip install 'rsg-harness[gguf]')", "")


def test_python_under_rosetta_is_pointed_out(monkeypatch):
    translated = {"system": "Darwin x86_64", "processor": "Apple M2", "cores": 8, "memory_bytes": 8 * doctor.GIB}
    monkeypatch.setattr(doctor.provenance, "machine", lambda: translated)
    assert "Rosetta" in found("system")[1]


def test_an_offline_hub_is_pointed_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert found("hub") == ("switched off by HF_HUB_OFFLINE", "unset it to fetch models and --data hub")


def test_the_report_of_the_real_machine_is_made(monkeypatch):
    monkeypatch.undo()
    assert "Software" in doctor.report()
