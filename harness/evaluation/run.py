"""One run: documents, prompts, a model, scores, metrics, the record. `rsg-harness run` calls `run`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.registry import AS_IT_STANDS
from harness import progress
from harness.data import Split, cached_split
from harness.data.sampling import fewshot_pool
from harness.endpoint.options import public_command
from harness.errors import UserError
from harness.evaluation.answering import AnsweringModel
from harness.evaluation.directory import (
    agree_with_run,
    finished_record,
    local_settings,
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
)
from harness.models.checkpoint import checkpoint_warnings
from harness.models.heads import check_prompts
from harness.models.open import open_model, with_backend
from harness.models.resolve import ModelReference, find_model, provide
from harness.processes import Processes, started_processes
from harness.quiet import quiet_libraries
from harness.records.run import ENDPOINT, RunRecord, TimingRecord, write_run
from harness.scoring.store import ProgressStore
from harness.tasks import document_key, include
from harness.tasks.foreign import ForeignTasks, load_foreign_tasks, split_names
from harness.tasks.prompts import ChosenTask, choose
from harness.tasks.rendering import load_tasks

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """What a run evaluates, ready to be opened.

    Attributes:
        name: The model's.
        backend: What computes, for the directory's name.
        settings: What decides its results.
        open: Opens it over the store that keeps its answers.
    """

    name: str
    backend: str
    settings: Mapping[str, Any]
    open: Callable[[ProgressStore], AnsweringModel]


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
    if options.endpoint:  # which may name a password, and records are published
        options = replace(options, command=public_command(options.command, options.endpoint))
    processes = started_processes()
    if not processes.is_first:
        progress.show_output(False)
    reference = find_model(options.model) if options.endpoint is None else None
    checkpoint = reference.checkpoint if reference else None
    ours, others = split_names(options.tasks)
    chosen = choose(ours, options.prompt, defaults=reference.prompts if reference else {}) if ours or not others else []
    if options.prompt and not chosen:
        raise UserError(
            f"--prompt {options.prompt} is for tasks of Russian SuperGLUE", "lm-eval's have one prompt each"
        )
    check_prompts(chosen, checkpoint.layout().kinds if checkpoint else {})
    named = processes.broadcast(lambda: _text(named_directory(options)))
    splits = _load_splits(chosen, options)
    foreign = _load_foreign(others, options, processes) if others else None
    if checkpoint:
        for warning in checkpoint_warnings(checkpoint, chosen, options.num_fewshot or 0):
            log.warning("%s", warning)
    if reference:
        contender = _local(options, reference, processes)
    else:
        contender = _behind_endpoint(options, chosen, foreign, processes)
    directory = Path(named or processes.broadcast(lambda: str(new_directory(contender.name, contender.backend))))
    settings = run_settings(options, contender.settings, chosen, splits, foreign)
    finished = finished_record(directory, settings)
    if finished is not None:
        return finished, directory
    resumed = processes.broadcast(lambda: agree_with_run(directory, settings))
    with open_store(directory, processes) as store:
        language_model = contender.open(store)
        loaded = time.monotonic()
        results = _evaluate(language_model, chosen, options) if chosen else []
        foreign_results = _evaluate_foreign(language_model, foreign, options) if foreign else ForeignResults()
        account = language_model.account(store.seconds())
        documents = count_documents(results) + foreign_results.documents
        timing = TimingRecord(
            wall_seconds=time.monotonic() - started,
            load_seconds=loaded - started,
            scoring_seconds=account.scoring_seconds,
            records_per_second=documents / account.scoring_seconds if account.scoring_seconds else 0.0,
        )
        done = FinishedRun(
            options, settings, language_model, account, splits, results, foreign_results, timing, resumed
        )
        record = make_record(done)
        if processes.is_first:
            write_run(directory, record, [*make_samples(results), *foreign_results.samples])
    processes.barrier()  # the record is written
    remove_progress(directory)
    return record, directory


def _local(options: RunOptions, reference: ModelReference, processes: Processes) -> Contender:
    """Return a model on this machine, its files fetched."""
    weights = options.backend != AS_IT_STANDS
    local = provide(reference, weights) if processes.is_first else None
    processes.barrier()  # fetched or converted once, by the first process
    local = local or provide(reference, weights)
    options = with_backend(options, local)

    def opened(store: ProgressStore) -> AnsweringModel:
        log.info("loading %s for %s", local.name, options.backend)
        return PlannedModel(open_model(options, local), options.batch_tokens, store, options.seed, processes)

    return Contender(local.name, options.backend, local_settings(options, local), opened)


def _behind_endpoint(
    options: RunOptions, chosen: Sequence[ChosenTask], foreign: ForeignTasks | None, processes: Processes
) -> Contender:
    """Return a model behind a server, which is there and gives what the tasks need."""
    from harness.evaluation.endpoint import find_endpoint
    from harness.evaluation.endpoint_model import EndpointModel

    if processes.size > 1:
        raise UserError("--endpoint is asked by one process", "start it without a launcher; --concurrency asks more")
    endpoint = find_endpoint(options, chosen, foreign)
    return Contender(
        endpoint.model, ENDPOINT, endpoint.settings(), lambda store: EndpointModel(endpoint, store, options.seed)
    )


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


def _evaluate(language_model: AnsweringModel, chosen: list[ChosenTask], options: RunOptions) -> list[TaskResult]:
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
            apply_chat_template=language_model.applies_chat_template,
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


def _evaluate_foreign(language_model: AnsweringModel, foreign: ForeignTasks, options: RunOptions) -> ForeignResults:
    """Evaluate lm-eval's tasks as lm-eval would: with the chat template only where it is asked for."""
    if language_model.applies_chat_template and not foreign_chat_template(options):
        log.info("lm-eval's tasks are asked without the chat template, as there; --apply-chat-template on applies it")
    found = evaluate_foreign(
        language_model,
        foreign,
        apply_chat_template=foreign_chat_template(options),
        system_instruction=options.system_instruction,
    )
    tasks = task_records(found, foreign, language_model.truncated, options.seed)
    return ForeignResults(tasks, group_records(found, foreign, tasks), list(sample_records(found, foreign)))
