"""One run: documents, prompts, a model, scores, metrics, the record. `rsg-harness run` calls `run`."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

from adapters.registry import AS_IT_STANDS
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
from harness.evaluation.foreign import evaluate_foreign, group_records, sample_records, task_records
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.options import RunOptions, check_run_options, foreign_chat_template
from harness.evaluation.summary import (
    FinishedRun,
    ForeignResults,
    TaskResult,
    count_documents,
    make_record,
    make_samples,
    process_costs,
    total_costs,
)
from harness.models.checkpoint import checkpoint_warnings
from harness.models.heads import check_prompts
from harness.models.open import open_model, with_backend
from harness.models.resolve import find_model, provide
from harness.processes import Processes, started_processes
from harness.quiet import quiet_libraries
from harness.records.run import RunRecord, TimingRecord, write_run
from harness.tasks import document_key, include
from harness.tasks.foreign import ForeignTasks, load_foreign_tasks, split_names
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
    ours, others = split_names(options.tasks)
    chosen = choose(ours, options.prompt, defaults=reference.prompts) if ours or not others else []
    if options.prompt and not chosen:
        raise UserError(
            f"--prompt {options.prompt} is for tasks of Russian SuperGLUE", "lm-eval's have one prompt each"
        )
    check_prompts(chosen, reference.checkpoint.layout().kinds if reference.checkpoint else {})
    named = processes.broadcast(lambda: _text(named_directory(options)))
    splits = _load_splits(chosen, options)
    foreign = _load_foreign(others, options, processes) if others else None
    if reference.checkpoint:
        for warning in checkpoint_warnings(reference.checkpoint, chosen, options.num_fewshot or 0):
            log.warning("%s", warning)
    weights = options.backend != AS_IT_STANDS
    local = provide(reference, weights) if processes.is_first else None
    processes.barrier()  # fetched or converted once, by the first process
    local = local or provide(reference, weights)
    options = with_backend(options, local)
    directory = Path(named or processes.broadcast(lambda: str(new_directory(local, options.backend))))
    settings = run_settings(options, local, chosen, splits, foreign)
    finished = finished_record(directory, settings)
    if finished is not None:
        return finished, directory
    resumed = processes.broadcast(lambda: agree_with_run(directory, settings))
    with open_store(directory, processes) as store:
        log.info("loading %s for %s", local.name, options.backend)
        opened = open_model(options, local)
        loaded = time.monotonic()
        language_model = PlannedModel(opened, options.batch_tokens, store, options.seed, processes)
        results = _evaluate(language_model, chosen, options) if chosen else []
        foreign_results = _evaluate_foreign(language_model, foreign, options) if foreign else ForeignResults()
        costs = total_costs(processes.gather(dataclasses.asdict(process_costs(language_model, store.seconds()))))
        documents = count_documents(results) + foreign_results.documents
        timing = TimingRecord(
            wall_seconds=time.monotonic() - started,
            load_seconds=loaded - started,
            scoring_seconds=costs.scoring_seconds,
            records_per_second=documents / costs.scoring_seconds if costs.scoring_seconds else 0.0,
        )
        done = FinishedRun(options, settings, language_model, splits, results, foreign_results, timing, costs, resumed)
        record = make_record(done)
        if processes.is_first:
            write_run(directory, record, [*make_samples(results), *foreign_results.samples])
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


def _load_foreign(names: list[str], options: RunOptions, processes: Processes) -> ForeignTasks:
    """Load lm-eval's tasks; the first process before the others, which then find their documents in the cache."""

    def load() -> ForeignTasks:
        return load_foreign_tasks(names, limit=options.limit, num_fewshot=options.num_fewshot, seed=options.seed)

    loaded = load() if processes.is_first else None
    processes.barrier()
    return loaded or load()


def _evaluate(language_model: PlannedModel, chosen: list[ChosenTask], options: RunOptions) -> list[TaskResult]:
    """Let lm-eval render, score and judge; return the results."""
    from lm_eval.evaluator import evaluate

    tasks = load_tasks(
        chosen,
        data=options.data,
        split=options.split,
        limit=options.limit,
        seed=options.seed,
        num_fewshot=options.num_fewshot or 0,
    )
    with quiet_libraries():
        found = evaluate(
            lm=language_model,
            # Without the group: its mean is ours to compute, with a standard error.
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            apply_chat_template=language_model.opened.template.applied,
            fewshot_as_multiturn=True,
            system_instruction=options.system_instruction,
        )
    assert found is not None
    results = []
    for task in chosen:
        samples = found["samples"][task.file.full_name]
        items = [sample["rsg"] for sample in samples if sample["rsg"].gold is not None]
        results.append(TaskResult(task, samples, items))
    return results


def _evaluate_foreign(language_model: PlannedModel, foreign: ForeignTasks, options: RunOptions) -> ForeignResults:
    """Evaluate lm-eval's tasks as lm-eval would: with the chat template only where it is asked for."""
    if language_model.opened.template.applied and not foreign_chat_template(options):
        log.info("lm-eval's tasks are asked without the chat template, as there; --apply-chat-template on applies it")
    found = evaluate_foreign(
        language_model,
        foreign,
        apply_chat_template=foreign_chat_template(options),
        system_instruction=options.system_instruction,
    )
    tasks = task_records(found, foreign, language_model.truncated, options.seed)
    return ForeignResults(tasks, group_records(found, foreign, tasks), list(sample_records(found, foreign)))
