"""Texts to tokens: the border of context and continuation, line by line, one BOS."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from adapters.text import load_tokenizer
from harness.errors import UserError
from harness.scoring.encoding import TextEncoder, cut_prompt, encode_pairs, line_pattern
from tests.byte_level import LLAMA3, QWEN, byte_level_tokenizer
from tests.tiny_gemma import make_tiny_gemma


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(make_tiny_gemma(tmp_path_factory.mktemp("tiny")))


def lm_eval_pair(tokenizer: PreTrainedTokenizerFast, context: str, continuation: str) -> tuple[list[int], int]:
    """lm-eval's rule, written out plainly: TemplateLM._encode_pair."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    return tokenizer(context + continuation).input_ids, len(tokenizer(context).input_ids)


words = st.text(alphabet="абвд нетДа.:,!«»\n0ёz", min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(context=words.filter(lambda text: text.strip()), continuation=words.filter(lambda text: text.strip()))
def test_pairs_split_where_lm_eval_splits_them(
    tokenizer: PreTrainedTokenizerFast, context: str, continuation: str
) -> None:
    whole, border = lm_eval_pair(tokenizer, context, continuation)
    if border >= len(whole):
        return  # the continuation melted into the context's last token: refused, tested below
    (sequence,) = encode_pairs(TextEncoder(tokenizer), [(context, continuation)], 10_000)
    assert list(sequence.tokens) == whole
    assert sequence.continuation_start == border


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_encoding_line_by_line_gives_the_tokens_of_the_whole_text(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    encoder = TextEncoder(tokenizer)
    assert line_pattern(tokenizer._tokenizer)
    assert encoder.encode(text) == tokenizer(text).input_ids


def test_every_line_is_tokenised_once(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer)
    pairs = [(f"Абзац, общий для всех.\nВопрос {n}\nОтвет:", choice) for n in range(3) for choice in (" да", " нет")]
    encode_pairs(encoder, pairs, 1000)
    # the paragraph, one line break, three questions, the bare prompt and two answered ones
    assert encoder.encoded == 1 + 1 + 3 + 1 + 2
    encode_pairs(encoder, pairs, 1000)
    assert encoder.encoded == 8


def test_a_text_that_begins_with_bos_gets_no_second_one(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = TextEncoder(tokenizer)
    ids = encoder.encode("<bos>Да")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == encoder.encode("Да")


def test_an_empty_context_is_the_bos_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    (sequence,) = encode_pairs(TextEncoder(tokenizer), [("", "Да")], 100)
    assert sequence.continuation_start == 1
    assert list(sequence.tokens) == tokenizer("Да").input_ids


def test_a_long_prompt_loses_its_left_end_but_not_its_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    context = "слово " * 50 + "\nОтвет:"
    (whole,) = encode_pairs(TextEncoder(tokenizer), [(context, " да")], 10_000)
    (cut,) = encode_pairs(TextEncoder(tokenizer), [(context, " да")], 20)
    assert len(cut.inputs) == 20
    assert cut.tokens[0] == tokenizer.bos_token_id
    assert cut.tokens[1:] == whole.tokens[-20:]
    assert cut.dropped == len(whole.tokens) - 21
    answer = len(whole.tokens) - whole.continuation_start
    assert cut.continuation_start == len(cut.tokens) - answer


def test_a_continuation_longer_than_the_context_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="fills the model's context"):
        encode_pairs(TextEncoder(tokenizer), [("Да", " слово" * 40)], 16)


def test_an_empty_continuation_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="has no token of its own"):
        encode_pairs(TextEncoder(tokenizer), [("Да", "")], 16)


def test_a_prompt_is_cut_from_the_left() -> None:
    assert cut_prompt([2, 5, 6, 7, 8], 3, bos_id=2) == [2, 7, 8]
    assert cut_prompt([5, 6, 7, 8], 3, bos_id=2) == [6, 7, 8]
    assert cut_prompt([2, 5], 3, bos_id=2) == [2, 5]


def test_bos_stands_in_front_where_only_the_configuration_asks_for_it(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(make_tiny_gemma(tmp_path))
    bare = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    bare.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    asked = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<bos>", add_bos_token=True)
    assert TextEncoder(asked).puts_bos
    assert TextEncoder(asked).encode("Да") == TextEncoder(tokenizer).encode("Да")
    silent = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<bos>")
    assert not TextEncoder(silent).puts_bos


def test_a_token_after_the_text_is_left_out_and_eos_starts_a_text_where_there_is_no_bos(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(make_tiny_gemma(tmp_path))
    ending = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    ending.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=ending, eos_token="<eos>"))
    assert encoder.encode("Да") == TextEncoder(tokenizer).encode("Да")[1:]
    (sequence,) = encode_pairs(encoder, [("", "Да")], 100)
    assert sequence.tokens[0] == 1
    assert sequence.continuation_start == 1


def test_a_vocabulary_that_joins_a_line_break_with_a_letter_is_encoded_whole(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(make_tiny_gemma(tmp_path))
    parsed = json.loads(tokenizer._tokenizer.to_str())
    assert line_pattern(tokenizer._tokenizer)
    parsed["model"]["vocab"]["\nа"] = len(parsed["model"]["vocab"])
    parsed["model"]["merges"].append(["\n", "а"])
    changed = Tokenizer.from_str(json.dumps(parsed))
    assert not line_pattern(changed)
    joined = PreTrainedTokenizerFast(tokenizer_object=changed, bos_token="<bos>")
    encoder = TextEncoder(joined)
    assert encoder.encode("в\nа") == joined("в\nа").input_ids


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False},
    ],
)
def test_a_pre_tokenizer_that_looks_further_than_one_character_is_not_trusted(
    tokenizer: PreTrainedTokenizerFast, pre_tokenizer: dict[str, object]
) -> None:
    parsed = json.loads(tokenizer._tokenizer.to_str())
    assert not line_pattern(Tokenizer.from_str(json.dumps({**parsed, "pre_tokenizer": pre_tokenizer})))


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        ("tokenizer_config.json", {}),
        ("tokenizer_config.json", {"mask_token": "<mask>", "chat_template": "{{ messages[0].content }}"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"600": {"content": "<mask>", "special": True}}}),
        ("special_tokens_map.json", {"cls_token": "<cls>"}),
        ("added_tokens.json", {"<new>": 512}),
    ],
)
def test_a_tokenizer_parsed_once_is_the_one_that_transformers_loads(
    tmp_path: Path, file: str, settings: dict[str, object]
) -> None:
    directory = make_tiny_gemma(tmp_path)
    before = json.loads((directory / file).read_text()) if (directory / file).is_file() else {}
    (directory / file).write_text(json.dumps({**before, **settings}))
    expected, found = PreTrainedTokenizerFast.from_pretrained(directory), load_tokenizer(directory)
    assert found._tokenizer.to_str() == expected._tokenizer.to_str()
    assert {name: str(token) for name, token in found.special_tokens_map.items()} == {
        name: str(token) for name, token in expected.special_tokens_map.items()
    }
    assert found.all_special_ids == expected.all_special_ids
    assert found.chat_template == expected.chat_template
    for tokenizer, name in ((expected, "expected"), (found, "found")):
        tokenizer.save_pretrained(tmp_path / name)
    for saved in (tmp_path / "expected").iterdir():
        assert saved.read_bytes() == (tmp_path / "found" / saved.name).read_bytes()


