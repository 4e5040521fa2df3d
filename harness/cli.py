"""The command `rsg-harness`: parses, calls, prints. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import harness
from adapters.base import UserError

if TYPE_CHECKING:
    from harness.evaluation.options import RunOptions
    from harness.records.run import RunRecord

_EPILOG = """\
examples:
  rsg-harness run                                                  the embedded model on the mini set
  rsg-harness run --backend mlx-q4 --model google/gemma-3-1b-it --data hub
  rsg-harness run --data path/to/official --tasks terra,rcb --limit 200 --num-fewshot 2
  rsg-harness run --output DIR --resume                            go on with a killed run
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="rsg-harness",
        description="Russian SuperGLUE for small Gemma-3 models, from PyTorch to 4-bit MLX.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rsg-harness {harness.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_run(verbs)
    _add_train(verbs)
    _add_distill(verbs)
    _add_predict(verbs)
    _add_quantize(verbs)
    _add_sweep(verbs)
    _add_adapt(verbs)
    _add_bot(verbs)
    _add_verb(verbs, "tasks", _tasks, "the tasks and their prompts")
    _add_verb(verbs, "backends", _backends, "the backends, and which of them run here")
    _add_verb(verbs, "doctor", _doctor, "what this machine can do, and what is missing")
    board = _add_verb(
        verbs, "leaderboard", _leaderboard, "make results/leaderboard.md and .json again from the run records"
    )
    board.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    report = _add_verb(verbs, "report", _report, "make results/index.html, the leaderboard as one page with charts")
    report.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    compare = _add_verb(
        verbs,
        "compare",
        _compare,
        "did the second of two runs really get worse?",
        "Compares two runs over the same documents and prompts: paired differences with intervals, exact tests, "
        "flipped answers.",
    )
    compare.add_argument("before", type=Path, metavar="RUN_A", help="directory of a finished run")
    compare.add_argument("after", type=Path, metavar="RUN_B")
    compare.add_argument("--flips", type=int, default=0, metavar="N", help="show this many flipped documents a task")
    submit = _add_verb(verbs, "submit", _submit, "make the official archive from runs over the test split")
    submit.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="directory of a run; several may share the tasks"
    )
    submit.add_argument("--output", type=Path, default=Path("submission.zip"), metavar="ZIP")
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    call: Callable[[argparse.Namespace], None],
    text: str,
    description: str | None = None,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    """A verb with its line in the list of verbs, and a longer description where one is needed."""
    verb = verbs.add_parser(
        name,
        help=text,
        description=description or text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
        allow_abbrev=False,
    )
    verb.set_defaults(call=call)
    return verb


