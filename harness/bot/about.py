"""What /model says: the model that answers, and its figures on the leaderboard."""

from __future__ import annotations

from pathlib import Path

from harness.bot.texts import say
from harness.data.official import DIRECTORIES as TASK_NAMES
from harness.errors import UserError
from harness.evaluation.predict import Predictor
from harness.reports.leaderboard_rows import Row, build_leaderboard
from harness.reports.tables import estimate_text


def leaderboard_row(predictor: Predictor, results: Path) -> Row | None:
    """The row of this model on this backend over the most official documents; None if there is none."""
    if not (results / "runs").is_dir():
        return None
    try:
        rows = build_leaderboard(results).rows
    except UserError:
        return None
    info, model = predictor.backend.info, predictor.model
    own = [
        row
        for row in rows
        if row.group == "rsg"
        and (row.model.name, row.model.sha256, row.backend) == (model.name, model.fingerprint, info.name)
        and row.mean is not None
    ]
    return max(
        own, key=lambda row: (row.data.source == "official", sum(run.documents for run in row.runs)), default=None
    )


def describe(predictor: Predictor, row: Row | None, language: str) -> str:
    """The text of /model."""
    info = predictor.backend.info
    figures = say(language, "no_figures")
    if row is not None and row.mean is not None:
        limit = say(language, "limit", limit=row.data.limit) if row.data.limit else ""
        data = say(language, "data", source=say(language, row.data.source), limit=limit)
        score = estimate_text(row.mean, row.mean_stderr)  # of all nine tasks the mean is the score
        key = "partial_score" if row.score is None else "score"
        head = say(language, key, data=data, count=len(row.tasks), score=score)
        tasks = [f"{TASK_NAMES[name]}: {estimate_text(task.score, task.stderr)}" for name, task in row.tasks.items()]
        figures = "\n".join([head, "", *tasks])
    return say(
        language, "model", name=predictor.model.name, backend=info.name, weights=info.weights,
        execution=info.execution, device=info.device, dtype=info.dtype, figures=figures,
    )  # fmt: skip
