"""The text of growing tokens is at every token that of all tokens decoded together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from adapters.text import GrowingTokens
from tests.byte_level import QWEN, byte_level_tokenizer
from tests.tiny_gemma import make_tiny_tokenizer

TEXTS = ("Ехал Грека через реку, видит Грека: в реке рак.", "Ёлка 🎄 naïve — 東京 «да»", "a  b\n\n c ")


def stripping_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of Llama 2's kind: its decoder joins bytes and drops the space before the first token."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁да", "да", ".", "▁нет", "ё"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "gemma": make_tiny_tokenizer,
    "byte-level": lambda: byte_level_tokenizer(QWEN, TEXTS),
    "stripping": stripping_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def assert_text_is_that_of_all_tokens(tokenizer: Any, ids: list[int]) -> None:
    tokens = GrowingTokens(tokenizer)
    for count, token in enumerate(ids, 1):
        tokens.ids.append(token)
        assert tokens.text() == tokenizer.decode(ids[:count], skip_special_tokens=True)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tokens_at_all_have_the_text_of_all_of_them(tokenizer, data):
    """Most of these are half characters, special tokens and bytes in the wrong place."""
    few = st.integers(0, min(len(tokenizer), 30) - 1)
    ids = data.draw(st.lists(st.one_of(few, st.integers(0, len(tokenizer) - 1)), max_size=60))
    assert_text_is_that_of_all_tokens(tokenizer, ids)


@given(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=5))
def test_whole_texts_have_the_text_of_all_their_tokens(tokenizer, texts):
    assert_text_is_that_of_all_tokens(tokenizer, tokenizer("".join(texts)).input_ids)


def test_a_byte_that_spoils_a_settled_character_changes_the_text_as_decoding_everything_does():
    tokenizer = stripping_tokenizer()
    whole = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "ё".encode()]
    spoiling = tokenizer.convert_tokens_to_ids("<0xD1>")
    assert_text_is_that_of_all_tokens(tokenizer, [*whole * 12, spoiling, *whole])


def test_few_tokens_are_decoded_at_a_time():
    class Counting:
        """A tokenizer that notes how many tokens it decodes."""

        longest = 0

        def decode(self, ids: list[int], **_: Any) -> str:
            self.longest = max(self.longest, len(ids))
            return "".join(f"{token} " for token in ids)

    counting = Counting()
    tokens = GrowingTokens(counting)
    for token in range(1000):
        tokens.ids.append(token)
        tokens.text()
    assert counting.longest < 40


@pytest.mark.slow
def test_the_text_of_the_real_gemma_tokenizer_is_that_of_all_tokens():
    from harness.models.open import open_model
    from harness.models.options import ModelOptions

    tokenizer = open_model(ModelOptions(model=None, backend="torch-cpu")).tokenizer

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.one_of(st.integers(0, 500), st.integers(0, 262_143)), max_size=60))
    def check(ids: list[int]) -> None:
        assert_text_is_that_of_all_tokens(tokenizer, ids)

    check()
