"""What a user can get wrong: one clear line, a hint, exit code 2, no traceback."""

from __future__ import annotations

import http.server
import json
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.command import Command
from tests.tiny_gemma import make_tiny_gemma, make_tiny_tokenizer
from tests.tiny_models import make_tiny_model


def refused(done: object, *words: str) -> None:
    """Asserts the shape of an error and that it says these words."""
    assert done.returncode == 2, done.stderr  # type: ignore[attr-defined]
    assert "Traceback" not in done.stderr  # type: ignore[attr-defined]
    errors = [line for line in done.stderr.splitlines() if "error:" in line]  # type: ignore[attr-defined]
    assert len(errors) == 1
    for word in words:
        assert word in errors[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "tera"], ["unknown task 'tera'", "did you mean terra"]),
        (["--tasks", ","], ["no task named"]),
        (["--backend", "mlx-q7"], ["unknown backend 'mlx-q7'", "mlx-q"]),
        (["--prompt", "statment", "--tasks", "terra"], ["no prompt 'statment'", "statement"]),
        (["--limit", "0"], ["--limit 0", "1 or more"]),
        (["--num-fewshot", "-1"], ["--num-fewshot -1"]),
        (["--seed", "-1"], ["--seed -1", "0 or more"]),
        (["--dtype", "float61"], ["--dtype 'float61'", "float16"]),
        (["--split", "val"], ["--split 'val'", "validation"]),
        (["--split", "test", "--tasks", "terra"], ["mini set has no test split"]),
        (["--num-fewshot", "500", "--tasks", "terra"], ["--num-fewshot 500", "24"]),
        (["--backend", "torch", "--execution", "mlx"], ["--execution mlx does not go with --backend torch"]),
        (["--backend", "torch", "--backend-arg", "group_size=64"], ["'group_size=64' is not for torch", "threads"]),
        (["--backend", "mlx-q4", "--backend-arg", "group_size=x"], ["group_size takes a whole number"]),
        (["--data", "nowhere"], ["nowhere", "mini"]),
        (["--model", "nowhere"], ["no model 'nowhere'"]),
        (["--model", "nowhere.gguf"], ["no file nowhere.gguf"]),
        (["--model", "google/gemma-3-1b-it"], ["cannot reach the hub", "--model embedded"]),
        (["--output", "/proc/run"], ["cannot write to /proc/run", "--output"]),
        (["--resume"], ["no unfinished run"]),
    ],
)
def test_a_wrong_argument_is_one_line_with_a_hint(rsg_harness: Command, arguments: list[str], words: list[str]) -> None:
    refused(rsg_harness("run", *arguments), *words)


