"""The installed command, as the tests call it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]
# Matrices as small as the tiny model's only wait for a second thread. Runs that are compared bit by bit need the same.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
RSG_HARNESS = str(Path(sys.executable).with_name("rsg-harness"))
