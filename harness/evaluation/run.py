"""One run: documents, prompts, a model, scores, metrics, the record. `rsg-harness run` calls `run`."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

from harness import progress
from harness.data import Split, cached_split
from harness.data.sampling import fewshot_pool
from harness.errors import UserError
from harness.evaluation.directory import (
    agree_with_run,
    finished_record,
    named_directory,
    new_directory,
    open_store,
    remove_progress,
    run_settings,
)
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.options import RunOptions, check_run_options
from harness.evaluation.summary import (
    FinishedRun,
    TaskResult,
    count_documents,
    make_record,
    make_samples,
    process_costs,
    total_costs,
)
from harness.models.checkpoint import checkpoint_warnings
from harness.models.heads import check_prompts
from harness.models.open import OpenModel, open_model, with_backend
from harness.models.resolve import find_model, provide
from harness.processes import Processes, started_processes
from harness.quiet import quiet_libraries
from harness.records.run import RunRecord, TimingRecord, write_run
from harness.scoring.store import ProgressStore
from harness.tasks import document_key, include
from harness.tasks.prompts import ChosenTask, choose
from harness.tasks.rendering import load_tasks

log = logging.getLogger(__name__)


def run(options: RunOptions) -> tuple[RunRecord, Path]:
    """Evaluate a model and write the record. Processes of one launcher share the work; the first one writes.

    Returns:
        The record and the directory that holds it.

    Raises:
        UserError: Anything that the user can fix. What was scored before stays in the directory for --resume.
    """
    started = time.monotonic()
    check_run_options(options)
    for tasks in options.include_path:
        include(tasks)
    processes = started_processes()
    if not processes.is_first:
        progress.show_output(False)
    reference = find_model(options.model)
    chosen = choose(options.tasks, options.prompt, defaults=reference.prompts)
    check_prompts(chosen, reference.checkpoint.layout().kinds if reference.checkpoint else {})
    named = processes.broadcast(lambda: _text(named_directory(options)))
    splits = _load_splits(chosen, options)
    if reference.checkpoint:
        for warning in checkpoint_warnings(reference.checkpoint, chosen, options.num_fewshot):
            log.warning("%s", warning)
    local = provide(reference) if processes.is_first else None
    processes.barrier()  # fetched or converted once, by the first process
    local = local or provide(reference)
    options = with_backend(options, local)
    directory = Path(named or processes.broadcast(lambda: str(new_directory(local, options.backend))))
    settings = run_settings(options, local, chosen, splits)
    finished = finished_record(directory, settings)
    if finished is not None:
        return finished, directory
    resumed = processes.broadcast(lambda: agree_with_run(directory, settings))
    with open_store(directory, processes) as store:
        log.info("loading %s for %s", local.name, options.backend)
        opened = open_model(options, local)
        loaded = time.monotonic()
        language_model, results = _evaluate(opened, chosen, options, store, processes)
        costs = total_costs(processes.gather(dataclasses.asdict(process_costs(language_model, store.seconds()))))
        timing = TimingRecord(
            wall_seconds=time.monotonic() - started,
            load_seconds=loaded - started,
            scoring_seconds=costs.scoring_seconds,
            records_per_second=count_documents(results) / costs.scoring_seconds if costs.scoring_seconds else 0.0,
        )
        record = make_record(FinishedRun(options, settings, language_model, splits, results, timing, costs, resumed))
        if processes.is_first:
            write_run(directory, record, make_samples(results))
    processes.barrier()  # the record is written
    remove_progress(directory)
    return record, directory


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _load_splits(chosen: list[ChosenTask], options: RunOptions) -> dict[str, Split]:
    """Read the documents of every task before the model, so that damaged data cost no waiting."""
    splits: dict[str, Split] = {}
    for name in dict.fromkeys(task.file.task for task in chosen):
        splits[name] = cached_split(name, options.split, options.data)
        if options.num_fewshot:
            pool = len({document_key(row) for row in fewshot_pool(name, options.data)})
            if options.num_fewshot > pool // 2:
                raise UserError(
                    f"--num-fewshot {options.num_fewshot} is too many for {name}: it has {pool} train documents",
                    f"ask for {pool // 2} or fewer",
                )
        for warning in splits[name].warnings:
            log.warning("%s", warning)
    return splits


def _evaluate(
    opened: OpenModel,
    chosen: list[ChosenTask],
    options: RunOptions,
    store: ProgressStore,
    processes: Processes,
) -> tuple[PlannedModel, list[TaskResult]]:
    """Let lm-eval render, score and judge; return our model and the results."""
    from lm_eval.evaluator import evaluate

    language_model = PlannedModel(opened, options.batch_tokens, store, options.seed, processes)
    tasks = load_tasks(
        chosen,
        data=options.data,
        split=options.split,
        limit=options.limit,
        seed=options.seed,
        num_fewshot=options.num_fewshot,
    )
    with quiet_libraries():
        found = evaluate(
            lm=language_model,
            # Without the group: its mean is ours to compute, with a standard error.
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            apply_chat_template=opened.template.applied,
            fewshot_as_multiturn=True,
        )
    assert found is not None
    results = []
    for task in chosen:
        samples = found["samples"][task.file.full_name]
        items = [sample["rsg"] for sample in samples if sample["rsg"].gold is not None]
        results.append(TaskResult(task, samples, items))
    return language_model, results