def test_a_model_directory_without_weights_or_configuration(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    refused(rsg_harness("run", "--model", bare), "no config.json")
    shutil.copy(tiny_model / "config.json", bare)
    refused(rsg_harness("run", "--model", bare), "no weights")
    (bare / "pytorch_model.bin").touch()
    refused(rsg_harness("run", "--model", bare), "pytorch_model.bin is a pickle")


def test_a_model_of_another_architecture(rsg_harness: Command, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    for kind, words in (
        ("llama", "has no place for"),  # the weights are Gemma's
        ("vit", "no causal language model"),
        ("no-such", "transformers cannot read"),
    ):
        (other / "config.json").write_text(json.dumps({**config, "model_type": kind}))
        refused(rsg_harness("run", "--model", other, "--tasks", "terra"), words)


def test_damaged_and_missing_weights(rsg_harness: Command, tiny_model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(tiny_model, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refused(rsg_harness("run", "--model", damaged, "--tasks", "terra"), "damaged or incomplete")
    tensors = load_file(tiny_model / "model.safetensors")
    tensors.pop("model.layers.3.mlp.up_proj.weight")
    save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
    refused(rsg_harness("run", "--model", damaged, "--tasks", "terra"), "model.layers.3.mlp.up_proj.weight")


def test_weights_that_give_nan_name_the_task_and_the_document(rsg_harness: Command, tmp_path: Path) -> None:
    broken = make_tiny_gemma(tmp_path / "broken", tie_word_embeddings=False, max_position_embeddings=4096)
    tensors = load_file(broken / "model.safetensors")
    letter = make_tiny_tokenizer().convert_tokens_to_ids("щ")  # which the self-check does not read
    tensors["model.embed_tokens.weight"][letter] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    refused(rsg_harness("run", "--model", broken, "--tasks", "terra"), "NaN", "rsg_terra", "document")


def test_weights_that_give_nothing_but_nan_are_refused_at_once(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    refused(rsg_harness("run", "--model", broken, "--tasks", "terra"), "not numbers")


def test_weights_that_the_architecture_has_no_place_for(rsg_harness: Command, tiny_model: Path, tmp_path: Path) -> None:
    more = shutil.copytree(tiny_model, tmp_path / "more")
    tensors = load_file(more / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(4, 64)
    save_file(tensors, more / "model.safetensors", {"format": "pt"})
    run = ("run", "--model", more, "--tasks", "terra")
    refused(rsg_harness(*run), "has no place for", "lora_A")
    refused(rsg_harness(*run, "--backend", "mlx-bf16", "--execution", "mlx"), "mlx-lm cannot load")


@pytest.mark.parametrize("backend", [("torch",), ("mlx-bf16", "--execution", "mlx")])
def test_a_tokenizer_larger_than_the_vocabulary_matrix(
    rsg_harness: Command, tiny_model: Path, tmp_path: Path, backend: tuple[str, ...]
) -> None:
    extended = shutil.copytree(tiny_model, tmp_path / "extended")
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(["утверждение"])  # in the prompt
    tokenizer.save_pretrained(extended)
    done = rsg_harness("run", "--model", extended, "--tasks", "terra", "--backend", *backend)
    refused(done, "'утверждение'", "512 rows")


def test_a_chat_template_that_cannot_be_rendered(rsg_harness: Command, tiny_model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text("{{ messages[0]['content'] }")
    refused(rsg_harness("run", "--model", broken, "--tasks", "terra"), "chat template", "--apply-chat-template off")


def test_mlx_weights_that_transformers_names_otherwise(rsg_harness: Command, tmp_path: Path) -> None:
    experts = make_tiny_model("mixtral", tmp_path / "mixtral")
    run = ("run", "--model", experts, "--tasks", "terra", "--limit", "2", "--backend", "mlx-q8")
    refused(rsg_harness(*run, "--execution", "torch"), "other names than transformers", "--execution mlx")
    done = rsg_harness(*run, "--execution", "mlx")
    assert done.returncode == 0, done.stderr


def test_a_path_that_does_not_exist(rsg_harness: Command) -> None:
    refused(rsg_harness("run", "--model", "./not-here", "--tasks", "terra"), "no directory ./not-here")


def test_float16_under_torch_and_a_missing_chat_template(rsg_harness: Command, tiny_model: Path) -> None:
    refused(rsg_harness("run", "--model", tiny_model, "--dtype", "float16"), "overflows in float16", "mlx-fp16")
    done = rsg_harness("run", "--model", tiny_model, "--tasks", "terra", "--apply-chat-template", "on")
    refused(done, "no chat template")


def test_a_prompt_longer_than_the_context_is_cut_and_counted(rsg_harness: Command, tmp_path: Path) -> None:
    short = make_tiny_gemma(tmp_path / "short", max_position_embeddings=120)
    done = rsg_harness("run", "--model", short, "--tasks", "terra", "--limit", "4", "--output", "run")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["tasks"]["terra"]["truncated"] == 8
    assert "terra: 8 requests cut to the model's context" in done.stdout


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """An official directory with TERRa alone, made of the mini set."""
    import harness.data

    source = Path(harness.data.__file__).parent / "mini" / "TERRa"
    shutil.copytree(source, tmp_path / "official" / "TERRa")
    return tmp_path / "official"


def test_official_files_that_are_missing_or_damaged(rsg_harness: Command, official: Path) -> None:
    val = official / "TERRa" / "val.jsonl"
    lines = val.read_text(encoding="utf-8").splitlines(keepends=True)

    def run_terra() -> object:
        return rsg_harness("run", "--data", official, "--tasks", "terra")

    refused(rsg_harness("run", "--data", official, "--tasks", "rcb"), "RCB")
    val.write_text("".join(lines)[:-30], encoding="utf-8")
    refused(run_terra(), "val.jsonl", "truncated")
    val.write_text("".join([lines[0], "{nonsense}\n", *lines[2:]]), encoding="utf-8")
    refused(run_terra(), "val.jsonl:2")
    val.write_text("".join([*lines[:3], lines[3].replace("entailment", "maybe")]), encoding="utf-8")
    refused(run_terra(), "val.jsonl:4", "maybe")
    val.write_text("".join([*lines[:3], lines[3].replace('"premise"', '"premiss"')]), encoding="utf-8")
    refused(run_terra(), "val.jsonl:4", "premise")
    val.unlink()
    refused(run_terra(), "val.jsonl")


class _Gated(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for a gated repository without access."""

    def _refuse(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to this model is restricted.")
        self.end_headers()

    do_GET = do_HEAD = _refuse

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def gated_hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Gated)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_gated_model_without_access_says_how_to_get_it(
    rsg_process: Command, environment: dict[str, str], gated_hub: str, tmp_path: Path
) -> None:
    # The hub's library reads these when it is imported.
    environment.update(HF_ENDPOINT=gated_hub, HF_HUB_OFFLINE="0", HF_HOME=str(tmp_path / "hf"))
    refused(rsg_process("run", "--model", "google/gemma-3-1b-it"), "gated", "accept the licence", "HF_TOKEN")


def test_help_is_instant_and_an_unknown_verb_is_refused(rsg_process: Command) -> None:
    def seconds_of_children() -> float:
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)  # the processor's: tests run side by side
        return spent.ru_utime + spent.ru_stime

    before = seconds_of_children()
    done = rsg_process("--help")
    assert seconds_of_children() - before < 0.5
    assert done.returncode == 0
    assert "run" in done.stdout
    assert rsg_process("rum").returncode == 2
