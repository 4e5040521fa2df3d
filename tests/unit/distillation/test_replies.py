"""A teacher's replies become labels: from three servers' log-probabilities, and from answers in words."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from harness.distillation.client import Position, Reply, make_reply
from harness.distillation.lines import Usage
from harness.distillation.replies import Label, first_token_probabilities, read_label
from harness.endpoint.answers import Answer, plain_text

YES_NO = ["да", "нет"]
THREE = ["да", "нет", "неизвестно"]


def read_reply(content: bytes) -> Reply:
    return make_reply(Answer.model_validate_json(content))


def position(generated: str, **shares: float) -> Position:
    """Return a position with the probabilities of its top tokens; "_" in a name is a space."""
    return Position(generated, tuple((token.replace("_", " "), math.log(share)) for token, share in shares.items()))


def reply(text: str, *positions: Position, cut: bool = False, declined: bool = False) -> Reply:
    return Reply(text, cut, declined, positions, Usage())


def label(words: list[str], *replies: Reply, explained: bool = False) -> Label:
    return read_label(replies, words, [], explained)


# --- log-probabilities ------------------------------------------------------------------------------------------------


def test_the_choices_share_the_probability_of_their_first_tokens() -> None:
    found = label(YES_NO, reply("Да", position("Да", Да=0.5, да=0.1, Нет=0.2, Возможно=0.1)))
    assert found.probabilities == pytest.approx([0.75, 0.25])
    assert found.rest == pytest.approx(0.2)
    assert (found.how, found.outcome) == ("logprobs", "answered")


def test_a_token_is_a_choice_whatever_stands_around_its_letters() -> None:
    found = label(YES_NO, reply("**Нет.**", position("**Нет", **{"**Нет": 0.6, "_ДА,": 0.3, "дай": 0.05})))
    assert found.probabilities == pytest.approx([1 / 3, 2 / 3])
    assert found.rest == pytest.approx(0.1)


def test_a_first_piece_of_a_word_counts_for_it() -> None:
    found = label(["entailment", "other"], reply("entailment", position("ent", ent=0.6, o=0.2, x=0.2)))
    assert found.probabilities == pytest.approx([0.75, 0.25])


def test_a_piece_of_two_words_is_decided_by_what_follows_it() -> None:
    """«не» begins «нет» and «неизвестно»: the next position tells how its probability is shared."""
    found = label(
        THREE, reply("неизвестно", position("не", не=0.8, да=0.2), position("известно", известно=0.75, т=0.25))
    )
    assert found.probabilities == pytest.approx([0.2, 0.2, 0.6])
    assert found.rest == pytest.approx(0, abs=1e-9)


def test_a_piece_of_two_words_that_was_not_generated_belongs_to_neither() -> None:
    found = label(THREE, reply("да", position("да", да=0.5, не=0.4), position(".", **{".": 1.0})))
    assert found.probabilities == pytest.approx([1, 0, 0])
    assert found.rest == pytest.approx(0.5)


def test_space_and_marks_before_the_answer_are_skipped() -> None:
    marks = position("**", **{"**": 0.5, "Да": 0.25})
    found = label(YES_NO, reply("**да**", marks, position("да", да=0.5, нет=0.5), position("**", **{"**": 1.0})))
    assert found.probabilities == pytest.approx([2 / 3, 1 / 3])


def test_where_no_token_is_a_choice_the_text_decides() -> None:
    found = label(YES_NO, reply("Конечно, нет", position("Конечно", Конечно=0.9, Да=0.05)))
    assert (found.probabilities, found.how, found.rest) == ([0, 1], "text", None)


@pytest.mark.parametrize("opening", ["Ответ", "<think>Хм, да?</think>"])
def test_the_answer_behind_a_mark_is_what_counts(opening: str) -> None:
    tokens = [position("Ответ", Ответ=1.0), position(":", **{":": 1.0})]
    if opening != "Ответ":
        tokens = [position(opening, да=0.5, нет=0.5)]
    text = "Ответ: нет" if opening == "Ответ" else f"{opening} нет"
    found = label(YES_NO, reply(text, *tokens, position(" нет", _нет=0.8, _да=0.2)))
    assert found.probabilities == pytest.approx([0.2, 0.8])


def test_tokens_that_are_not_the_generated_ones_are_replaced_by_the_likeliest() -> None:
    """mlx_lm.server names any of the top tokens as the generated one."""
    found = label(THREE, reply("нет", position("да", да=0.2, не=0.8), position("известно", т=0.75, известно=0.25)))
    assert found.probabilities == pytest.approx([0.2, 0.6, 0.2])


def test_where_the_generated_tokens_are_unknown_only_the_first_position_counts() -> None:
    unlike = reply("совсем другое", position("да", да=0.6, нет=0.3), position("x", x=1.0))
    assert first_token_probabilities(unlike, YES_NO) == (pytest.approx([2 / 3, 1 / 3]), pytest.approx(0.1))


def test_an_explanation_is_kept_and_its_words_are_no_answer() -> None:
    text = "Да, на первый взгляд похоже.\nОтвет: нет"
    positions = [
        position("Да, на первый взгляд похоже.\n", Да=0.9),
        position("Ответ:", **{"Ответ:": 1.0}),
        position(" нет", _нет=0.75, _да=0.25),
    ]
    found = label(YES_NO, reply(text, *positions), explained=True)
    assert found.probabilities == pytest.approx([0.25, 0.75])
    assert found.rationale == "Да, на первый взгляд похоже."


def test_an_explanation_that_was_cut_before_its_answer_is_none() -> None:
    found = label(YES_NO, reply("Да, похоже, что", position("Да", Да=0.9), cut=True), explained=True)
    assert (found.probabilities, found.outcome) == (None, "unparsable")


# --- texts ------------------------------------------------------------------------------------------------------------


def test_several_samples_give_their_shares() -> None:
    found = label(YES_NO, *(reply(text) for text in ("Да", "да.", "Нет", "мяу")))
    assert found.probabilities == pytest.approx([2 / 3, 1 / 3])
    assert found.how == "samples"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply("Извините, я не могу ответить на этот вопрос."), "refused"),
        (reply("I'm sorry, but I can't help with that."), "refused"),
        (reply("", declined=True), "refused"),
        (reply("мяу"), "unparsable"),
        (reply(""), "unparsable"),
        (reply("да или нет"), "unparsable"),
    ],
)
def test_an_answer_that_names_no_choice_has_a_reason(answer: Reply, outcome: str) -> None:
    found = label(YES_NO, answer)
    assert (found.probabilities, found.how, found.outcome) == (None, None, outcome)


def test_rucos_is_answered_with_an_entity_of_its_own() -> None:
    entities = ["Москва", "Пётр Иванов", "Сочи"]
    assert read_label([reply("Ответ: Пётр Иванов.")], [], entities, False).probabilities == [0, 1, 0]
    assert read_label([reply("Казань")], [], entities, False).outcome == "unparsable"


# --- what servers send ------------------------------------------------------------------------------------------------


def answer(logprobs: Any, text: str = "Да", chat: bool = True) -> bytes:
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "logprobs": logprobs, **said}]}).encode()


def test_the_shapes_of_three_servers_say_the_same() -> None:
    """vLLM's chat and completions, llama.cpp's (the chat shape, with ids and bytes), mlx_lm.server's raw pieces."""
    yes, no = math.log(0.6), math.log(0.3)
    top = [{"token": "Да", "logprob": yes, "bytes": [1]}, {"token": " нет", "logprob": no, "bytes": [2]}]
    raw = [{"id": 7, "token": "▁нет", "logprob": no}, {"id": 5, "token": "▁Да", "logprob": yes}]
    shapes = {
        "vllm chat": answer({"content": [{**top[0], "top_logprobs": top}]}),
        "vllm completions": answer(
            {
                "tokens": [" Да"],
                "token_logprobs": [yes],
                "top_logprobs": [{" Да": yes, " нет": no}],
                "text_offset": [9],
            },
            " Да",
            chat=False,
        ),
        "llama.cpp": answer({"content": [{"id": 5, **top[0], "top_logprobs": top}]}, " Да", chat=False),
        "mlx": answer({"content": [{**raw[0], "top_logprobs": raw}, {}]}),
    }
    for name, content in shapes.items():
        found = first_token_probabilities(read_reply(content), YES_NO)
        assert found is not None, name
        assert found == (pytest.approx([2 / 3, 1 / 3]), pytest.approx(0.1)), name


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"token": "Да"}]}])
def test_a_server_without_log_probabilities_is_read_by_its_text(logprobs: Any) -> None:
    assert read_reply(answer(logprobs)).positions == ()


