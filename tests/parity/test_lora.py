"""Adapters of peft and mlx_lm.lora give the log-probabilities of their own libraries, beside their base or on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.errors import UserError
from harness.models.resolve import find_model, provide
from tests.tiny_models import make_tiny_model

TOKENS = torch.tensor([[2, *range(10, 40)]])


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RSG_HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("harness.models.resolve.run_in_subprocess", lambda work, *arguments: work(*arguments))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_tiny_model("llama", tmp_path / "base")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def logits_of(directory: Path) -> torch.Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32))


def make_peft(base: Path, directory: Path) -> torch.Tensor:
    """Write an adapter that changes every linear layer, and return the logits of peft's model."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
    )
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(directory)
    return logits(model)


def make_mlx(base: Path, directory: Path, **config: Any) -> torch.Tensor:
    """Write an adapter of mlx_lm.lora for its attention layers, and return the logits of mlx_lm's model."""
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model, _ = load_model(base)
    parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"]}
    linear_to_lora_layers(model, 2, parameters)
    mx.random.seed(5)
    changed = {
        name: 0.1 * mx.random.normal(value.shape) for name, value in tree_flatten(model.parameters()) if "lora_" in name
    }
    model.load_weights(list(changed.items()), strict=False)
    directory.mkdir(exist_ok=True)
    mx.save_safetensors(str(directory / "adapters.safetensors"), changed)
    settings = {"model": str(base), "fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    found = model(mx.array(TOKENS.numpy()))
    return torch.from_numpy(np.array(found))


@pytest.mark.parametrize("make", [make_peft, make_mlx])
def test_an_adapter_is_fused_with_the_base_that_it_names(make: Any, base: Path, tmp_path: Path) -> None:
    expected = make(base, tmp_path / "adapter")
    assert not torch.allclose(logits_of(base), expected, atol=0.1)
    local = provide(find_model(str(tmp_path / "adapter")))
    torch.testing.assert_close(logits_of(local.path), expected, atol=1e-3, rtol=1e-3)
    assert local.name == "adapter"
    assert f"{tmp_path / 'adapter'}, fused with {base}" in local.origin
    assert (local.path / "tokenizer.json").is_file()
    again = provide(find_model(str(tmp_path / "adapter")))
    assert again == local


@pytest.mark.parametrize("make", [make_peft, make_mlx])
def test_an_adapter_beside_a_whole_model_changes_it(make: Any, base: Path, tmp_path: Path) -> None:
    expected = make(base, tmp_path / "adapter")
    shutil.copytree(base, tmp_path / "adapter", dirs_exist_ok=True)
    shutil.rmtree(base)
    local = provide(find_model(str(tmp_path / "adapter")))
    torch.testing.assert_close(logits_of(local.path), expected, atol=1e-3, rtol=1e-3)
    assert not (local.path / "adapter_config.json").exists()


def test_another_adapter_or_base_is_fused_anew(base: Path, tmp_path: Path) -> None:
    make_peft(base, tmp_path / "adapter")
    first = provide(find_model(str(tmp_path / "adapter")))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(file).items()}, file)
    second = provide(find_model(str(tmp_path / "adapter")))
    assert second.fingerprint != first.fingerprint
    assert not torch.allclose(logits_of(first.path), logits_of(second.path), atol=1e-2)


def test_what_cannot_be_fused_is_refused(base: Path, tmp_path: Path) -> None:
    make_mlx(base, tmp_path / "dora", fine_tune_type="dora")
    with pytest.raises(UserError, match="of the kind dora"):
        provide(find_model(str(tmp_path / "dora")))
    make_peft(base, tmp_path / "elsewhere")
    file = tmp_path / "elsewhere" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 64)}, file)
    with pytest.raises(UserError, match=r"has no place for .*layers\.9"):
        provide(find_model(str(tmp_path / "elsewhere")))
    file.unlink()
    with pytest.raises(UserError, match=r"neither adapter_model\.safetensors"):
        provide(find_model(str(tmp_path / "elsewhere")))
    (tmp_path / "elsewhere" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not name the base model"):
        provide(find_model(str(tmp_path / "elsewhere")))


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    make_peft(base, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    other = make_tiny_model("llama", tmp_path / "other", hidden_size=32)
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(other)}))
    with pytest.raises(UserError, match="peft cannot put"):
        provide(find_model(str(tmp_path / "adapter")))
