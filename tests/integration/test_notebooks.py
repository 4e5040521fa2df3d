"""The notebooks run from the first cell to the last, on the mini set and a small model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent.parent / "notebooks"
NAMES = ("load_dataset", "quantization")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(
    name: str, tiny_model: Path, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "RSG_MODEL": str(tiny_model),
        "RSG_BACKENDS": "torch,mlx-q4",
        "RSG_RUNS": str(tmp_path / "results"),
        "RSG_LIMIT": "4",
    }
    for variable in set(os.environ) - set(environment):
        monkeypatch.delenv(variable)
    for variable, value in {**environment, **settings}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    kinds = [set(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in kind for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_kept(name: str) -> None:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code[1:])
