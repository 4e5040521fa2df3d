"""The command `rsg-harness`: find the command, parse its arguments, call it. Nothing heavy is imported before that."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

import harness
from adapters.base import UserError
from harness.commands import COMMANDS, run
from harness.commands.arguments import add_include_path
from harness.progress import restored_output, show_output
from harness.threads import limit_spinning

# New objects between two searches for garbage (Python's own: 700, 10, 10). The libraries that a command imports make a
# million objects that stay; searching among them again and again takes a tenth of the time until it starts to work.
_COLLECTION_THRESHOLDS = (50_000, 10, 10)


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line.

    Args:
        only: The one command whose arguments are needed; those of predict take a moment. None: all.
    """
    parser = argparse.ArgumentParser(
        prog="rsg-harness",
        description="Russian SuperGLUE for small Gemma-3 models, from PyTorch to 4-bit MLX.",
        epilog=run.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rsg-harness {harness.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        epilog = getattr(module, "EPILOG", None)
        verb = verbs.add_parser(
            name,
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        if only in (None, name):
            module.add_arguments(verb)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Return 0; 2 after an error that the user can fix; 130 after an interruption."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = next((argument for argument in given if not argument.startswith("-")), None)
    interrupted = COMMANDS[name].INTERRUPTED if name in COMMANDS else "interrupted"
    with _restored_process():
        limit_spinning()
        gc.set_threshold(*_COLLECTION_THRESHOLDS)
        show_output()
        for stream in _text_streams():
            stream.reconfigure(errors="replace")  # not every encoding has all that is printed
        try:
            return _call(given, name)
        except UserError as error:
            print(f"rsg-harness: error: {error.message}" + (f" — {error.hint}" if error.hint else ""), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(f"rsg-harness: {interrupted}", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of a pipe went away; Python would complain when it flushes at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _call(given: list[str], name: str | None) -> int:
    """Parse the arguments and call the command; return the exit code."""
    try:
        _include_tasks(given)
        arguments = vars(build_parser(only=name or "").parse_args(given))
    except SystemExit as done:  # argparse has printed help or what is wrong
        return int(done.code or 0)
    module = COMMANDS[arguments.pop("verb")]
    if getattr(module, "RECORDS_COMMAND", False):
        arguments["command"] = shlex.join(["rsg-harness", *given])
    module.call(arguments)
    sys.stdout.flush()
    return 0


def _include_tasks(given: Sequence[str]) -> None:
    """Load the user's own tasks, before the parser of predict asks for the fields of all tasks."""
    parser = argparse.ArgumentParser(
        prog="rsg-harness", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    add_include_path(parser)
    directories = vars(parser.parse_known_args(given)[0]).get("include_path")
    if directories:
        from harness.tasks import include

        for directory in directories:
            include(directory)


def _text_streams() -> list[io.TextIOWrapper]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]


@contextlib.contextmanager
def _restored_process() -> Iterator[None]:
    """Restore the environment, the collector, what is shown and the streams' error handlers when the block ends."""
    environment = dict(os.environ)
    thresholds = gc.get_threshold()
    errors = [(stream, stream.errors) for stream in _text_streams()]
    try:
        with restored_output():
            yield
    finally:
        gc.set_threshold(*thresholds)
        os.environ.clear()
        os.environ.update(environment)
        for stream, before in errors:
            with contextlib.suppress(OSError, ValueError):  # it is closed, or nobody reads it
                stream.reconfigure(errors=before)


if __name__ == "__main__":
    sys.exit(main())
