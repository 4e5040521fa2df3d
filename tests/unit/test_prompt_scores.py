"""Log-probabilities of a given text, read from a server's echo of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.endpoint.answers import Answer, without_thoughts
from harness.endpoint.prompt_scores import NoPromptScores, PromptScore, read_prompt_score, token_spans

PART = "\N{REPLACEMENT CHARACTER}"
WHOLE = st.text(alphabet="абв ab.\n", min_size=1, max_size=4)
EMOJI = "🙂"
PIECES = st.lists(st.one_of(WHOLE, st.just(EMOJI)), min_size=1, max_size=8)


def echo(tokens: list[str], values: list[float | None], tops: list[Any] | None = None, **more: Any) -> Answer:
    """An echo of a prompt and one generated token."""
    shown = [{token: value} if value is not None else None for token, value in zip(tokens, values, strict=True)]
    logprobs = {
        "tokens": [*tokens, "!"],
        "token_logprobs": [*values, -0.5],
        "top_logprobs": [*(shown if tops is None else tops), {"!": -0.5}],
    }
    return Answer.model_validate({"choices": [{"text": "", "logprobs": logprobs}], **more})


def shown_tokens(pieces: list[str]) -> list[tuple[str, str]]:
    """Return (token as a server shows it, its piece); an emoji is four parts, which have no text of their own."""
    return [(token, piece) for piece in pieces for token in ([PART] * 4 if piece == EMOJI else [piece])]


@given(PIECES, PIECES, st.sampled_from([[], ["<bos>"]]), st.booleans())
def test_the_tokens_of_the_continuation_are_summed(
    context: list[str], continuation: list[str], bos: list[str], lost_space: bool
) -> None:
    while context and not context[-1].strip():
        context.pop()
    if not context:
        context = ["в"]
    context[-1] = context[-1].rstrip()
    if not "".join(continuation).strip():
        continuation = [*continuation, "а"]
    before, after = shown_tokens(context), shown_tokens(continuation)
    tokens = [*bos, *(token for token, _ in (*before, *after))]
    if lost_space:  # as Llama 2's tokens, decoded one by one
        tokens = [token.removeprefix(" ") for token in tokens]
    values: list[float | None] = [None, *(-1.0 - place / 64 for place in range(1, len(tokens)))]
    answer = echo(tokens, values)
    first = next(piece for piece in continuation if piece.strip())
    if context[-1] == EMOJI and first == EMOJI:
        with pytest.raises(NoPromptScores, match="both sides of the border"):
            read_prompt_score(answer, "".join(context), "".join(continuation))
        return
    found = read_prompt_score(answer, "".join(context), "".join(continuation))
    expected = sum(value for value in values[len(bos) + len(before) :] if value is not None)
    assert found == PromptScore(pytest.approx(expected), True)  # type: ignore[arg-type]


def test_a_token_across_the_border_counts_as_context() -> None:
    answer = echo(["<bos>", "Да", "но", "й"], [None, -1.0, -2.0, -4.0])
    assert read_prompt_score(answer, "Дан", "ой").logprob == -4.0
    with pytest.raises(NoPromptScores, match="'о' has no token of its own"):
        read_prompt_score(echo(["<bos>", "Да", "но"], [None, -1.0, -2.0]), "Дан", "о")


def test_a_whole_text_is_scored_after_the_bos_and_refused_without_one() -> None:
    assert read_prompt_score(echo(["<bos>", "Да", " но"], [None, -1.0, -2.0]), "", "Да но").logprob == -3.0
    with pytest.raises(NoPromptScores, match="first token, as it would after a BOS"):
        read_prompt_score(echo(["Да", " но"], [None, -2.0]), "", "Да но")


def test_the_likeliest_tokens_decide_whether_an_answer_is_greedy() -> None:
    tokens, values = ["<bos>", "Да", " но"], [None, -1.0, -2.0]
    for tops, greedy in (
        ([None, {"Да": -1.0, "Не": -1.5}, {" но": -2.0}], True),
        ([None, {"Да": -1.0}, {" но": -2.0, " и": -0.5}], False),
        ([None, {"Не": -0.1}, {" и": -2.5}], True),  # only the continuation counts
    ):
        assert read_prompt_score(echo(tokens, values, tops), "Да", " но") == PromptScore(-2.0, greedy)


@pytest.mark.parametrize(
    ("tokens", "values", "tops", "reason"),
    [
        (["<bos>", "Да", " не"], [None, -1.0, -2.0], None, "do not spell the prompt"),
        (["<bos>", "Да"], [None, -1.0], None, "do not spell the prompt"),
        (["<bos>", "<bos>", "Да", " но"], [None, -9.0, -1.0, -2.0], None, "do not spell the prompt"),
        (["<bos>", "Да", " но"], [None, -1.0, None], None, "has no log-probability"),
        (["<bos>", "Да", " но"], [None, -1.0, -2.0], [None, {}, {}], "has no log-probability"),
        (["<bos>", "Да", " но"], [None, -1.0, -2.0], [None, {}], "no log-probabilities of the prompt"),
        ([], [], None, "no log-probabilities of the prompt"),
    ],
)
def test_what_is_no_complete_echo_is_refused(
    tokens: list[str], values: list[float | None], tops: list[Any] | None, reason: str
) -> None:
    with pytest.raises(NoPromptScores, match=reason):
        read_prompt_score(echo(tokens, values, tops), "Да", " но")


def test_as_many_tokens_are_generated_as_the_server_counts() -> None:
    answer = echo(["<bos>", "Да", " но", " и"], [None, -1.0, -2.0, -3.0], usage={"completion_tokens": 2})
    assert read_prompt_score(answer, "Да", " но").logprob == -2.0


def test_spellings_of_vocabularies_are_understood() -> None:
    assert token_spans(["▁Да", "▁но", "\n"], "Дано") == [(0, 2), (2, 4), (4, 4)]
    assert token_spans(["ĠÐ´Ð°", "<0xF0>", "<0x9F>", "!"], "да🙂!") == [(0, 2), (2, 3), (2, 3), (3, 4)]


@pytest.mark.parametrize(
    ("text", "answer"),
    [("да", "да"), ("<think>нет</think>да", "да"), ("мысль</think>\nда", "\nда"), ("<think>да, ведь", "")],
)
def test_thoughts_are_no_part_of_an_answer(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer
