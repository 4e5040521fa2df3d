"""How OpenMP's threads wait for each other, which decides how well a run shares the machine."""

from __future__ import annotations

import os

# Turns of a waiting thread's loop before it sleeps, about 10 microseconds; GNU OpenMP's own 300,000 are milliseconds.
# scripts/side_by_side.py shows that two runs then share two cores fairly.
SPIN_COUNT = 1000
_USERS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning() -> None:
    """Let OpenMP's waiting threads sleep soon, unless the user has set how they wait.

    Threads that spin at barriers take the processor from every other process. The setting has an effect only before
    the OpenMP library is loaded, which importing torch does. It concerns GNU OpenMP, which torch uses on Linux.
    """
    if not any(name in os.environ for name in _USERS_OWN):
        os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)
