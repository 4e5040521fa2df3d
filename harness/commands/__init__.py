"""The commands of `rsg-harness`, a light module each: its arguments, the call, and what it prints.

A module has HELP (its line in the list of commands), DESCRIPTION, INTERRUPTED (what Ctrl-C tells the user),
`add_arguments` and `call`; where it has RECORDS_COMMAND, its options keep the command line. The arguments are named
after the fields of the command's options, and one that is not given is absent: a default stands in the options alone.
"""

from __future__ import annotations

from types import ModuleType

from harness.commands import (
    adapt,
    backends,
    bot,
    compare,
    distill,
    divergence,
    doctor,
    leaderboard,
    predict,
    quantize,
    report,
    run,
    submit,
    sweep,
    tasks,
    train,
)

# In the order of --help.
COMMANDS: dict[str, ModuleType] = {
    "run": run,
    "train": train,
    "distill": distill,
    "predict": predict,
    "quantize": quantize,
    "sweep": sweep,
    "divergence": divergence,
    "adapt": adapt,
    "bot": bot,
    "tasks": tasks,
    "backends": backends,
    "doctor": doctor,
    "leaderboard": leaderboard,
    "report": report,
    "compare": compare,
    "submit": submit,
}
