"""Arguments and types of arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

# A parser, or a group of one.
Container = argparse._ActionsContainer


def expanded(text: str) -> str:
    """Return a name or a path with a leading "~" as the home directory; shells leave it in `--output=~/x`."""
    return os.path.expanduser(text)


def path(text: str) -> Path:
    """Return a path with a leading "~" as the home directory."""
    return Path(expanded(text))


def names(text: str) -> tuple[str, ...]:
    """Split comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


class Repeated(argparse.Action):
    """Collects the values of a repeatable option in a tuple."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Append the value."""
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def add_model(container: Container) -> None:
    """Add the arguments that choose a model and how it computes, but not its backend."""
    container.add_argument(
        "--model",
        type=expanded,
        metavar="NAME",
        help="best (default where a checkpoint is kept), embedded, a directory, a .gguf file, a hub repository",
    )
    container.add_argument(
        "--execution",
        metavar="LIBRARY",
        help="what computes an mlx-* backend: auto (MLX on an Apple GPU, else PyTorch), mlx or torch",
    )
    container.add_argument(
        "--dtype", metavar="TYPE", help="type of the computation: auto (default), float32, bfloat16, float16"
    )
    container.add_argument(
        "--apply-chat-template", metavar="WHEN", help="auto (default: if the model has one), on, off"
    )


def add_backend(container: Container) -> None:
    """Add the arguments that choose one backend."""
    container.add_argument(
        "--backend",
        metavar="NAME",
        help="see `rsg-harness backends` (default: auto, which is torch, or mlx-q* for weights that MLX quantised)",
    )
    container.add_argument(
        "--backend-arg",
        dest="backend_args",
        action=Repeated,
        metavar="NAME=VALUE",
        help="e.g. group_size=32, threads=4; repeatable",
    )


def add_evaluation(parser: argparse.ArgumentParser) -> Container:
    """Add the arguments that choose the questions of a run and its batches; return the group for its output."""
    data = parser.add_argument_group("data")
    add_data(data)
    data.add_argument(
        "--tasks",
        type=names,
        metavar="NAMES",
        help="comma-separated; rsg (default) and rsg_gen are groups; lm-eval's tasks and groups too, by its names",
    )
    data.add_argument("--split", metavar="NAME", help="train, validation (default), test")
    data.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="this many documents a task, evenly sampled by the seed; for MuSeRC a document is a paragraph with all "
        "its answers (lm-eval's own --limit counts answers, and takes the first ones)",
    )
    data.add_argument(
        "--num-fewshot",
        type=int,
        metavar="N",
        help="examples before each question (default: 0, or the number of its own for a task of lm-eval's)",
    )
    data.add_argument("--prompt", metavar="NAME", help="another prompt than the default: NAME, or TASK=NAME,TASK=NAME")
    data.add_argument("--system-instruction", metavar="TEXT", help="what stands before everything else, as in lm-eval")
    add_include_path(data)
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens in a batch (default: what suits the device)"
    )
    work.add_argument("--seed", type=int, metavar="N", help="of samples, examples and bootstrap (default: 1234)")
    return work


def add_connection(container: Container, *, required: bool = False) -> None:
    """Add the arguments that name an OpenAI-compatible server and say how it is asked."""
    container.add_argument(
        "--endpoint", required=required, metavar="URL", help="http://HOST:PORT/v1 of an OpenAI-compatible server"
    )
    container.add_argument(
        "--api-key-file", type=path, metavar="FILE", help="holds the server's key (default: OPENAI_API_KEY)"
    )
    container.add_argument("--concurrency", type=int, metavar="N", help="questions asked at a time (default: 16)")
    container.add_argument("--timeout", type=float, metavar="SECONDS", help="for one answer (default: 300)")


def add_data(
    container: Container, what: str = "mini (bundled, default), hub, or the official archive's directory"
) -> None:
    """Add the argument that names the source of the documents."""
    container.add_argument("--data", type=expanded, metavar="SOURCE", help=what)


def add_include_path(container: Container) -> None:
    """Add the argument that names directories with tasks of the user's own."""
    container.add_argument(
        "--include-path",
        type=path,
        action=Repeated,
        metavar="DIR",
        help="a directory with tasks of your own, in lm-eval's format or YAML and Python; repeatable",
    )


def add_results(container: Container) -> None:
    """Add the argument that names the directory of all results."""
    container.add_argument("--results", type=path, metavar="DIR", help="default: results")
