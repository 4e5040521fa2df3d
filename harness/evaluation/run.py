"""One run: documents, prompts, a backend, scores, figures, the record. `rsg-harness run` calls `run`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from adapters.base import Backend
from harness.data import Split, cached_split, document_key
from harness.data.sampling import fewshot_pool
from harness.errors import UserError
from harness.evaluation.checkpoints import checkpoint_warnings, open_checkpoint
from harness.evaluation.language_model import PlannedModel
from harness.evaluation.options import Progress, RunOptions, check_options
from harness.evaluation.resume import (
    agree_on_settings,
    finished_record,
    named_directory,
    new_directory,
    open_store,
    remove_stores,
    run_settings,
)
from harness.evaluation.summary import (
    Evaluation,
    Outcome,
    count_documents,
    make_record,
    make_samples,
    process_costs,
    total_costs,
)
from harness.models.heads import Heads
from harness.models.loading import load_model
from harness.models.resolve import default_model, resolve_model
from harness.processes import Processes, started_processes
from harness.quiet import quiet_libraries
from harness.records.run import RunRecord, TimingRecord, write_run
from harness.scoring.store import ProgressStore
from harness.tasks.prompts import ChosenTask, choose
from harness.tasks.rendering import load_tasks, uses_chat_template


def run(
    options: RunOptions, say: Callable[[str], None] = lambda text: None, progress: Progress | None = None
) -> tuple[RunRecord, Path]:
    """Evaluates a model and writes the record. Processes of one launcher share the work; the first one writes.

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
    check_options(options)
    processes = started_processes()
    if not processes.is_first:
        say, progress = (lambda text: None), None
    model_name = options.model or default_model()
    checkpoint = open_checkpoint(model_name)
    chosen = choose(options.tasks, options.prompt, defaults=checkpoint.prompts() if checkpoint else None)
    named = processes.from_first(lambda: _text(named_directory(options)))
    splits = _load_splits(chosen, options, say)
    if checkpoint:
        for warning in checkpoint_warnings(checkpoint, chosen, options.num_fewshot):
            say(f"warning: {warning}")
    model = resolve_model(model_name, say) if processes.is_first else None
    processes.wait()  # fetched or converted once, by the first
    model = model or resolve_model(model_name)
    directory = Path(named or processes.from_first(lambda: str(new_directory(model, options.backend))))
    settings = run_settings(options, model, chosen, splits)
    finished = finished_record(directory, settings)
    if finished is not None:
        return finished, directory
    with open_store(directory, processes) as store:
        resumed = agree_on_settings(store, settings, directory)
        say(f"loading {model.name} for {options.backend}")
        backend, heads = load_model(model, options)
        loaded = time.monotonic()
        language_model, outcomes = _evaluate(backend, heads, chosen, options, store, progress, processes)
        costs = total_costs(processes.gather(dataclasses.asdict(process_costs(language_model, store.seconds()))))
        timing = TimingRecord(
            wall_seconds=time.monotonic() - started,
            load_seconds=loaded - started,
            scoring_seconds=costs.scoring_seconds,
            records_per_second=count_documents(outcomes) / costs.scoring_seconds if costs.scoring_seconds else 0.0,
        )
        record = make_record(
            Evaluation(options, settings, model, backend, language_model, splits, outcomes, timing, costs, resumed)
        )
        if processes.is_first:
            write_run(directory, record, make_samples(outcomes))
    processes.wait()  # the record is written
    remove_stores(directory)
    return record, directory


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _load_splits(chosen: list[ChosenTask], options: RunOptions, say: Callable[[str], None]) -> dict[str, Split]:
    """The documents of every task, read before the model is, so that damaged data cost no waiting."""
    splits: dict[str, Split] = {}
    for task in chosen:
        name = task.file.task
        if name not in splits:
            splits[name] = cached_split(name, "test" if name == "lidirus" else options.split, options.data)
            if options.num_fewshot:
                pool = len({document_key(row) for row in fewshot_pool(name, options.data)})
                if options.num_fewshot > pool // 2:
                    raise UserError(
                        f"--num-fewshot {options.num_fewshot} is too many for {name}: it has {pool} train documents",
                        f"ask for {pool // 2} or fewer",
                    )
            for warning in splits[name].warnings:
                say(f"warning: {warning}")
    return splits


def _evaluate(
    backend: Backend,
    heads: Heads | None,
    chosen: list[ChosenTask],
    options: RunOptions,
    store: ProgressStore,
    progress: Progress | None,
    processes: Processes,
) -> tuple[PlannedModel, list[Outcome]]:
    """Lets lm-eval render, score and judge. Gives our model and the outcomes."""
    from lm_eval.evaluator import evaluate

    language_model = PlannedModel(
        backend,
        options.batch_tokens or backend.info.batch_tokens,
        store,
        progress,
        seed=options.seed,
        heads=heads,
        processes=processes,
    )
    tasks = load_tasks(
        chosen,
        data=options.data,
        split=options.split,
        limit=options.limit,
        seed=options.seed,
        num_fewshot=options.num_fewshot,
    )
    with quiet_libraries():
        results = evaluate(
            lm=language_model,
            # Without the group: its mean is ours to compute, with a standard error.
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            bootstrap_iters=0,
            apply_chat_template=uses_chat_template(backend.tokenizer, options.apply_chat_template),
            fewshot_as_multiturn=True,
        )
    assert results is not None
    outcomes = []
    for task in chosen:
        samples = results["samples"][task.file.full_name]
        items = [sample["rsg"] for sample in samples if sample["rsg"].gold is not None]
        outcomes.append(Outcome(task, samples, items))
    return language_model, outcomes
