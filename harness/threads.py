"""OpenMP's threads: how they wait for each other decides how well a run shares the machine."""

from __future__ import annotations

import os


def limit_spinning() -> None:
    """Let OpenMP's threads sleep at barriers instead of spinning, unless the user has chosen how they wait.

    Spinning threads take the processor from every other process. Works only before the OpenMP library is loaded.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
