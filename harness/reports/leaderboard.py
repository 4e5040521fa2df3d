"""results/leaderboard.md and leaderboard.json, made from the run records alone. `rsg-harness leaderboard` calls this.

A row is a model on a backend under one way of asking. Runs that agree in all of that add up to one row: the newest run
of each task counts. Speed and memory follow MOROCCO (Malykh et al. 2021, https://arxiv.org/abs/2104.14314).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.data import TASKS
from harness.errors import UserError
from harness.evaluation.metrics import Estimate, mean_estimate
from harness.evaluation.record import RESULTS, MetricRecord, RunRecord, TaskRecord, read_record, write_atomically
from harness.reports.leaderboard_page import page
from harness.reports.published import METRIC_PARTS, PUBLISHED