def _add_run(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _add_verb(
        verbs,
        "run",
        _run,
        "evaluate a model",
        "Evaluates a model on Russian SuperGLUE and writes a record.",
        epilog=_EPILOG,
    )
    model = run.add_argument_group("model")
    _add_model_options(model)
    _add_backend_options(model)
    work = _add_run_options(run)
    work.add_argument("--output", type=Path, metavar="DIR", help="default: results/runs/DATE-MODEL-BACKEND")
    work.add_argument(
        "--resume", action="store_true", help="go on with the unfinished run in --output, or the latest one"
    )


def _add_sweep(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = _add_verb(
        verbs,
        "sweep",
        _sweep,
        "evaluate a model on several backends, each beside the first",
        "Runs one evaluation on several backends and prints a table: what each costs in quality, memory and time.",
    )
    model = sweep.add_argument_group("model")
    _add_model_options(model)
    model.add_argument(
        "--backends",
        default="torch,mlx-fp16,mlx-q8,mlx-q6,mlx-q4,mlx-q3",
        metavar="NAMES",
        help="comma-separated, with arguments after colons: mlx-q4:group_size=32 (default: %(default)s)",
    )
    work = _add_run_options(sweep)
    work.add_argument(
        "--output", type=Path, metavar="PREFIX", help="PREFIX-BACKEND; default: results/runs/DATE-MODEL-BACKEND"
    )
    work.add_argument("--resume", action="store_true", help="go on with the sweep to --output")


def _add_run_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What is asked and how it is worked off. Gives the group for where the record goes."""
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        default="mini",
        metavar="SOURCE",
        help="mini (bundled, default), hub, or the official archive's directory",
    )
    data.add_argument(
        "--tasks", default="rsg", metavar="NAMES", help="comma-separated; rsg (default) and rsg_gen are groups"
    )
    data.add_argument("--split", default="validation", metavar="NAME", help="train, validation (default), test")
    data.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="this many documents a task, evenly sampled by the seed; for MuSeRC a document is a paragraph with all "
        "its answers (lm-eval's own --limit counts answers, and takes the first ones)",
    )
    data.add_argument(
        "--num-fewshot", type=int, default=0, metavar="N", help="examples before each question (default: 0)"
    )
    data.add_argument("--prompt", metavar="NAME", help="another prompt than the default: NAME, or TASK=NAME,TASK=NAME")
    data.add_argument(
        "--apply-chat-template", default="auto", metavar="WHEN", help="auto (default: if the model has one), on, off"
    )
    work = parser.add_argument_group("work")
    work.add_argument(
        "--batch-tokens", type=int, metavar="N", help="tokens in a batch (default: what suits the device)"
    )
    work.add_argument(
        "--seed", type=int, default=1234, metavar="N", help="of samples, examples, bootstrap (default: 1234)"
    )
    return work


def _add_backend_options(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", default="torch", metavar="NAME", help="see `rsg-harness backends` (default: torch)"
    )
    parser.add_argument(
        "--backend-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="e.g. group_size=32, threads=4; repeatable",
    )


def _add_model_options(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """What names a model and how it computes; the same for every verb that loads one."""
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="best (default where a checkpoint is kept), embedded, a directory, a .gguf file, a hub repository",
    )
    parser.add_argument(
        "--execution",
        default="auto",
        metavar="LIBRARY",
        help="auto, mlx or torch: what computes an mlx-* backend (auto: MLX on an Apple GPU, else PyTorch)",
    )
    parser.add_argument(
        "--dtype", default="auto", metavar="TYPE", help="auto, float32, bfloat16, float16 of the computation"
    )


def _add_predict(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    predict = _add_verb(
        verbs,
        "predict",
        _predict,
        "answer one question, with probabilities",
        "Answers one question of a task. The task decides which fields it takes: "
        "rsg-harness predict --task terra --premise TEXT --hypothesis TEXT",
    )
    _add_model_options(predict)
    _add_backend_options(predict)
    predict.add_argument("--task", required=True, metavar="NAME", help="see `rsg-harness tasks`")
    fields = predict.add_argument_group("fields of the question")
    for name, text in _FIELD_HELP.items():
        fields.add_argument(f"--{name.replace('_', '-')}", metavar="TEXT", help=text)


# Here, so that --help need not import what knows the tasks.
_FIELD_HELP = {
    "premise": "terra, rcb, parus",
    "hypothesis": "terra, rcb",
    "sentence1": "lidirus, russe",
    "sentence2": "lidirus, russe",
    "question": "danetqa, muserc; parus: cause or effect",
    "choice1": "parus",
    "choice2": "parus",
    "passage": "danetqa, rucos",
    "paragraph": "muserc",
    "answer": "muserc",
    "word": "russe",
    "text": "rwsd",
    "span1_text": "rwsd: the noun phrase",
    "span2_text": "rwsd: the pronoun",
    "query": "rucos: with @placeholder for the gap",
    "entities": "rucos: separated by semicolons",
}


def _add_train(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _add_verb(
        verbs,
        "train",
        _train,
        "train one multitask model",
        "Trains one model with a head for each task, by a recipe, and writes a checkpoint. Several "
        "processes or machines: accelerate launch -m harness.cli train --recipe NAME",
    )
    train.add_argument("--recipe", required=True, metavar="NAME", help="a bundled recipe, or the path of a .yaml file")
    train.add_argument("--model", metavar="NAME", help="as for run: in place of the recipe's base model")
    train.add_argument(
        "--data", default="mini", metavar="SOURCE", help="mini (default), hub, or the official archive's directory"
    )
    train.add_argument("--output", type=Path, metavar="DIR", help="default: results/checkpoints/RECIPE-rsg")
    train.add_argument("--resume", action="store_true", help="go on with the unfinished training to --output")
    train.add_argument(
        "--distilled",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a teacher's labels or documents, of rsg-harness distill; repeatable",
    )


def _add_distill(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    distill = _add_verb(
        verbs,
        "distill",
        _distill,
        "let a larger model label train documents, or write new ones",
        "Asks a teacher behind any OpenAI-compatible server (vLLM, llama.cpp, mlx_lm.server) about train documents "
        "and keeps its labels, soft where the server gives log-probabilities, for train --distilled. Validation, test "
        "and LiDiRus documents are never sent. The API key comes from the environment (OPENAI_API_KEY) or a file.",
    )
    teacher = distill.add_argument_group("teacher")
    teacher.add_argument("--endpoint", required=True, metavar="URL", help="http://HOST:PORT/v1")
    teacher.add_argument("--teacher", required=True, metavar="NAME", help="the model's name there")
    teacher.add_argument("--api", default="chat", metavar="NAME", help="chat (default), or completions for base models")
    teacher.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the key; default: OPENAI_API_KEY")
    teacher.add_argument(
        "--concurrency", type=int, default=16, metavar="N", help="items asked at a time (default: %(default)s)"
    )
    teacher.add_argument(
        "--timeout", type=float, default=300, metavar="SECONDS", help="for one answer (default: %(default)s)"
    )
    teacher.add_argument("--price-input", type=float, metavar="N", help="per million prompt tokens")
    teacher.add_argument("--price-output", type=float, metavar="N", help="per million completion tokens")
    data = distill.add_argument_group("what is asked")
    data.add_argument(
        "--data", default="mini", metavar="SOURCE", help="mini (default), hub, or the official archive's directory"
    )
    data.add_argument("--tasks", default="rsg", metavar="NAMES", help="comma-separated; default: all but lidirus")
    data.add_argument("--split", default="train", metavar="NAME", help="train, and no other")
    data.add_argument("--limit", type=int, metavar="N", help="this many documents a task, evenly sampled by the seed")
    data.add_argument("--prompt", metavar="NAME", help="of rsg_gen's: NAME, or gen_TASK=NAME,gen_TASK=NAME")
    data.add_argument(
        "--rationale", action="store_true", help="ask for a short explanation before the answer, and keep it"
    )
    data.add_argument(
        "--generate",
        metavar="KIND",
        help="in place of labels, new documents for rcb, parus, rwsd: paraphrases of train documents, or examples",
    )
    data.add_argument("--count", type=int, default=100, metavar="N", help="of them a task (default: %(default)s)")
    sampling = distill.add_argument_group("sampling")
    sampling.add_argument(
        "--samples", type=int, default=1, metavar="N", help="answers an item; their shares become its soft label"
    )
    sampling.add_argument(
        "--temperature", type=float, metavar="T", help="default: 0; 0.7 for several samples, 0.9 for --generate"
    )
    sampling.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of an answer (default: 24; 256 with --rationale, 512 for --generate)",
    )
    sampling.add_argument("--seed", type=int, default=1234, metavar="N", help="default: %(default)s")
    work = distill.add_argument_group("work")
    work.add_argument("--output", type=Path, required=True, metavar="DIR", help="missing or empty")
    work.add_argument("--resume", action="store_true", help="go on with what --output holds; asks again what failed")


def _add_quantize(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    quantize = _add_verb(
        verbs,
        "quantize",
        _quantize,
        "write a quantised copy of a model or checkpoint",
        "Quantises the backbone as mlx_lm.convert does, keeps task heads in full precision, and writes a "
        "directory that `run`, `predict` and mlx_lm.generate load.",
    )
    quantize.add_argument("--model", metavar="NAME", help="as for run; default: best, else embedded")
    quantize.add_argument("--output", type=Path, required=True, metavar="DIR", help="missing or empty")
    quantize.add_argument("--bits", type=int, metavar="N", help="3, 4 (default), 6 or 8")
    quantize.add_argument(
        "--group-size", type=int, metavar="N", help="weights that share a scale: 32, 64 (default), 128"
    )
    quantize.add_argument("--mode", default="affine", metavar="NAME", help="affine (default), mxfp4, nvfp4, mxfp8")
    quantize.add_argument("--recipe", metavar="NAME", help="mixed_3_4, mixed_3_6, mixed_4_6: mlx-lm's mixed recipes")
    quantize.add_argument(
        "--method",
        default="plain",
        metavar="NAME",
        help="plain (default); sensitivity: more bits for the parts whose rounding moves the model's answers most; "
        "dwq, awq: learned by mlx-lm from texts",
    )
    quantize.add_argument(
        "--data", default="mini", metavar="SOURCE", help="for all but plain: whose train documents are read"
    )
    quantize.add_argument("--samples", type=int, metavar="N", help="for dwq (2048) and awq (128): how many of them")
    quantize.add_argument(
        "--target-bits", type=float, default=5.0, metavar="N", help="for sensitivity: bits a weight (default: 5)"
    )


def _add_adapt(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    adapt = _add_verb(
        verbs,
        "adapt",
        _adapt,
        "fit a model's vocabulary to Russian",
        "Extends a model's vocabulary with Russian tokens, drops the tokens that texts do not use, or both, and "
        "measures what that changed.",
    )
    adapt.add_argument("--model", default="embedded", metavar="NAME", help="as for run; default: embedded")
    adapt.add_argument(
        "--corpus",
        action="append",
        default=[],
        metavar="TEXTS",
        help="a file, a directory, hub:NAME or rsg (train texts of --data); repeatable, the first one is measured on",
    )
    adapt.add_argument("--analyse", action="store_true", help="only tell what a vocabulary would save")
    adapt.add_argument("--new-tokens", type=int, default=0, metavar="N", help="learn this many from the corpora")
    adapt.add_argument("--prune", action="store_true", help="drop tokens that the corpora do not use")
    adapt.add_argument(
        "--min-count", type=int, default=1, metavar="N", help="of --prune: keep what is used so often (default: 1)"
    )
    adapt.add_argument(
        "--row-steps", type=int, default=0, metavar="N", help="pre-training of the new tokens' rows (default: 0)"
    )
    adapt.add_argument("--lora-steps", type=int, default=0, metavar="N", help="then, of LoRA with them (default: 0)")
    adapt.add_argument("--data", default="mini", metavar="SOURCE", help="as for run: whose train texts `rsg` means")
    adapt.add_argument("--output", type=Path, metavar="DIR", help="where to; needed without --analyse")
    adapt.add_argument("--resume", action="store_true", help="go on with the unfinished pre-training to --output")


def _add_bot(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bot = _add_verb(
        verbs,
        "bot",
        _bot,
        "try a model in a chat: Telegram, or the terminal",
        "Serves a model in Telegram: questions of the nine tasks with probabilities, and free conversation. The token "
        "comes from the environment (TELEGRAM_BOT_TOKEN) or a file.",
    )
    model = bot.add_argument_group("model")
    _add_model_options(model)
    _add_backend_options(model)
    chat = bot.add_argument_group("chat")
    chat.add_argument("--console", action="store_true", help="the same bot in the terminal: no token, no network")
    chat.add_argument("--language", default="ru", choices=("ru", "en"), help="of --console (default: ru)")
    chat.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token; default: TELEGRAM_BOT_TOKEN")
    chat.add_argument(
        "--allow", default="", metavar="IDS", help="comma-separated ids of the users who may ask (default: everybody)"
    )
    chat.add_argument(
        "--store", type=Path, metavar="FILE", help="of dialogues; default: bot/bot.sqlite in the cache directory"
    )
    chat.add_argument("--api-url", metavar="URL", help="of a Bot API server of your own (default: Telegram's)")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _progress_bars() -> Iterator[Callable[[str, int], Callable[[int], object]]]:
    """Gives a function that starts a bar with the time left: tokens for scoring, else pieces of work.

    Leaving closes the bars, so that an error stands on a line of its own.
    """
    from tqdm import tqdm

    with contextlib.ExitStack() as bars:

        def start(what: str, total: int) -> Callable[[int], object]:
            scoring = what == "scoring"
            unit = " tok" if scoring else ""
            return bars.enter_context(tqdm(total=total, desc=what, unit=unit, unit_scale=scoring, disable=False)).update

        yield start


@contextlib.contextmanager
def _training_bar() -> Iterator[Callable[[int], Callable[[int, str], None]]]:
    """Gives a function that starts a bar of so many steps, with a text beside."""
    from tqdm import tqdm

    with contextlib.ExitStack() as bars:

        def start(steps: int) -> Callable[[int, str], None]:
            bar = bars.enter_context(tqdm(total=steps, desc="training", unit=" step", disable=False))

            def show(step: int, text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                if bar.n == 0 and step:
                    bar.initial = step  # resumed: the time left is reckoned from the steps of this process
                bar.update(step - bar.n)

            return show

        yield start


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run_options(args: argparse.Namespace) -> RunOptions:
    """What `run` and `sweep` both take."""
    from harness.evaluation.options import RunOptions

    return RunOptions(
        model=args.model,
        execution=args.execution,
        dtype=args.dtype,
        data=args.data,
        tasks=_names(args.tasks),
        split=args.split,
        limit=args.limit,
        num_fewshot=args.num_fewshot,
        prompt=args.prompt,
        apply_chat_template=args.apply_chat_template,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        output=args.output,
        resume=args.resume,
        command=args.command,
    )


def _run(args: argparse.Namespace) -> None:
    # The libraries' own bars, which tqdm reads this for when it is first imported, would only hide ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.processes import started_processes
    from harness.reports.tables import run_table

    options = dataclasses.replace(_run_options(args), backend=args.backend, backend_args=tuple(args.backend_arg))
    record, directory = _run_with_bars(options)
    if started_processes().is_first:
        print(run_table(record))
        print(f"record: {directory}")


def _run_with_bars(options: RunOptions) -> tuple[RunRecord, Path]:
    from harness.evaluation.run import run

    with _progress_bars() as progress:
        return run(options, _say, progress)


def _sweep(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.evaluation.sweep import sweep, sweep_table
    from harness.processes import run_apart, started_processes

    # Processes of a launcher are bound to each other and stay what they are.
    alone = started_processes().size == 1
    run_one = functools.partial(run_apart, _run_with_bars) if alone else _run_with_bars
    rows = sweep(_run_options(args), _names(args.backends), _say, run_one)
    if rows:
        print(sweep_table(rows))


def _train(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from tqdm import tqdm

    from harness.training.train import TrainOptions, train

    options = TrainOptions(
        args.recipe,
        args.data,
        args.output,
        args.resume,
        distilled=tuple(args.distilled),
        command=args.command,
        model=args.model,
    )
    with _training_bar() as progress:
        directory = train(options, lambda text: tqdm.write(text, file=sys.stderr), progress)
    print(f"checkpoint: {directory}")


def _distill(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from tqdm import tqdm

    from harness.distillation.distill import distill
    from harness.distillation.options import DistillOptions

    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(DistillOptions)}
    options = DistillOptions(**{**given, "tasks": _names(args.tasks)})
    with contextlib.ExitStack() as bars:

        def progress(total: int, done: int) -> Callable[[str], None]:
            bar = bars.enter_context(tqdm(total=total, initial=done, desc="asking", unit=" item", disable=False))

            def show(text: str) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            return show

        done = distill(options, lambda text: tqdm.write(text, file=sys.stderr), progress)
    print(done.report)
    done.check_complete()


def _predict(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.evaluation.predict import Predictor, make_document, timed_answer
    from harness.reports.tables import answer_table

    fields = {name: getattr(args, name) for name in _FIELD_HELP}
    make_document(args.task, fields)  # refuses before a model is loaded
    predictor = Predictor(args.model, args.backend, args.backend_arg, args.execution, args.dtype, _say)
    answer, seconds = timed_answer(predictor, args.task, fields)
    print(answer_table(answer.words, answer.choices))
    print(f"{predictor.model.name} · {predictor.backend.info.name}, {1000 * seconds:.0f} ms")


def _bot(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.bot.run import BotOptions, run_bot

    options = BotOptions(
        model=args.model,
        backend=args.backend,
        backend_args=tuple(args.backend_arg),
        execution=args.execution,
        dtype=args.dtype,
        console=args.console,
        language=args.language,
        token_file=args.token_file,
        allowed=_names(args.allow),
        store=args.store,
        api_url=args.api_url,
    )
    with contextlib.suppress(KeyboardInterrupt):  # how one leaves the console
        run_bot(options, _say)


def _adapt(args: argparse.Namespace) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.adaptation.adapt import AdaptOptions, adapt, analyse, before_and_after
    from harness.adaptation.pretrain import Pretraining

    options = AdaptOptions(
        corpora=tuple(args.corpus),
        model=args.model,
        output=args.output,
        new_tokens=args.new_tokens,
        prune=args.prune,
        min_count=args.min_count,
        data=args.data,
        training=Pretraining(row_steps=args.row_steps, lora_steps=args.lora_steps),
        resume=args.resume,
        command=args.command,
    )
    if args.analyse:
        print(analyse(options, _say))
        return
    if args.output is None:
        raise UserError("no --output", "name a directory for the adapted model, or give --analyse")
    with _progress_bars() as progress, _training_bar() as training_bar:
        adapted = adapt(options, _say, progress, training_bar)
    print(before_and_after(adapted))
    print(f"model: {adapted.directory}")


def _quantize(args: argparse.Namespace) -> None:
    from harness.quantization.quantize import SAMPLES, QuantizeOptions, quantize

    if args.method not in SAMPLES:  # where mlx-lm's own bars are all that tells how far it is
        os.environ.setdefault("TQDM_DISABLE", "1")
    from harness.files import MIB

    options = QuantizeOptions(
        output=args.output,
        model=args.model,
        bits=args.bits,
        group_size=args.group_size,
        mode=args.mode,
        recipe=args.recipe,
        method=args.method,
        data=args.data,
        samples=args.samples,
        target_bits=args.target_bits,
    )
    with _progress_bars() as progress:
        done = quantize(options, _say, progress)
    share = done.bytes_after / done.bytes_before
    print(
        f"{done.directory}: {done.bits_per_weight:.2f} bits a weight, "
        f"{done.bytes_before / MIB:.0f} → {done.bytes_after / MIB:.0f} MiB ({100 * share:.0f}%)"
    )


def _tasks(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from harness.tasks.prompts import task_files

    rows = [[file.name, file.full_name, ", ".join(file.prompts), file.description] for file in task_files().values()]
    print(tabulate(rows, headers=["task", "in lm-eval", "prompts (default first)", "what it asks"]))


def _backends(args: argparse.Namespace) -> None:
    from tabulate import tabulate

    from harness.doctor import backend_rows

    print(tabulate(backend_rows(), headers=["backend", "here", "what it is"]))


def _doctor(args: argparse.Namespace) -> None:
    from harness.doctor import report

    print(report())


def _leaderboard(args: argparse.Namespace) -> None:
    from harness.reports.leaderboard import write_leaderboard

    for path in write_leaderboard(args.results):
        print(path)


def _report(args: argparse.Namespace) -> None:
    from harness.reports.html_page import write_page

    print(write_page(args.results, _say))


def _compare(args: argparse.Namespace) -> None:
    from harness.reports.compare import compare, comparison_text

    print(comparison_text(compare(args.before, args.after), args.flips))


def _submit(args: argparse.Namespace) -> None:
    from harness.reports.submission import write_submission

    for line in write_submission(args.runs, args.output):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command. Exit code 0; 2 for what the user can mend; 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(given)
    args.command = shlex.join(["rsg-harness", *given])
    try:
        args.call(args)
    except UserError as error:
        _say(f"rsg-harness: error: {error.message}" + (f" — {error.hint}" if error.hint else ""))
        return 2
    except KeyboardInterrupt:
        _say("rsg-harness: interrupted; what was scored is kept, go on with --resume")
        return 130
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
