from __future__ import annotations

import json
from typing import Any

import torch

from harness.adaptation.new_rows import start_rows
from harness.adaptation.tokenizer_file import CYRILLIC_PIECE, last_merge, merge_ranks
from tests.russian_tokenizer import russian_tokenizer_json

TOKENIZER: dict[str, Any] = json.loads(russian_tokenizer_json())
IDS: dict[str, int] = TOKENIZER["model"]["vocab"]
# The longest Russian pieces make tokens that the vocabulary does not have; the third is made of the second.
LEFT, RIGHT, *_ = sorted((piece for piece in IDS if CYRILLIC_PIECE.fullmatch(piece) and piece[0] != "▁"), key=len)[-2:]
MERGES = [(LEFT, RIGHT), (RIGHT, LEFT), (RIGHT + LEFT, LEFT)]


def matrix(width: int) -> torch.Tensor:
    return torch.randn(len(IDS), width, generator=torch.Generator().manual_seed(0))


def test_too_wide_a_matrix_for_a_regression_gives_means() -> None:
    rows = matrix(width=512)
    left, right = rows[IDS[LEFT]], rows[IDS[RIGHT]]
    torch.testing.assert_close(
        start_rows(rows, TOKENIZER, MERGES),
        torch.stack([(left + right) / 2, (left + right) / 2, (2 * left + right) / 3]),
    )


def test_how_the_vocabulary_joins_its_rows_is_found_out() -> None:
    width = 8
    rows = matrix(width)
    rule = torch.randn(2 * width + 1, width, generator=torch.Generator().manual_seed(1)) / 4
    ranks = merge_ranks(TOKENIZER)

    def joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return torch.cat([one, other, torch.ones(1)]) @ rule

    for piece in sorted(IDS, key=len):
        if pair := last_merge(piece, ranks):
            rows[IDS[piece]] = joined(rows[IDS[pair[0]]], rows[IDS[pair[1]]])
    left, right = rows[IDS[LEFT]], rows[IDS[RIGHT]]
    inner = joined(right, left)
    expected = torch.stack([joined(left, right), inner, joined(inner, left)])
    means = torch.stack([(left + right) / 2, (left + right) / 2, (2 * left + right) / 3])
    # The ridge pulls a little towards zero.
    torch.testing.assert_close(start_rows(rows, TOKENIZER, MERGES), (means + expected) / 2, rtol=0.05, atol=0.1)


def test_the_last_merge_is_the_encoders_own() -> None:
    ranks = {("а", "б"): 0, ("аб", "в"): 1, ("б", "в"): 2}
    assert last_merge("абв", ranks) == ("аб", "в")
    assert last_merge("бв", ranks) == ("б", "в")
    assert last_merge("ав", ranks) is None
    assert last_merge("а", ranks) is None
