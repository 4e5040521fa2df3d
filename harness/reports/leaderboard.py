"""results/leaderboard.md and leaderboard.json, made from the run records alone."""

from __future__ import annotations

import json
from pathlib import Path

from harness.files import write_atomically
from harness.reports.leaderboard_page import page
from harness.reports.leaderboard_rows import Leaderboard, build_leaderboard

__all__ = ["Leaderboard", "build_leaderboard", "write_leaderboard"]


def write_leaderboard(results: Path) -> list[Path]:
    """Makes both files anew from the records under `results`/runs. The same records give the same bytes.

    Returns:
        The files written.

    Raises:
        UserError: there is no readable record, or the directory cannot be written.
    """
    board = build_leaderboard(results)
    document = json.dumps(board.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n"
    files = {results / "leaderboard.md": page(board), results / "leaderboard.json": document}
    for path, text in files.items():
        write_atomically(path, text)
    return list(files)
