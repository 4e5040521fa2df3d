"""One run: documents, prompts, a backend, scores, figures, the record. `rsg-harness run` calls `run`."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adapters.base import Backend
from adapters.registry import BACKENDS, DTYPES, EXECUTIONS, load_backend, parse_backend_args, pick_execution
from harness.cache import cache_dir
from harness.data import LABELS, SPLITS, TASKS, Split, document_key
from harness.errors import UserError, nearest_hint
from harness.evaluation import provenance
from harness.evaluation.answers import is_tied
from harness.evaluation.catalogue import TASK_DIR, ChosenTask, choose, task_specification
from harness.evaluation.metrics import METRICS, Estimate, Item, estimate, mean_estimate
from harness.evaluation.record import (
    RESULTS,
    DataRecord,
    MemoryRecord,
    MetricRecord,
    ModelRecord,
    RunRecord,
    SampleRecord,
    TaskRecord,
    TimingRecord,
    TokenRecord,
    read_record,
    write_run,
)
from harness.models import LocalModel, default_model, resolve_model
from harness.quiet import quiet_libraries
from harness.scoring.store import ProgressStore

RUNS_DIR = Path("results") / "runs"
PROGRESS = "progress.sqlite"

Progress = Callable[[str, int], Callable[[int], object]]


@dataclass(frozen=True)
class RunOptions:
    """What the user asked for; see `rsg-harness run --help`."""

    model: str | None = None
    backend: str = "torch"
    backend_args: tuple[str, ...] = ()
    execution: str = "auto"
    dtype: str = "auto"
    data: str = "mini"
    tasks: tuple[str, ...] = ("rsg",)
    split: str = "validation"
    limit: int | None = None
    num_fewshot: int = 0
    prompt: str | None = None
    apply_chat_template: str = "auto"
    batch_tokens: int | None = None
    seed: int = 1234
    output: Path | None = None
    resume: bool = False
    command: str = "rsg-harness run"


@dataclass
class _Outcome:
    """What lm-eval gave back of one task."""

    chosen: ChosenTask
    samples: list[dict[str, Any]]
    items: list[Item] = field(default_factory=list)


def run(
    options: RunOptions, say: Callable[[str], None] = lambda text: None, progress: Progress | None = None
) -> tuple[RunRecord, Path]:
    """Evaluates a model and writes the record.

    Args:
        options: what to run.
        say: told what happens before the scoring starts.
        progress: called with (what, total) when work starts; gives a function to call with the work just done.

    Returns:
        The record and the directory that holds it.

    Raises:
        UserError: anything that the user can mend. What was scored before stays in the directory for --resume.
    """
    started = time.monotonic()
    backend_kind = _check(options)
    chosen = choose(options.tasks, options.prompt)
    directory = _named_directory(options)
    splits = _load_splits(chosen, options, say)
    model = resolve_model(options.model or default_model(), say)
    directory = directory or _new_directory(model, options.backend)
    with ProgressStore(directory / PROGRESS) as store:
        settings = _settings(options, model, chosen, splits)
        resumed = _agree(store, settings, options, directory)
        if resumed and (directory / RESULTS).exists():
            return read_record(directory), directory
        say(f"loading {model.name} for {options.backend}")
        with quiet_libraries():
            backend = load_backend(
                options.backend,
                model.path,
                fingerprint=model.fingerprint,
                cache_dir=cache_dir() / "mlx",
                execution=options.execution,
                dtype=options.dtype,
                args=parse_backend_args(backend_kind, list(options.backend_args)),
            )
        loaded = time.monotonic()
        language_model, outcomes, single_bytes = _evaluate(backend, chosen, options, store, progress, say)
        scored = time.monotonic()
        scoring_seconds = store.seconds()
        record = _record(
            options,
            model,
            backend,
            chosen,
            splits,
            outcomes,
            language_model,
            settings,
            TimingRecord(
                wall_seconds=scored - started,
                load_seconds=loaded - started,
                scoring_seconds=scoring_seconds,
                records_per_second=_documents(outcomes) / scoring_seconds if scoring_seconds else 0.0,
            ),
            single_bytes,
            resumed,
        )
        write_run(directory, record, _samples(outcomes))
    for leftover in directory.glob(f"{PROGRESS}*"):
        leftover.unlink()
    return record, directory


def _check(options: RunOptions) -> Any:
    """Refuses what cannot work before anything is loaded. Gives the backend's kind."""
    if options.backend not in BACKENDS:
        raise UserError(f"unknown backend {options.backend!r}", nearest_hint(options.backend, BACKENDS, "backends"))
    for name, value, known in (
        ("--execution", options.execution, EXECUTIONS),
        ("--dtype", options.dtype, DTYPES),
        ("--split", options.split, SPLITS),
        ("--apply-chat-template", options.apply_chat_template, ("auto", "on", "off")),
    ):
        if value not in known:
            raise UserError(f"{name} {value!r} is unknown", nearest_hint(value, known, "it takes"))
    for name, number, least in (
        ("--limit", options.limit, 1),
        ("--num-fewshot", options.num_fewshot, 0),
        ("--batch-tokens", options.batch_tokens, 1),
    ):
        if number is not None and number < least:
            raise UserError(f"{name} {number} makes no sense", f"give {least} or more, or leave it out")
    kind = BACKENDS[options.backend]
    pick_execution(kind, options.execution)
    parse_backend_args(kind, list(options.backend_args))
    return kind


