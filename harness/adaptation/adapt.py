"""`rsg-harness adapt`: a model with a vocabulary for Russian, and what that changed."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tokenizers import Tokenizer

from adapters.mlx_weights import parameter_count, quantization_of, read_config, stored_bytes
from harness.adaptation import tokenizer_file
from harness.adaptation.analyse import cost_table, count_tokens, text_use, use_table, vocabulary_cost
from harness.adaptation.corpus import Corpus, read_corpus, russian_share, task_texts
from harness.adaptation.likelihood import TextFigures, text_figures
from harness.adaptation.merges import learn_merges
from harness.adaptation.model_files import write_model
from harness.adaptation.new_rows import start_rows
from harness.adaptation.pretrain import Pretraining, pretrain
from harness.errors import UserError
from harness.evaluation.options import Progress
from harness.files import MIB, write_atomically
from harness.models.checkpoint import write_merged
from harness.models.resolve import LocalModel, resolve_model
from harness.records import provenance
from harness.settings import check_same_settings
from harness.training.card import NOTICE

ADAPTATION = "adaptation.json"
_SETTINGS = "settings.json"
_ENOUGH_RUSSIAN = 0.3
# Held-out texts that are scored before and after: about 100,000 characters, a minute or two on two cores.
_SCORED_TEXTS = 100

Bar = Callable[[int], Callable[[int, str], None]]


@dataclass(frozen=True)
class AdaptOptions:
    """What the user asked for; see `rsg-harness adapt --help`."""

    corpora: tuple[str, ...]
    model: str = "embedded"
    output: Path | None = None  # None: only analysed
    new_tokens: int = 0
    prune: bool = False
    min_count: int = 1  # pruning keeps tokens that the corpora have so often
    data: str = "mini"  # for the corpus `rsg`, and the analysis by task
    training: Pretraining = field(default_factory=Pretraining)
    resume: bool = False
    command: str = "rsg-harness adapt"


@dataclass(frozen=True)
class Adapted:
    """What came out. `before` and `after`: figures on held-out texts of the first corpus."""

    directory: Path
    before: TextFigures
    after: TextFigures
    rows: tuple[int, int]
    weights_bytes: tuple[int, int]


@dataclass(frozen=True)
class _Vocabulary:
    """A new vocabulary: tokenizer.json, the old ids that stay, the merges that make the new tokens."""

    tokenizer: dict[str, Any]
    kept: list[int]
    merges: list[tuple[str, str]]

    @property
    def new_tokens(self) -> int:
        return tokenizer_file.size(self.tokenizer) - len(self.kept)


def analyse(options: AdaptOptions, say: Callable[[str], None] = lambda text: None) -> str:
    """Tables of what the present vocabulary does with the corpora and the tasks, and what another one would save.

    Raises:
        UserError: no corpus, or a tokenizer of another kind.
    """
    model, tokenizer, present = _open(options, say)
    corpora = _read(options, say)
    names = [(corpus.name, [*corpus.texts, *corpus.held_out]) for corpus in corpora]
    names += [(f"{task} train ({options.data})", found) for task, found in task_texts(options.data).items()]
    texts = [text for corpus in corpora for text in corpus.texts]
    made = {"pruned": _pruned(tokenizer, present, texts, options.min_count, say)}
    if options.new_tokens:
        made["extended"] = _extended(_whole(tokenizer), texts, options.new_tokens, say)
        made["pruned and extended"] = _extended(made["pruned"], texts, options.new_tokens, say)
    tokenizers = {"as it is": present} | {name: _loaded(new.tokenizer) for name, new in made.items()}
    uses = {
        name: [text_use(title, loaded, found) for title, found in names]
        for name, loaded in tokenizers.items()
        if name in ("as it is", "extended")
    }
    config = read_config(model.path)
    width, rows = config["hidden_size"], config["vocab_size"]
    others = parameter_count(model.path) - rows * width
    sizes = {"as it is": rows} | {name: tokenizer_file.size(new.tokenizer) for name, new in made.items()}
    held_out = [text for corpus in corpora for text in corpus.held_out]
    costs = [
        vocabulary_cost(name, present, loaded, sizes[name], others, width, held_out)
        for name, loaded in tokenizers.items()
    ]
    return f"{model.name}: {model.origin}\n\n{use_table(uses, rows)}\n\nOn held-out texts:\n{cost_table(costs)}"


def adapt(options: AdaptOptions, say: Callable[[str], None], progress: Progress, training_bar: Bar) -> Adapted:
    """Writes the adapted model, whole or not at all, and measures it beside the one that it was made of.

    Args:
        options: with an output.
        say: told what happens.
        progress: as for `run`.
        training_bar: as for `train`.

    Raises:
        UserError: nothing to do, a corpus that cannot be read or is too small, a tokenizer of another kind, an output
            that is there, a full disk. The states of continued pre-training stay for --resume.
    """
    output = options.output
    assert output is not None
    if not options.new_tokens and not options.prune:
        raise UserError("nothing to do", "give --new-tokens N, --prune, or both; --analyse tells what they would save")
    if options.training.steps and not options.new_tokens:
        raise UserError("continued pre-training is for new tokens", "give --new-tokens, or no training steps")
    if output.exists():
        raise UserError(f"{output} exists already", "name another --output, or remove it")
    work = output.with_name(output.name + ".adapting")
    model, tokenizer, present = _open(options, say)
    if model.checkpoint is not None and options.new_tokens:
        raise UserError(
            f"the heads of {model.name} know its present tokens",
            "extend its base model and train that, or use --prune alone",
        )
    corpora = _read(options, say)
    if options.training.steps:
        _agree(work, options, model, corpora)
    corpus_texts = [text for corpus in corpora for text in corpus.texts]
    new = _whole(tokenizer)
    if options.prune:
        new = _pruned(tokenizer, present, corpus_texts, options.min_count, say)
    if options.new_tokens:  # which stand for runs of tokens that are kept
        new = _extended(new, corpus_texts, options.new_tokens, say)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise UserError(f"cannot write to {output.parent}: {error.strerror}", "name another --output") from error
    try:
        make_new = functools.partial(start_rows, tokenizer=tokenizer, merges=new.merges) if new.merges else None
        write_model(model.path, scratch, new.tokenizer, new.kept, make_new)
        held_out = corpora[0].held_out
        texts = held_out[:: -(-len(held_out) // _SCORED_TEXTS)]
        start = None
        if options.training.steps:
            start = text_figures(scratch, texts, progress)
            learned = [text for text in corpus_texts if russian_share([text]) > 0.5]
            pretrain(scratch, len(new.kept), learned, options.training, work, training_bar)
        before, after = (text_figures(path, texts, progress) for path in (model.path, scratch))
        adapted = Adapted(
            output,
            before,
            after,
            (read_config(model.path)["vocab_size"], tokenizer_file.size(new.tokenizer)),
            (stored_bytes(model.path), stored_bytes(scratch)),
        )
        record = _record(options, model, corpora, new, adapted, start)
        (scratch / ADAPTATION).write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        if model.checkpoint is None:
            (scratch / "README.md").write_text(_card(output.name, record), encoding="utf-8")
        else:
            change = f"Vocabulary pruned to {adapted.rows[1]:,} rows by rsg-harness."
            write_merged(scratch, model.checkpoint, change, output.name)
        scratch.chmod(0o755)
        scratch.rename(output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}", "free some space") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(work, ignore_errors=True)
    return adapted


def before_and_after(adapted: Adapted) -> str:
    """A table of size, length, quality and speed."""
    before, after = adapted.before, adapted.after
    pairs: list[tuple[str, float, float, str]] = [
        ("rows of the vocabulary", *adapted.rows, ",d"),
        ("weights, MiB", adapted.weights_bytes[0] / MIB, adapted.weights_bytes[1] / MIB, ",.0f"),
        ("tokens a word, held-out", before.tokens_per_word, after.tokens_per_word, ".3f"),
        ("bits a character, held-out", before.bits_per_character, after.bits_per_character, ".3f"),
        ("characters a second, scored", before.characters_per_second, after.characters_per_second, ",.0f"),
    ]
    rows = [
        [name, format(old, form), format(new, form), f"{100 * (new / old - 1):+.1f}%"] for name, old, new, form in pairs
    ]
    return tabulate(
        rows, headers=["", "before", "after", "change"], disable_numparse=True, colalign=("left", *3 * ["right"])
    )


def _open(options: AdaptOptions, say: Callable[[str], None]) -> tuple[LocalModel, dict[str, Any], Tokenizer]:
    if not options.corpora:
        raise UserError("no corpus named", "give --corpus FILE, DIR, hub:NAME or rsg (train texts of --data)")
    if options.new_tokens < 0 or options.min_count < 1:
        raise UserError("--new-tokens and --min-count count something", "give positive numbers")
    model = resolve_model(options.model, say)
    if quantization_of(read_config(model.path)) is not None:
        raise UserError(f"{model.name} is quantised", "adapt the unquantised model, then quantise it")
    tokenizer = tokenizer_file.read_tokenizer(model.path)
    return model, tokenizer, Tokenizer.from_file(str(model.path / "tokenizer.json"))


def _read(options: AdaptOptions, say: Callable[[str], None]) -> list[Corpus]:
    corpora = [read_corpus(name, options.data) for name in options.corpora]
    for corpus in corpora:
        share = corpus.russian_share()
        characters = sum(map(len, corpus.texts))
        say(f"{corpus.name}: {characters:,} characters, {100 * share:.0f}% of the letters Cyrillic")
    if max(corpus.russian_share() for corpus in corpora) < _ENOUGH_RUSSIAN:
        say("warning: no corpus here is Russian: the vocabulary will not be made for Russian")
    return corpora


def _whole(tokenizer: dict[str, Any]) -> _Vocabulary:
    """The vocabulary as it is."""
    return _Vocabulary(tokenizer, list(range(tokenizer_file.size(tokenizer))), [])


def _pruned(
    tokenizer: dict[str, Any], present: Tokenizer, texts: Sequence[str], min_count: int, say: Callable[[str], None]
) -> _Vocabulary:
    """What the texts use so often, and what belongs to it."""
    used = {number for number, count in count_tokens(present, texts).items() if count >= min_count}
    kept = sorted(tokenizer_file.with_derivations(tokenizer, used | tokenizer_file.always_kept(tokenizer)))
    say(f"pruned: {len(kept):,} rows stay, {len(used):,} of them used by the corpora")
    return _Vocabulary(tokenizer_file.pruned(tokenizer, kept), kept, [])


def _extended(old: _Vocabulary, texts: Sequence[str], count: int, say: Callable[[str], None]) -> _Vocabulary:
    """The vocabulary with so many more tokens, learned from the texts."""
    merges = learn_merges(_loaded(old.tokenizer), texts, count)
    new = _Vocabulary(tokenizer_file.extended(old.tokenizer, merges), old.kept, merges)
    say(f"extended: {new.new_tokens:,} new tokens, the first of them {', '.join(map(''.join, merges[:5]))}")
    return new


def _loaded(tokenizer: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer))


def _settings(options: AdaptOptions, model: LocalModel, corpora: Sequence[Corpus]) -> dict[str, Any]:
    return {
        "model": model.fingerprint,
        "corpora": {corpus.name: corpus.fingerprint() for corpus in corpora},
        "new_tokens": options.new_tokens,
        "prune": options.prune,
        "min_count": options.min_count,
        "training": dataclasses.asdict(options.training),
    }


def _agree(work: Path, options: AdaptOptions, model: LocalModel, corpora: Sequence[Corpus]) -> None:
    """Keeps a new run's settings, or compares a resumed run's with them.

    Raises:
        UserError: an unfinished run is in the way, there is none to resume, or its settings were others.
    """
    path = work / _SETTINGS
    settings = _settings(options, model, corpora)
    if not options.resume:
        if path.exists():
            raise UserError(f"{work} holds an unfinished adaptation", "go on with --resume, or remove it")
        work.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(settings, ensure_ascii=False, indent=2))
        return
    if not path.exists():
        raise UserError(f"no adaptation to resume in {work}", "leave out --resume, or name its --output")
    before = json.loads(path.read_text(encoding="utf-8"))
    check_same_settings(work, before, settings, "repeat its settings, or adapt to another --output")


def _record(
    options: AdaptOptions,
    model: LocalModel,
    corpora: Sequence[Corpus],
    new: _Vocabulary,
    adapted: Adapted,
    start: TextFigures | None,
) -> dict[str, Any]:
    """adaptation.json: what was made of what, and the figures before and after."""
    figures = {"before": adapted.before, "before_training": start, "after": adapted.after}
    return {
        **_settings(options, model, corpora),
        "base_model": {"name": options.model, "origin": model.origin},
        "rows": {"before": adapted.rows[0], "kept": len(new.kept), "new": new.new_tokens},
        "weights_bytes": {"before": adapted.weights_bytes[0], "after": adapted.weights_bytes[1]},
        "held_out": {name: dataclasses.asdict(found) for name, found in figures.items() if found},
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "git_commit": provenance.git_commit(),
        "command": options.command,
    }


def _card(name: str, record: Mapping[str, Any]) -> str:
    rows, held_out = record["rows"], record["held_out"]
    steps = record["training"]["row_steps"] + record["training"]["lora_steps"]
    lines = [
        "---",
        "license: gemma",
        "language: ru",
        "library_name: transformers",
        "---",
        f"# {name}",
        "",
        f"{record['base_model']['origin']}, another vocabulary: {rows['kept']:,} of {rows['before']:,} tokens kept, "
        f"{rows['new']:,} added" + (f", {steps} steps of continued pre-training." if steps else "."),
        "",
        NOTICE,
        "",
        "| on held-out texts | before | after |",
        "|---|---|---|",
        *(
            f"| {key.replace('_', ' ')} | {held_out['before'][key]:.3f} | {held_out['after'][key]:.3f} |"
            for key in ("bits_per_character", "tokens_per_word")
        ),
        "",
        f"Made with `{record['command']}`; corpora, versions and settings are in {ADAPTATION}.",
        "",
    ]
    return "\n".join(lines)
