from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.tasks.spans import clean_entities, find_span, unwrap_csv_quotes, word_bounds

TEXT = "Кот увидел мышь. Потом кот уснул, а «Серая мышь» убежала; Кот не знал."


@pytest.mark.parametrize(
    ("span", "token", "expected"),
    [
        ("Кот", 0, 0),
        ("мышь", 2, TEXT.index("мышь.")),
        ("Серая мышь", 7, TEXT.index("Серая")),
        ("«Серая мышь»", 7, TEXT.index("«")),
    ],
)
def test_a_span_that_stands_at_its_token_is_taken_there(span, token, expected):
    assert find_span(TEXT, span, token) == expected


def test_a_span_at_its_token_wins_over_an_occurrence_in_its_own_spelling():
    assert find_span(TEXT, "Кот", 4) == TEXT.index("кот уснул")


def test_a_wrong_token_gives_the_nearest_occurrence():
    text = "он шёл и он, а уже потом он"
    assert find_span(text, "он", 1) == 0
    assert find_span(text, "он", 2) == text.index("он,")
    assert find_span(text, "он", 6) == text.rindex("он")


def test_an_occurrence_in_the_spans_own_spelling_wins_over_a_nearer_one_in_another():
    assert find_span("Она шла, она пела. Да", "Она", 3) == 0


def test_a_pronoun_is_not_found_inside_another_word():
    text = "Телефон звонил, и он встал"
    assert find_span(text, "он", 0) == text.index("он встал")


@pytest.mark.parametrize("token", [-5, 40])
def test_a_token_out_of_range_does_no_harm(token):
    assert find_span("Дом стоит", "стоит", token) == 4


def test_case_and_punctuation_are_ignored():
    assert find_span("Пришёл старый, добрый Друг.", "старый добрый друг", 0) == 7


def test_an_inflected_form_is_found_where_the_word_itself_does_not_occur():
    assert find_span("Волк пришёл раньше медведя", "медвед", 1) == 19


def test_the_first_word_of_an_interrupted_span_is_found():
    text = "Пирог, который она вчера испекла, сгорел"
    assert find_span(text, "она испекла", 2) == text.index("она")


@pytest.mark.parametrize("span", ["слон", "", "—"])
def test_a_span_that_does_not_occur_is_at_minus_one(span):
    assert find_span(TEXT, span, 0) == -1


@given(st.lists(st.sampled_from(["дом", "Лес", "он", "конь,", "«река»", "и"]), min_size=1, max_size=12), st.data())
def test_any_run_of_words_is_found_at_its_own_token(tokens, data):
    text = " ".join(tokens)
    first = data.draw(st.integers(0, len(tokens) - 1))
    count = data.draw(st.integers(1, len(tokens) - first))
    span = " ".join(tokens[first : first + count])
    assert find_span(text, span, first) == len(" ".join([*tokens[:first], ""]))


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (8, 13),  # right
        (8, 14),  # a character too far, as nearly everywhere
        (8, 11),  # too short
        (10, 15),  # shifted
    ],
)
def test_a_rough_offset_is_mended_to_the_whole_word(start, end):
    sentence = "Потерял ключи, беда"
    assert word_bounds(sentence, start, end, "ключ") == (8, 13)


def test_an_end_behind_the_sentence_is_cut():
    assert word_bounds("Где ключ", 4, 9, "ключ") == (4, 8)


def test_of_two_touched_words_the_one_like_the_lemma_is_meant():
    sentence = "Верю почерку этого мастера"
    start = sentence.index("ку этого")
    assert word_bounds(sentence, start, start + 7, "почерк") == (5, 12)


def test_an_offset_that_touches_no_word_stays_within_the_sentence():
    assert word_bounds("Ау!", 2, 9, "ключ") == (2, 3)


def csv_quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


@given(st.text(alphabet='аб ",.', max_size=30).filter(lambda text: '"' in text))
def test_unwrapping_undoes_csv_quoting(text):
    assert unwrap_csv_quotes(csv_quoted(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        '"',
        '""',
        "Просто текст.",
        '"Вся фраза в кавычках."',
        '"Да", - сказал он, - "нет"',
        'Фирма ""Заря"" закрылась.',
        '"Нечётно "" и " здесь"',
    ],
)
def test_text_that_is_not_surely_csv_quoted_stays_as_it_is(text):
    assert unwrap_csv_quotes(text) == text


def test_entities_lose_stray_characters_and_duplicates_and_come_by_first_appearance():
    passage = "Варя и Пётр. Потом Варя, Пётр и Анна"
    assert clean_entities(["Анна", "Варя ", "Варя,", "Пётр.", "Пётр "], passage) == ("Варя", "Пётр", "Анна")


def test_punctuation_inside_an_entity_stays():
    assert clean_entities(["Нижняя Т.-Салда «А»."], "Нижняя Т.-Салда «А».") == ("Нижняя Т.-Салда «А",)


def test_an_entity_that_is_not_in_the_passage_comes_last_and_one_without_letters_not_at_all():
    assert clean_entities(["Анна", "Варя", " —"], "Здесь Варя") == ("Варя", "Анна")