def _load_splits(chosen: list[ChosenTask], options: RunOptions, say: Callable[[str], None]) -> dict[str, Split]:
    """The documents of every task, read before the model is, so that damaged data cost no waiting."""
    from task_configs.functions import cached_split, fewshot_pool

    splits: dict[str, Split] = {}
    for task in chosen:
        name = task.file.task
        if name not in splits:
            splits[name] = cached_split(name, "test" if name == "lidirus" else options.split, options.data)
            if options.num_fewshot:
                pool = len(fewshot_pool(name, options.data))
                if options.num_fewshot > pool // 2:
                    raise UserError(
                        f"--num-fewshot {options.num_fewshot} is too many for {name}: its train split has {pool}",
                        "ask for fewer examples",
                    )
            for warning in splits[name].warnings:
                say(f"warning: {warning}")
    return splits


def _settings(
    options: RunOptions, model: LocalModel, chosen: list[ChosenTask], splits: dict[str, Split]
) -> dict[str, Any]:
    """Everything that decides a run's figures. A resumed run must have the same."""
    return {
        "model": model.fingerprint,
        "backend": options.backend,
        "backend-arg": sorted(options.backend_args),
        "execution": pick_execution(BACKENDS[options.backend], options.execution),
        "dtype": options.dtype,
        "data": {task: split.fingerprint for task, split in splits.items()},
        "tasks": {task.file.full_name: task.prompt for task in chosen},
        "task files": _hash_task_files(chosen),
        "split": options.split,
        "limit": options.limit,
        "num-fewshot": options.num_fewshot,
        "apply-chat-template": options.apply_chat_template,
        "batch-tokens": options.batch_tokens,
        "seed": options.seed,
        "versions": {name: version for name, version in provenance.versions().items() if name != "rsg-harness"},
    }


def _hash_task_files(chosen: list[ChosenTask]) -> str:
    digest = hashlib.sha256((TASK_DIR / "functions.py").read_bytes())
    for task in chosen:
        digest.update(task.file.path.read_bytes())
    return digest.hexdigest()


def _named_directory(options: RunOptions) -> Path | None:
    """--output, or the latest unfinished run to resume; None where a new directory is to be made.

    Raises:
        UserError: it holds another run, or cannot be written, or there is none to resume.
    """
    if options.output is None:
        return _latest_unfinished() if options.resume else None
    if not options.resume and (options.output / RESULTS).exists():
        raise UserError(f"{options.output} already holds a finished run", "name another --output")
    if not options.resume and (options.output / PROGRESS).exists():
        raise UserError(f"{options.output} holds an unfinished run", "go on with --resume, or name another --output")
    _make_writable(options.output)
    return options.output


def _new_directory(model: LocalModel, backend: str) -> Path:
    stamp = datetime.now(UTC).strftime("%Y-%m-%d-%H%M%S")
    directory = RUNS_DIR / f"{stamp}-{_slug(model.name)}-{backend}"
    _make_writable(directory)
    return directory


def _make_writable(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {directory}: {error.strerror}", "name a directory that can be written with --output"
        ) from error


def _latest_unfinished() -> Path:
    unfinished = [path.parent for path in RUNS_DIR.glob(f"*/{PROGRESS}") if not (path.parent / RESULTS).exists()]
    if not unfinished:
        raise UserError(f"no unfinished run in {RUNS_DIR}", "name the run's directory with --output DIR --resume")
    return max(unfinished, key=lambda path: (path / PROGRESS).stat().st_mtime)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-").lower()


