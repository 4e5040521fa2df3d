"""Pruned and extended tokenizers against the one that they were made of."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from harness.adaptation import tokenizer_file
from harness.adaptation.merges import learn_merges, pieces_of
from harness.errors import UserError
from tests.russian_tokenizer import mini_texts, russian_tokenizer_json

WHOLE: dict[str, Any] = json.loads(russian_tokenizer_json())
BEFORE = Tokenizer.from_str(russian_tokenizer_json())
_DROPPED = [
    WHOLE["model"]["vocab"]["<unused1>"],
    *random.Random(0).sample(sorted(WHOLE["model"]["vocab"].values()), 200),
]
KEPT = sorted(
    tokenizer_file.with_derivations(
        WHOLE, (set(WHOLE["model"]["vocab"].values()) - set(_DROPPED)) | tokenizer_file.always_kept(WHOLE)
    )
)
PRUNED = tokenizer_file.pruned(WHOLE, KEPT)
AFTER = Tokenizer.from_str(json.dumps(PRUNED))
MERGES = learn_merges(BEFORE, mini_texts(), 120)
EXTENDED = Tokenizer.from_str(json.dumps(tokenizer_file.extended(WHOLE, MERGES)))

# Any Unicode, and Russian that the pieces were learned from.
TEXTS = st.text() | st.lists(
    st.sampled_from(mini_texts()).flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))
).map("".join)


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_none_is_unknown(text: str) -> None:
    text = text.replace("▁", "_")  # which stands for a space in such tokenizers, before as after
    unknown = WHOLE["model"]["vocab"]["<unk>"]
    for tokenizer in (AFTER, EXTENDED):
        found = ids(tokenizer, text)
        assert unknown not in found
        assert tokenizer.decode(found, skip_special_tokens=False) == BEFORE.decode(
            ids(BEFORE, text), skip_special_tokens=False
        )
        assert tokenizer.decode(found, skip_special_tokens=False) == text


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_a_text_of_kept_tokens_keeps_them(text: str) -> None:
    before = ids(BEFORE, text)
    if set(before) <= set(KEPT):
        assert [KEPT[number] for number in ids(AFTER, text)] == before


def test_both_kinds_of_texts_were_tried() -> None:
    unchanged = [set(ids(BEFORE, text)) <= set(KEPT) for text in mini_texts()]
    assert 20 < sum(unchanged) < len(unchanged) - 20


def test_pruning_to_single_pieces_would_change_tokens_without_their_derivations() -> None:
    """What `with_derivations` is for: a piece whose halves are gone can no longer be made."""
    text = max(mini_texts(), key=lambda found: max(map(len, BEFORE.encode(found).tokens)))
    own = set(ids(BEFORE, text)) | tokenizer_file.always_kept(WHOLE)
    bare = Tokenizer.from_str(json.dumps(tokenizer_file.pruned(WHOLE, own)))
    whole = Tokenizer.from_str(json.dumps(tokenizer_file.pruned(WHOLE, tokenizer_file.with_derivations(WHOLE, own))))
    assert bare.encode(text).tokens != BEFORE.encode(text).tokens
    assert whole.encode(text).tokens == BEFORE.encode(text).tokens


def test_special_tokens_and_bytes_keep_their_ids_and_the_rest_its_order() -> None:
    new, old = PRUNED["model"]["vocab"], WHOLE["model"]["vocab"]
    last_byte = old["<0xFF>"]
    assert all(new[piece] == number for piece, number in old.items() if number <= last_byte)
    assert [old[piece] for piece in sorted(new, key=lambda piece: new[piece])] == KEPT
    assert sorted(new.values()) == list(range(len(KEPT)))
    assert "<unused1>" in old
    assert "<unused1>" not in new
    assert "<unused1>" not in [token["content"] for token in PRUNED["added_tokens"]]
    assert AFTER.encode("да").ids[0] == old["<bos>"]


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_new_tokens_stand_for_runs_of_old_ones(text: str) -> None:
    before, after = (tokenizer.encode(text, add_special_tokens=False) for tokenizer in (BEFORE, EXTENDED))
    assert "".join(after.tokens) == "".join(before.tokens)
    assert borders(after.tokens) <= borders(before.tokens)


def borders(tokens: list[str]) -> set[int]:
    return set(itertools.accumulate(map(len, tokens)))


def test_the_run_of_a_new_token_is_how_it_was_encoded() -> None:
    runs = pieces_of(WHOLE, MERGES)
    assert all("".join(run) == piece and len(run) > 1 for piece, run in runs.items())
    for text in mini_texts():
        after = EXTENDED.encode(text).tokens
        if len({left + right for left, right in MERGES if left + right in after}) == len(
            [pair for pair in MERGES if "".join(pair) in after]
        ):  # no piece that can be made in two ways
            assert [part for piece in after for part in runs.get(piece, (piece,))] == BEFORE.encode(text).tokens


def test_a_text_without_new_tokens_has_its_old_ones() -> None:
    for text in ("The quick brown fox", "12 345", "日本語", "а б в"):
        assert ids(EXTENDED, text) == ids(BEFORE, text)


def test_the_corpus_gets_shorter_by_exactly_the_wanted_tokens() -> None:
    new = set(EXTENDED.get_vocab()) - set(BEFORE.get_vocab())
    assert len(new) == 120
    first = len(WHOLE["model"]["vocab"])
    assert sorted(EXTENDED.token_to_id(piece) for piece in new) == list(range(first, first + 120))
    assert all(tokenizer_file.CYRILLIC_PIECE.fullmatch(piece) for piece in new)
    before = sum(len(ids(BEFORE, text)) for text in mini_texts())
    after = sum(len(ids(EXTENDED, text)) for text in mini_texts())
    assert after < 0.97 * before


def test_a_corpus_that_is_too_small_says_how_many_tokens_it_supports() -> None:
    with pytest.raises(UserError, match=r"supports (\d+) new tokens, not 100000") as error:
        learn_merges(BEFORE, mini_texts(), 100_000)
    supported = int(error.value.message.split()[3])
    assert len(pieces_of(WHOLE, learn_merges(BEFORE, mini_texts(), supported))) == supported


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Unigram"}, "a Unigram tokenizer"),
        ({"byte_fallback": False}, "no byte fallback"),
        ({"end_of_word_suffix": "</w>"}, "prefixes, suffixes"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({**WHOLE, "model": {**WHOLE["model"], **change}}))
    with pytest.raises(UserError, match=message):
        tokenizer_file.read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**WHOLE, "normalizer": None}))
    with pytest.raises(UserError, match="spaces are not written"):
        tokenizer_file.read_tokenizer(tmp_path)