CHARACTERS = "abё1?.,' \n\n\n\r\t\u00a0\u2028\u0301\x1c\x85"


@pytest.mark.parametrize("pattern", [QWEN, LLAMA3, None])
def test_byte_level_texts_are_encoded_in_parts_with_the_tokens_of_the_whole(pattern: str | None) -> None:
    generator = random.Random(3)
    texts = ["".join(generator.choices(CHARACTERS, k=generator.randint(1, 30))) for _ in range(20_000)]
    texts += ["Текст: Река?\n \n  Вопрос:\n\nда", "\n\nа", "а\n", "a\r\nb", "1\n2"]
    tokenizer = byte_level_tokenizer(pattern, texts)
    encoder = TextEncoder(tokenizer)
    encoder.prepare(texts)
    assert line_pattern(tokenizer._tokenizer)
    for text in texts:
        assert encoder.encode(text) == tokenizer(text).input_ids, repr(text)
    encoder = TextEncoder(tokenizer)
    encoder.prepare(["Река замёрзла.\nОтвет: да", "Река замёрзла.\nОтвет: нет"])
    assert encoder.encoded == 3


def test_a_pattern_of_another_kind_is_not_trusted() -> None:
    """With a slash behind line breaks, as in the newer patterns, a piece crosses the end of the line."""
    newer = byte_level_tokenizer(QWEN.replace(r"[\r\n]*|", r"[\r\n/]*|"), ["a?\n/b"])
    assert line_pattern(newer._tokenizer) is None
    assert TextEncoder(newer).encode("a?\n/b") == newer("a?\n/b").input_ids
    added = byte_level_tokenizer(QWEN, ["a"])
    added.add_tokens(["<br>\n"])
    assert line_pattern(added._tokenizer) is None
