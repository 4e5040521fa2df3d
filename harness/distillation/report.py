"""The quality of a distillation, from its lines alone: for the terminal, as report.md and as report.json."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.distillation.lines import DocumentLine, LabelLine, Line, Usage, read_lines
from harness.files import write_atomically
from harness.settings import read_settings
from harness.tasks import get_task
from harness.tasks.answers import pick_choice

REPORT_TEXT, REPORT = "report.md", "report.json"
# A larger share of answers cut at max_tokens is reported.
_CUT_SHARE = 0.05


@dataclass(frozen=True)
class Prices:
    """Prices of a million tokens, in any currency."""

    input: float
    output: float

    def cost(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.input + usage.completion_tokens * self.output) / 1e6


def write_report(directory: Path, prices: Prices | None) -> str:
    """Write both reports of a distillation and return the text.

    Raises:
        UserError: The lines are damaged, or the directory cannot be written.
    """
    report = make_report(read_settings(directory), read_lines(directory), prices)
    text = report_text(report)
    write_atomically(directory / REPORT, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    write_atomically(directory / REPORT_TEXT, f"# Distillation\n\n{text}\n")
    return text


def make_report(settings: dict[str, Any], lines: Iterable[Line], prices: Prices | None) -> dict[str, Any]:
    """Return everything that a report says, as plain values."""
    by_task: defaultdict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_task[line.task].append(line)
    every = [line for found in by_task.values() for line in found]
    usage = sum((line.usage for line in every), Usage())
    cut = [line for line in every if line.cut]
    lost = [
        line
        for line in cut
        if (line.probabilities if isinstance(line, LabelLine) else line.document) is None
    ]  # fmt: skip
    return {
        "teacher": settings["teacher"],
        "kind": settings["kind"],
        "items": settings["items"],
        "answered": len(every),
        "cut": len(cut),
        "cut_without_answer": len(lost),
        "max_tokens": settings["sampling"]["max_tokens"],
        "usage": usage.model_dump(),
        "cost": prices.cost(usage) if prices else None,
        "tasks": {task: _task_report(task, found) for task, found in by_task.items()},
    }


def _task_report(task: str, lines: Sequence[Line]) -> dict[str, Any]:
    labelled = [line for line in lines if isinstance(line, LabelLine)]
    written = [line for line in lines if isinstance(line, DocumentLine)]
    return _label_report(task, labelled) if labelled else _document_report(task, written)


def _label_report(task: str, lines: Sequence[LabelLine]) -> dict[str, Any]:
    answered = [line for line in lines if line.probabilities is not None]
    picked = [(line, pick_choice(line.probabilities or [])) for line in answered]
    # A line does not hold its document's own choices (RuCoS's entities): their numbers stand for them.
    right = [choice in line.gold if isinstance(line.gold, list) else choice == line.gold for line, choice in picked]
    rests = [line.rest for line in lines if line.rest is not None]
    names = get_task(task).labels
    return {
        "lines": len(lines),
        "answered": len(answered),
        "agreement_with_gold": sum(right) / len(right) if right else None,
        "confidence": sum(max(line.probabilities or [0.0]) for line in answered) / len(answered) if answered else None,
        "how": dict(Counter(line.how for line in answered)),
        "rest": sum(rests) / len(rests) if rests else None,
        "refused": sum(line.outcome == "refused" for line in lines),
        "unparsable": sum(line.outcome == "unparsable" for line in lines),
        "labels": dict(Counter(names[choice] for _, choice in picked)) if names else {},
        "gold_labels": dict(Counter(names[line.gold] for line in lines if isinstance(line.gold, int))) if names else {},
    }


def _document_report(task: str, lines: Sequence[DocumentLine]) -> dict[str, Any]:
    kept = [line.document for line in lines if line.document is not None]
    return {
        "lines": len(lines),
        "kept": len(kept),
        "dropped": dict(Counter(line.dropped for line in lines if line.dropped is not None).most_common()),
        "labels": dict(Counter(get_task(task).labels[row["label"]] for row in kept)),
    }


def report_text(report: dict[str, Any]) -> str:
    """Return the report for people."""
    usage = report["usage"]
    cost = "" if report["cost"] is None else f", cost {report['cost']:.2f}"
    parts = [
        f"{report['answered']:,} of {report['items']:,} items answered by {report['teacher']}: "
        f"{usage['prompt_tokens']:,} prompt and {usage['completion_tokens']:,} completion tokens{cost}",
        _label_table(report["tasks"]) if report["kind"] == "labels" else _document_table(report["tasks"]),
    ]
    if report["cut"] > _CUT_SHARE * report["answered"]:
        parts.append(
            f"{report['cut']:,} answers end at --max-tokens {report['max_tokens']}, {report['cut_without_answer']:,} "
            f"of them before they answer{': raise it' if report['cut_without_answer'] else ''}."
        )
    return "\n\n".join(parts)


def _label_table(tasks: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            task, found["lines"], _percent(found["agreement_with_gold"]), _percent(found["confidence"]),
            found["how"].get("logprobs", 0), found["refused"], found["unparsable"],
            _balance(found["labels"]), _balance(found["gold_labels"]),
        ]
        for task, found in tasks.items()
    ]  # fmt: skip
    headers = [
        "task", "asked", "agrees with gold", "confidence", "soft", "refused", "unparsable", "labels", "labels of gold",
    ]  # fmt: skip
    return tabulate(rows, headers=headers, tablefmt="github")


def _document_table(tasks: dict[str, dict[str, Any]]) -> str:
    rows = [
        [
            task, found["lines"], found["kept"], _balance(found["labels"]),
            "; ".join(f"{reason}: {count}" for reason, count in found["dropped"].items()),
        ]
        for task, found in tasks.items()
    ]  # fmt: skip
    return tabulate(rows, headers=["task", "asked", "kept", "labels", "dropped"], tablefmt="github")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _balance(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {100 * counts[name] / total:.0f}%" for name in sorted(counts))