@pytest.mark.parametrize(
    ("token", "text"),
    [
        ("▁да", " да"),
        ("ĠÐ´Ð°", " да"),
        ("да", "да"),
        ("Да.", "Да."),
        ("é", "é"),
        ("Ġ1", " 1"),
        ("Ð", "Ð"),
        ("<eos>", "<eos>"),
    ],
)
def test_pieces_of_vocabularies_become_text(token: str, text: str) -> None:
    assert plain_text(token) == text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"mess',
    ],
)
def test_what_is_no_answer_is_refused(content: bytes) -> None:
    with pytest.raises(ValidationError):
        read_reply(content)


def test_an_answer_without_text_or_usage_is_an_empty_one() -> None:
    found = read_reply(b'{"choices": [{"message": {"content": null}, "finish_reason": "length"}], "usage": null}')
    assert (found.text, found.cut, found.usage) == ("", True, Usage())


def test_a_refusal_of_the_server_is_one() -> None:
    found = read_reply(b'{"choices": [{"message": {"content": null, "refusal": "no"}, "finish_reason": "stop"}]}')
    assert found.declined


def test_what_servers_leave_null_is_left_out() -> None:
    content = {"token": None, "top_logprobs": [{"token": "Да", "logprob": -0.1}, {"token": "нет", "logprob": None}]}
    (position,) = read_reply(answer({"content": [content], "tokens": None})).positions
    assert position.top == (("Да", -0.1),)
    assert read_reply(answer({"content": [{"token": "Да", "top_logprobs": None}]})).positions == ()
    assert read_reply(b'{"choices": [{"message": null, "text": "x"}], "usage": {"prompt_tokens": null}}').text == "x"


def test_an_answer_in_parts_is_its_texts() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Да, "}, {"type": "text", "text": "верно"}]
    content = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    assert read_reply(content).text == "Да, верно"


@pytest.mark.parametrize(("text", "choice"), [("<think>Да, ведь", None), ("<think>Да, ведь…</think>нет", 1)])
def test_a_thought_that_was_cut_short_is_no_answer(text: str, choice: int | None) -> None:
    found = read_label([read_reply(answer(None, text))], ("да", "нет"), (), False)
    assert found.outcome == ("unparsable" if choice is None else "answered")
    assert found.probabilities == (None if choice is None else [0, 1])
