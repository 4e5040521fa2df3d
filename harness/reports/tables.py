"""Tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from harness.files import MIB
from harness.records.run import ENDPOINT, MetricRecord, ModelRecord, RunRecord

# From this share of at least so many answers on, a model that answers by a constant is pointed out.
NEARLY_ALL = 0.95
FEWEST_ANSWERS = 20
MINI_NOTE = "The mini set is this project's own and small: it shows that everything works, not how good a model is."


def estimate_text(value: float | None, stderr: float | None) -> str:
    """Format a score with its standard error, times 100: `57.3 ± 2.8`."""
    if value is None:
        return "–"
    return f"{100 * value:.1f} ± {100 * (stderr or 0):.1f}"


def told_apart(model: ModelRecord, others: Iterable[ModelRecord]) -> str:
    """Return a model's name, with its hash where another model has the same name."""
    found = {other.identity for other in others if other.name == model.name} | {model.identity}
    return model.name if len(found) == 1 else f"{model.name} ({model.short_identity})"


def backend_text(backend: str, model: ModelRecord) -> str:
    """Name a backend, with the model's weights where they are known."""
    return f"{backend} ({model.weights})" if model.weights else backend


def computed_by(model: ModelRecord, execution: str, device: str | None, dtype: str | None) -> list[str]:
    """Say what computed: a library on a device in a type, or a server."""
    return [f"{ENDPOINT} {model.origin}"] if execution == ENDPOINT else [execution, str(device), str(dtype)]


def mebibytes(size: int | None) -> str:
    """Format a size in MiB; a dash where it is not known."""
    return f"{size / MIB:.0f}" if size else "–"


def examples_shown(number: int) -> str:
    return "1 example shown" if number == 1 else f"{number} examples shown"


def prompt_changes(*, chat_template: bool, system_instruction: str | None) -> list[str]:
    """Say what stood around the prompts."""
    there = {"chat template": chat_template, "system instruction": bool(system_instruction)}
    return [name for name, is_there in there.items() if is_there]


def percent(metric: MetricRecord) -> str:
    return estimate_text(metric.value, metric.stderr)


def run_table(record: RunRecord) -> str:
    """Format what `rsg-harness run` prints: a row a task, then the score and the cost; lm-eval's apart."""
    tables = [_own_table(record)] if record.tasks else []
    if record.foreign:
        tables.append(_foreign_table(record))
    return "\n".join([_heading(record), "", "\n\n".join(tables), "", *_summary(record)])


def _own_table(record: RunRecord) -> str:
    rows = []
    with_heads = any(task.head for task in record.tasks.values())
    for name, task in record.tasks.items():
        others = ", ".join(
            f"{metric} {percent(found)}"
            for metric, found in task.metrics.items()
            if metric != "rsg" and found.value is not None and found.value != task.score
        )
        answered = [task.head or "language model"] if with_heads else []
        rows.append([name, percent(task.metrics["rsg"]), task.documents, task.prompt, *answered, others])
    headers = ["task", "score × 100", "documents", "prompt", *(["answered by"] if with_heads else []), "parts"]
    return tabulate(rows, headers=headers, tablefmt="simple")


def _foreign_table(record: RunRecord) -> str:
    """Format lm-eval's tasks, a row a metric; then their groups."""
    rows: list[list[Any]] = []
    for name, task in record.foreign.items():
        for metric, found in task.metrics.items():
            better = "" if found.higher_is_better is None else "↑" if found.higher_is_better else "↓"
            rows.append([name, metric, better, *_figures(found), task.documents, task.num_fewshot])
    for name, group in record.groups.items():
        documents = sum(record.foreign[task].documents for task in group.tasks)
        rows.extend(
            [f"{name} (group)", metric, "", *_figures(found), documents, ""] for metric, found in group.metrics.items()
        )
    seen = ""
    for row in rows:  # a task's name stands once
        row[0], seen = ("" if row[0] == seen else row[0]), row[0]
    headers = ["lm-eval's task", "metric", "", "value", "standard error", "documents", "examples shown"]
    return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)


def _figures(metric: MetricRecord) -> list[str]:
    return ["–" if figure is None else f"{figure:.4g}" for figure in (metric.value, metric.stderr)]


def answer_table(words: Sequence[str], choices: Mapping[str, float]) -> str:
    """Format what `rsg-harness predict` prints: the choices, the most probable first.

    Args:
        words: what the prompt calls each choice.
        choices: label -> probability, in the same order.
    """
    rows = [(label, word, f"{100 * share:5.1f}%") for word, (label, share) in zip(words, choices.items(), strict=True)]
    order = sorted(range(len(rows)), key=lambda index: -list(choices.values())[index])
    return tabulate([rows[index] for index in order], headers=["label", "in words", "probability"])


def _heading(record: RunRecord) -> str:
    limit = f", at most {record.data.limit} documents a task" if record.data.limit else ""
    data = f"\ndata: {record.data.description}, {record.data.split}{limit}" if record.tasks else ""
    if record.endpoint:
        return f"{record.model.name} · {record.endpoint.address} · {' and '.join(record.endpoint.apis)} API{data}"
    computed = f"executed by {record.execution} on {record.device} in {record.dtype}"
    return f"{record.model.name} · {record.backend} (weights: {record.model.weights}) · {computed}{data}"


def _constant_answer(answers: Mapping[str, int]) -> str:
    """Say which label nearly all answers name; "" where there is none, or there are few answers."""
    total = sum(answers.values())
    label, count = max(answers.items(), key=lambda found: found[1], default=("", 0))
    if total < FEWEST_ANSWERS or count < NEARLY_ALL * total:
        return ""
    return f"{100 * count / total:.0f}% of the answers are {label}: compare with a constant answer"


def _cost(record: RunRecord) -> str:
    timing, tokens, memory = record.timing, record.tokens, record.memory
    saved = ""
    if tokens and tokens.shared:
        saved = f", {100 * tokens.shared / (tokens.computed + tokens.shared):.0f}% of the tokens shared"
    speed = f"{timing.records_per_second:.1f} documents a second ({timing.scoring_seconds:.1f} s{saved})"
    if memory is None:
        return speed
    return (
        f"{speed}, peak memory {mebibytes(memory.peak_bytes)} MiB, weights {mebibytes(record.model.weights_bytes)} MiB"
    )


def _summary(record: RunRecord) -> list[str]:
    lines = []
    if record.score is not None:
        lines.append(f"score {estimate_text(record.score, record.score_stderr)} (mean of the nine tasks)")
    elif record.mean is not None:
        lines.append(
            f"mean of these {len(record.tasks)} tasks {estimate_text(record.mean, record.mean_stderr)} "
            "(no Russian SuperGLUE score: that takes all nine)"
        )
    if record.data.source == "mini" and record.tasks:
        lines.append(MINI_NOTE)
    if record.execution == "torch" and record.backend.startswith("mlx"):
        lines.append("MLX weights executed by torch: the scores are real, the speed is not MLX's.")
    lines.append(_cost(record))
    lines.extend(
        f"{name}: {task.truncated} requests cut to the model's context"
        for name, task in record.foreign.items()
        if task.truncated
    )
    for name, task in record.tasks.items():
        notes = [
            (task.truncated, "requests cut to the model's context"),
            (task.ties, "documents with tied choices"),
            (task.unreadable, "unreadable answers"),
        ]
        lines.extend(f"{name}: {count} {what}" for count, what in notes if count)
        if constant := _constant_answer(task.answers):
            lines.append(f"{name}: {constant}")
    return lines
