"""What a record says about the machine, the software and the code."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import harness
from adapters.base import Backend

_PACKAGES = ("lm-eval", "torch", "transformers", "tokenizers", "mlx", "mlx-lm", "datasets", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Return the versions of this program, Python and the packages that compute."""
    found = {"rsg-harness": harness.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return system, processor, cores this process may use, memory in bytes, and the CUDA device where there is one.

    No host name: records are published.
    """
    torch = sys.modules.get("torch")
    gpu = {"gpu": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_available() else {}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **gpu,
    }


def _processor() -> str:
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def git_commit() -> str | None:
    """Return the commit of the source tree this program runs from, `-dirty` if it was changed; None outside one."""
    root = Path(harness.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    # The run itself adds records, so only changes of the code count.
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--", "harness", "adapters", "task_configs")
    return f"{commit}-dirty" if changed else commit


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory(backend: Backend) -> tuple[int, str]:
    """Return the peak bytes and what they are of: the device whose allocator counts them, else the process."""
    held = backend.peak_memory()
    return (held, backend.info.device) if held else (peak_process_bytes(), "process")


def peak_process_bytes() -> int:
    """Return the process's peak resident size. Linux counts in KiB, macOS in bytes (getrusage(2))."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