def _agree(store: ProgressStore, settings: dict[str, Any], options: RunOptions, directory: Path) -> bool:
    """True if the store holds a run with these settings; a new store takes them.

    Raises:
        UserError: it holds a run with others.
    """
    before = store.settings()
    if before is None:
        store.put_settings(settings)
        return False
    differing = [name for name in settings if settings[name] != json.loads(json.dumps(before.get(name)))]
    if differing:
        shown = ", ".join(_difference(name, before.get(name), settings[name]) for name in differing)
        raise UserError(
            f"{directory} holds a run with other settings: {shown}", "repeat its settings, or name another --output"
        )
    return True


def _difference(name: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return f"{name} ({', '.join(keys)})"
    short = [str(value) if len(str(value)) < 24 else f"{str(value)[:12]}…" for value in (before, now)]
    return f"{name} ({short[0]}, now {short[1]})"


def _evaluate(
    backend: Backend,
    chosen: list[ChosenTask],
    options: RunOptions,
    store: ProgressStore,
    progress: Progress | None,
    say: Callable[[str], None],
) -> tuple[Any, list[_Outcome], int]:
    """Lets lm-eval render, score and judge. Gives our model, the outcomes and the memory of one document alone."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from harness.evaluation.language_model import PlannedModel

    language_model = PlannedModel(
        backend, options.batch_tokens or backend.info.batch_tokens, store, progress, seed=options.seed
    )
    with quiet_libraries():
        manager = TaskManager(
            include_path=[str(TASK_DIR / "rsg"), str(TASK_DIR / "rsg_gen")],
            include_defaults=False,
            metadata={
                "data": options.data,
                "split": options.split,
                "limit": options.limit,
                "seed": options.seed,
                "num_fewshot": options.num_fewshot,
            },
        )
        loaded = manager.load([task_specification(chosen)])
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", options.num_fewshot)
            task.set_fewshot_seed(options.seed)
        results = evaluate(
            lm=language_model,
            # Without the group: its mean is ours to compute, with a standard error.
            task_dict={"tasks": loaded["tasks"], "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            apply_chat_template=_uses_chat_template(backend, options.apply_chat_template),
            fewshot_as_multiturn=True,
        )
    assert results is not None
    outcomes = []
    for task in chosen:
        samples = results["samples"][task.file.full_name]
        items = [sample["rsg"] for sample in samples if sample["rsg"].gold is not None]
        outcomes.append(_Outcome(task, samples, items))
    return language_model, outcomes, language_model.single_bytes


def _uses_chat_template(backend: Backend, wanted: str) -> bool:
    """`auto`: where the tokenizer has a template, which the base models have not.

    Raises:
        UserError: a template is asked for and there is none.
    """
    has = bool(backend.tokenizer.chat_template)
    if wanted == "on" and not has:
        raise UserError("this model's tokenizer has no chat template", "leave out --apply-chat-template")
    return has if wanted == "auto" else wanted == "on"


def _documents(outcomes: list[_Outcome]) -> int:
    return sum(len({document_key(sample["doc"]) for sample in outcome.samples}) for outcome in outcomes)


def _metric_record(found: Estimate | None) -> MetricRecord:
    if found is None:
        return MetricRecord(value=None, stderr=None)
    return MetricRecord(value=found.value, stderr=found.stderr, interval=found.interval)


def _estimates(outcome: _Outcome, seed: int) -> dict[str, Estimate | None]:
    """Every metric of a task; None where no answer is known, or no example is in the metric's category."""
    metrics = METRICS[outcome.chosen.file.task]
    if not outcome.items:
        return dict.fromkeys(metrics)
    return {name: estimate(metric, outcome.items, seed) for name, metric in metrics.items()}


def _is_generated(outcome: _Outcome) -> bool:
    return outcome.chosen.file.group == "rsg_gen"


def _task_record(
    outcome: _Outcome, estimates: Mapping[str, Estimate | None], split: Split, truncated: int, options: RunOptions
) -> TaskRecord:
    samples = outcome.samples
    prompts = hashlib.sha256()
    for sample in samples:
        prompts.update(json.dumps(sample["arguments"], ensure_ascii=False, default=str).encode() + b"\n")
    scores = [] if _is_generated(outcome) else [_scores(sample) for sample in samples]
    main = estimates["rsg"]
    return TaskRecord(
        score=main.value if main else None,
        documents=len({document_key(sample["doc"]) for sample in samples}),
        examples=len(samples),
        metrics={name: _metric_record(found) for name, found in estimates.items()},
        task_file=outcome.chosen.file.full_name,
        prompt=outcome.chosen.prompt,
        prompt_sha256=prompts.hexdigest(),
        num_fewshot=options.num_fewshot,
        split=split.split,
        data_sha256=split.fingerprint,
        truncated=truncated,
        ties=sum(is_tied(row) for row in scores),
        unreadable=sum(sample["rsg"].prediction is None for sample in samples),
        warnings=split.warnings,
    )


def _scores(sample: dict[str, Any]) -> list[float]:
    """Log-probabilities of the choices."""
    return [float(logprob) for logprob, _ in sample["filtered_resps"]]


def _record(
    options: RunOptions,
    model: LocalModel,
    backend: Backend,
    chosen: list[ChosenTask],
    splits: dict[str, Split],
    outcomes: list[_Outcome],
    language_model: Any,
    settings: dict[str, Any],
    timing: TimingRecord,
    single_bytes: int,
    resumed: bool,
) -> RunRecord:
    tasks: dict[str, TaskRecord] = {}
    mains: list[Estimate] = []
    for outcome in outcomes:
        estimates = _estimates(outcome, options.seed)
        file = outcome.chosen.file
        tasks[file.name] = _task_record(
            outcome, estimates, splits[file.task], language_model.truncated[file.full_name], options
        )
        if estimates["rsg"] is not None:
            mains.append(estimates["rsg"])
    mean = mean_estimate(mains) if mains else None
    nine = _all_nine(chosen) and len(mains) == len(TASKS)
    info, statistics = backend.info, language_model.scorer.statistics
    device_peak = backend.peak_memory()
    return RunRecord(
        score=mean.value if mean and nine else None,
        score_stderr=mean.stderr if mean and nine else None,
        mean=mean.value if mean else None,
        mean_stderr=mean.stderr if mean else None,
        tasks=tasks,
        model=ModelRecord(
            name=model.name,
            origin=model.origin,
            sha256=model.fingerprint,
            parameters=info.parameters,
            weights=info.weights,
            weights_bytes=info.weights_bytes,
        ),
        backend=info.name,
        execution=info.execution,
        device=info.device,
        dtype=info.dtype,
        chat_template=_uses_chat_template(backend, options.apply_chat_template),
        data=DataRecord(
            source=_source_kind(options.data),
            description=_source_description(options.data, splits),
            split=options.split,
            limit=options.limit,
        ),
        timing=timing,
        memory=MemoryRecord(
            peak_bytes=device_peak or provenance.peak_process_bytes(),
            single_bytes=single_bytes,
            of=info.device if device_peak else "process",
        ),
        tokens=TokenRecord(
            computed=statistics.tokens_computed + language_model.generated_prompt_tokens,
            shared=statistics.tokens_shared,
            padding=statistics.padding,
            forward_passes=statistics.forward_passes,
            batch_tokens=language_model.batch_tokens,
            halved_batches=statistics.halved,
        ),
        seed=options.seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        resumed=resumed,
        settings_sha256=hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=options.command,
    )


def _all_nine(chosen: list[ChosenTask]) -> bool:
    """True if the run is all nine tasks of one group and nothing else."""
    groups = {task.file.group for task in chosen}
    return len(groups) == 1 and {task.file.task for task in chosen} == set(TASKS)


def _source_kind(data: str) -> str:
    if data == "mini":
        return "mini"
    return "hub" if data == "hub" or data.startswith("hub:") else "official"


def _source_description(data: str, splits: dict[str, Split]) -> str:
    """For the hub its name and commit; for a directory nothing but its kind, since records are published."""
    if _source_kind(data) == "official":
        return "official files"
    return next(iter(splits.values())).source if data == "hub" else data.partition(":")[0]


def _samples(outcomes: list[_Outcome]) -> list[SampleRecord]:
    records = []
    for outcome in outcomes:
        task = outcome.chosen.file.task
        for sample in outcome.samples:
            doc = sample["doc"]
            generated = _is_generated(outcome)
            records.append(
                SampleRecord(
                    task=outcome.chosen.file.name,
                    idx=doc["idx"],
                    prediction=_label(task, sample["rsg"].prediction),
                    gold=list(doc["answers"]) or None if task == "rucos" else _label(task, doc["label"]),
                    scores=[] if generated else _scores(sample),
                    text=sample["filtered_resps"][0] if generated else None,
                )
            )
    return records


def _label(task: str, answer: Any) -> Any:
    """A label's index as the official file spells it; hidden and unreadable ones as None."""
    if answer is None or answer == -1:
        return None
    return answer if task == "rucos" else LABELS[task][answer]
