"""`rsg-harness adapt`: write a model with a vocabulary for Russian, and measure what that changed."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tokenizers import Tokenizer

from adapters.architecture import read_architecture
from adapters.mlx_weights import parameter_count, stored_bytes
from harness.adaptation import tokenizer_file
from harness.adaptation.analyse import cost_table, count_tokens, text_use, use_table, vocabulary_cost
from harness.adaptation.likelihood import measure_texts
from harness.adaptation.merges import learn_merges
from harness.adaptation.model_files import write_model
from harness.adaptation.new_rows import start_rows
from harness.adaptation.options import AdaptOptions, check_adapt_options, check_analyse_options
from harness.adaptation.pretrain import pretrain
from harness.data.corpus import Corpus, read_corpus, russian_share, task_texts
from harness.errors import UserError
from harness.files import MIB, whole_directory
from harness.models.checkpoint import write_merged
from harness.models.licence import licence_notice, licence_of
from harness.models.resolve import LocalModel, find_model, provide, require_unquantised
from harness.records import provenance
from harness.records.adaptation import (
    ADAPTATION,
    AdaptationRecord,
    AdaptationSettings,
    BaseModelRecord,
    BytesRecord,
    HeldOutRecord,
    PretrainingRecord,
    RowsRecord,
    write_adaptation,
)
from harness.settings import agree_on_settings

# With a smaller share of Cyrillic letters in every corpus, the user is warned.
_ENOUGH_RUSSIAN = 0.3
# Held-out texts that are scored before and after: about 100,000 characters, a minute or two on two cores.
_SCORED_TEXTS = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapted:
    """The outcome of an adaptation.

    Attributes:
        directory: The adapted model.
        record: Its adaptation.json.
    """

    directory: Path
    record: AdaptationRecord


@dataclass(frozen=True)
class _Source:
    """The model to adapt.

    Attributes:
        model: On this machine.
        tokenizer: The parsed tokenizer.json.
        loaded: The same tokenizer, ready to encode.
    """

    model: LocalModel
    tokenizer: dict[str, Any]
    loaded: Tokenizer


@dataclass(frozen=True)
class _Vocabulary:
    """A new vocabulary.

    Attributes:
        tokenizer: Its tokenizer.json.
        kept: The old ids that stay, ascending.
        merges: The merges that make the new tokens.
    """

    tokenizer: dict[str, Any]
    kept: list[int]
    merges: list[tuple[str, str]]

    @property
    def new_tokens(self) -> int:
        return tokenizer_file.size(self.tokenizer) - len(self.kept)


def analyse(options: AdaptOptions) -> str:
    """Return tables of how the present vocabulary encodes the corpora and the tasks, and what others would save.

    Raises:
        UserError: There is no corpus, or the tokenizer is of another kind.
    """
    check_analyse_options(options)
    source = _open(options)
    corpora = _read(options)
    names = [(corpus.name, [*corpus.texts, *corpus.held_out]) for corpus in corpora]
    names += [(f"{task} train ({options.data})", found) for task, found in task_texts(options.data).items()]
    texts = [text for corpus in corpora for text in corpus.texts]
    made = {"pruned": _pruned(source, texts, options.min_count)}
    if options.new_tokens:
        made["extended"] = _extended(_unchanged(source), texts, options.new_tokens)
        made["pruned and extended"] = _extended(made["pruned"], texts, options.new_tokens)
    tokenizers = {"as it is": source.loaded} | {name: _loaded(new.tokenizer) for name, new in made.items()}
    uses = {
        name: [text_use(title, loaded, found) for title, found in names]
        for name, loaded in tokenizers.items()
        if name in ("as it is", "extended")
    }
    config = read_architecture(source.model.path).config
    width, rows = config.hidden_size, config.vocab_size
    others = parameter_count(source.model.path) - rows * width
    sizes = {"as it is": rows} | {name: tokenizer_file.size(new.tokenizer) for name, new in made.items()}
    held_out = [text for corpus in corpora for text in corpus.held_out]
    costs = [
        vocabulary_cost(name, source.loaded, loaded, sizes[name], others, width, held_out)
        for name, loaded in tokenizers.items()
    ]
    title = f"{source.model.name}: {source.model.origin}"
    return f"{title}\n\n{use_table(uses, rows)}\n\nOn held-out texts:\n{cost_table(costs)}"


def adapt(options: AdaptOptions) -> Adapted:
    """Write the adapted model, whole or not at all, and measure it beside the original.

    Raises:
        UserError: The options cannot work, a corpus cannot be read or is too small, the tokenizer is of another kind,
            the output exists, or the disk is full. The states of continued pre-training stay for --resume.
    """
    check_adapt_options(options)
    output = options.output
    assert output is not None
    source = _open(options)
    if source.model.checkpoint is not None and options.new_tokens:
        raise UserError(
            f"the heads of {source.model.name} were trained on its present tokens",
            "extend its base model and train that, or use --prune alone",
        )
    corpora = _read(options)
    settings = _settings(options, source.model, corpora)
    work = output.with_name(output.name + ".adapting")
    if options.training.steps:
        agree_on_settings(work, settings.model_dump(mode="json"), resume=options.resume, what="adaptation")
    texts = [text for corpus in corpora for text in corpus.texts]
    new = _pruned(source, texts, options.min_count) if options.prune else _unchanged(source)
    if options.new_tokens:  # after pruning: new tokens stand for runs of kept ones
        new = _extended(new, texts, options.new_tokens)
    with whole_directory(output) as scratch:
        make_new = functools.partial(start_rows, tokenizer=source.tokenizer, merges=new.merges) if new.merges else None
        write_model(source.model.path, scratch, new.tokenizer, new.kept, make_new)
        held_out = _train_and_measure(options, source.model, new, scratch, corpora[0].held_out, texts, work)
        record = _record(options, source.model, settings, new, held_out, scratch)
        write_adaptation(scratch, record)
        if source.model.checkpoint is None:
            (scratch / "README.md").write_text(
                _card(output.name, record, licence_of(source.model.path)), encoding="utf-8"
            )
        else:
            change = f"Vocabulary pruned to {len(new.kept):,} rows by rsg-harness."
            write_merged(scratch, source.model.checkpoint, change, output.name)
    shutil.rmtree(work, ignore_errors=True)
    return Adapted(output, record)


def _train_and_measure(
    options: AdaptOptions,
    model: LocalModel,
    new: _Vocabulary,
    scratch: Path,
    held_out: Sequence[str],
    texts: Sequence[str],
    work: Path,
) -> HeldOutRecord:
    """Continue the pre-training of the model in `scratch` and measure it; `held_out` and `texts` are the corpora's."""
    scored = held_out[:: -(-len(held_out) // _SCORED_TEXTS)]
    before_training = None
    if options.training.steps:
        before_training = measure_texts(scratch, scored, "texts before training")
        russian = [text for text in texts if russian_share([text]) > 0.5]
        pretrain(scratch, len(new.kept), russian, options.training, work)
    return HeldOutRecord(
        before=measure_texts(model.path, scored, "texts with the old vocabulary"),
        before_training=before_training,
        after=measure_texts(scratch, scored, "texts with the new vocabulary"),
    )


def before_and_after(adapted: Adapted) -> str:
    """Return a table of size, length, quality and speed."""
    record = adapted.record
    before, after = record.held_out.before, record.held_out.after
    pairs: list[tuple[str, float, float, str]] = [
        ("rows of the vocabulary", record.rows.before, record.rows.kept + record.rows.new, ",d"),
        ("weights, MiB", record.weights_bytes.before / MIB, record.weights_bytes.after / MIB, ",.0f"),
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


def _open(options: AdaptOptions) -> _Source:
    model = provide(find_model(options.model))
    require_unquantised(model, "adapt")
    tokenizer = tokenizer_file.read_tokenizer(model.path)
    return _Source(model, tokenizer, Tokenizer.from_file(str(model.path / "tokenizer.json")))


def _read(options: AdaptOptions) -> list[Corpus]:
    corpora = [read_corpus(name, options.data) for name in options.corpora]
    for corpus in corpora:
        share = corpus.russian_share()
        characters = sum(map(len, corpus.texts))
        log.info("%s: %s characters, %.0f%% of the letters Cyrillic", corpus.name, f"{characters:,}", 100 * share)
    if max(corpus.russian_share() for corpus in corpora) < _ENOUGH_RUSSIAN:
        log.warning("no corpus here is Russian: the vocabulary will not fit Russian")
    return corpora


def _unchanged(source: _Source) -> _Vocabulary:
    return _Vocabulary(source.tokenizer, list(range(tokenizer_file.size(source.tokenizer))), [])


def _pruned(source: _Source, texts: Sequence[str], min_count: int) -> _Vocabulary:
    """Return the vocabulary of the tokens that the texts use at least `min_count` times, and what those need."""
    tokenizer = source.tokenizer
    used = {number for number, count in count_tokens(source.loaded, texts).items() if count >= min_count}
    kept = sorted(tokenizer_file.with_derivations(tokenizer, used | tokenizer_file.always_kept(tokenizer)))
    log.info("pruned: %s rows stay, %s of them used by the corpora", f"{len(kept):,}", f"{len(used):,}")
    return _Vocabulary(tokenizer_file.pruned(tokenizer, kept), kept, [])


def _extended(old: _Vocabulary, texts: Sequence[str], count: int) -> _Vocabulary:
    """Return the vocabulary with `count` more tokens, learned from the texts."""
    merges = learn_merges(_loaded(old.tokenizer), texts, count)
    new = _Vocabulary(tokenizer_file.extended(old.tokenizer, merges), old.kept, merges)
    log.info(
        "extended: %s new tokens, the first of them %s", f"{new.new_tokens:,}", ", ".join(map("".join, merges[:5]))
    )
    return new


def _loaded(tokenizer: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer))


def _settings(options: AdaptOptions, model: LocalModel, corpora: Sequence[Corpus]) -> AdaptationSettings:
    return AdaptationSettings(
        model=model.fingerprint,
        corpora={corpus.name: corpus.fingerprint() for corpus in corpora},
        new_tokens=options.new_tokens,
        prune=options.prune,
        min_count=options.min_count,
        training=PretrainingRecord(**dataclasses.asdict(options.training)),
    )


def _record(
    options: AdaptOptions,
    model: LocalModel,
    settings: AdaptationSettings,
    new: _Vocabulary,
    held_out: HeldOutRecord,
    scratch: Path,
) -> AdaptationRecord:
    return AdaptationRecord(
        **dict(settings),
        base_model=BaseModelRecord(name=options.model, origin=model.origin),
        rows=RowsRecord(before=read_architecture(model.path).config.vocab_size, kept=len(new.kept), new=new.new_tokens),
        weights_bytes=BytesRecord(before=stored_bytes(model.path), after=stored_bytes(scratch)),
        held_out=held_out,
        versions=provenance.versions(),
        machine=provenance.machine(),
        git_commit=provenance.git_commit(),
        command=options.command,
    )


def _card(name: str, record: AdaptationRecord, licence: dict[str, str]) -> str:
    rows, before, after = record.rows, record.held_out.before, record.held_out.after
    steps = record.training.row_steps + record.training.lora_steps
    lines = [
        "---",
        *(f"{key}: {value}" for key, value in licence.items()),
        "language: ru",
        "library_name: transformers",
        "---",
        f"# {name}",
        "",
        f"{record.base_model.origin} with another vocabulary: {rows.kept:,} of {rows.before:,} tokens kept, "
        f"{rows.new:,} added" + (f", {steps} steps of continued pre-training." if steps else "."),
        "",
        licence_notice(licence),
        "",
        "| on held-out texts | before | after |",
        "|---|---|---|",
        f"| bits per character | {before.bits_per_character:.3f} | {after.bits_per_character:.3f} |",
        f"| tokens per word | {before.tokens_per_word:.3f} | {after.tokens_per_word:.3f} |",
        "",
        f"Made with `{record.command}`; corpora, versions and settings are in {ADAPTATION}.",
        "",
    ]
    return "\n".join(lines)
