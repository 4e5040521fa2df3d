"""Reading answers as a careful person would: what a text clearly says counts, what it does not say stays unread."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import load_split
from harness.tasks import RUSSIAN_SUPERGLUE, get_task
from harness.tasks.answers import is_tied, parse_choice, parse_entity, pick_choice
from harness.tasks.lidirus import CATEGORIES

YES_NO = ["да", "нет"]
NO_YES = ["нет", "да"]
THREE = ["да", "нет", "неизвестно"]
NUMBERS = ["1", "2"]


# --- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [YES_NO, NO_YES, THREE])
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # as asked for
        ("да", "да"),
        (" нет", "нет"),
        ("Да.", "да"),
        ("НЕТ!", "нет"),
        ("«Да»", "да"),
        ('"нет"', "нет"),
        ("**Да**", "да"),
        ("- нет", "нет"),
        ("да\n\nТекст: другой", "да"),
        ("да да да", "да"),
        # with words around
        ("Ответ: да", "да"),
        ("Правильный ответ — нет.", "нет"),
        ("Да, из текста это следует.", "да"),
        ("Нет, это неверно.", "нет"),
        ("Нет, из текста это не следует.", "нет"),
        ("да, хотя нет прямых доказательств", "да"),
        ("Да, утверждение не противоречит тексту", "да"),
        ("Думаю, что нет", "нет"),
        # other words
        ("Верно.", "да"),
        ("неверно", "нет"),
        ("Это правда", "да"),
        ("Это неправда.", "нет"),
        ("Правильно", "да"),
        ("Неправильно!", "нет"),
        ("следует", "да"),
        ("Конечно!", "да"),
        ("Yes", "да"),
        ("no", "нет"),
        # turned round by «не»
        ("Не следует", "нет"),
        ("не верно", "нет"),
        ("Это не правда", "нет"),
        ("Утверждение из текста не следует.", "нет"),
        # several sentences
        ("Утверждение верно. Нет сомнений.", "да"),
    ],
)
def test_yes_and_no_are_read(choices, text, answer):
    assert parse_choice(text, choices) == choices.index(answer)


@pytest.mark.parametrize("choices", [YES_NO, NO_YES])
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "...",
        "?",
        "Ответ:",
        "Москва",
        "данные",  # begins with «да»
        "нетто",
        "неданный",
        "12",
        "не",
        "следовать",
    ],
)
def test_texts_that_say_neither_are_not_read(choices, text):
    assert parse_choice(text, choices) is None


@pytest.mark.parametrize("choices", [YES_NO, NO_YES])
@pytest.mark.parametrize(
    "text", ["да или нет", "Да или нет?", "нет или да", "Да/нет", "Ответьте одним словом: да или нет."]
)
def test_an_echo_of_the_question_that_names_both_is_not_read(choices, text):
    assert parse_choice(text, choices) is None


@pytest.mark.parametrize("choices", [YES_NO, NO_YES])
@pytest.mark.parametrize("text", ["Конечно нет", "Конечно, нет.", "Конечно же нет!", "Конечно, не следует"])
def test_of_course_not_is_a_no(choices, text):
    assert parse_choice(text, choices) == choices.index("нет")


@pytest.mark.parametrize("choices", [YES_NO, NO_YES])
@pytest.mark.parametrize(
    "text", ["Верно ли это? Нет", "Следует ли утверждение из текста? Нет.", "Правда ли это? Нет, неправда."]
)
def test_the_question_repeated_is_not_its_answer(choices, text):
    assert parse_choice(text, choices) == choices.index("нет")


@pytest.mark.parametrize("choices", [YES_NO, NO_YES])
@pytest.mark.parametrize("text", ["Не совсем верно", "Не всегда правда", "Это не вполне правильно"])
def test_not_quite_right_is_never_a_yes(choices, text):
    assert parse_choice(text, choices) in (None, choices.index("нет"))


@pytest.mark.parametrize(
    ("text", "answer"),
    [("Верен", "да"), ("Верен.", "да"), ("Неверен", "нет"), ("Не верен", "нет"), ("Этот вариант верен", "да")],
)
def test_the_word_that_the_question_itself_uses_answers_it(text, answer):
    """MuSeRC asks «Верен ли этот вариант?»."""
    assert parse_choice(text, NO_YES) == NO_YES.index(answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("неизвестно", "неизвестно"),
        ("Неизвестно, из текста это не следует", "неизвестно"),
        ("Неясно.", "неизвестно"),
        ("Непонятно", "неизвестно"),
        ("Возможно", "неизвестно"),
        ("Нельзя сказать.", "неизвестно"),
        ("Да, но остальное неизвестно", "да"),
        ("нет, неизвестно откуда это взято", "нет"),
    ],
)
def test_the_third_answer_of_rcb_is_read(text, answer):
    assert parse_choice(text, THREE) == THREE.index(answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1", "1"),
        ("2.", "2"),
        ("1)", "1"),
        ("(2)", "2"),
        ("Ответ: 2", "2"),
        ("Вариант 1", "1"),
        ("Вариант № 2.", "2"),
        ("Первый", "1"),
        ("второй вариант", "2"),
        ("Первое предложение", "1"),
        ("вторая", "2"),
        ("Два", "2"),
        ("1, потому что пошёл дождь", "1"),
        ("Не 1, а 2", "2"),
        ("1. Пошёл дождь.", "1"),
    ],
)
def test_numbers_are_read(text, answer):
    assert parse_choice(text, NUMBERS) == NUMBERS.index(answer)


@pytest.mark.parametrize(
    "text", ["3", "12", "21", "", "Пошёл дождь", "1000", "Ни один", "1 или 2", "Ответьте одной цифрой: 1 или 2."]
)
def test_texts_that_name_no_number_or_offer_both_are_not_read(text):
    assert parse_choice(text, NUMBERS) is None


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Вода потекла из крана.", 0),
        ("ребёнок уснул", 1),
        ("Ребенок уснул!", 1),  # without the dots
        ("Потому что вода потекла из крана", 0),
        ("Вода потекла из крана, и ребёнок уснул", None),  # both
        ("вода", None),
        ("потекла вода из крана", None),  # other order
        ("ребёнок проснулся", None),
    ],
)
def test_choices_written_out_are_read(text, index):
    assert parse_choice(text, ["Вода потекла из крана", "Ребёнок уснул"]) == index


@pytest.mark.parametrize(("text", "index"), [("разные значения", 0), ("Одно и то же значение.", 1), ("значения", None)])
def test_choices_of_several_words_are_told_apart(text, index):
    assert parse_choice(text, ["разные значения", "одно и то же значение"]) == index


@given(text=st.text(max_size=40), choices=st.sampled_from([YES_NO, NO_YES, THREE, NUMBERS]))
def test_any_text_gives_a_choice_or_none(text, choices):
    found = parse_choice(text, choices)
    assert found is None or 0 <= found < len(choices)
    assert parse_choice(f"  {text.upper()}\n", choices) == parse_choice(text.upper(), choices)


@given(
    answer=st.sampled_from(THREE), before=st.text("«\"'(*-— \n", max_size=4), after=st.text("».,!)*\"' \n", max_size=4)
)
def test_case_and_punctuation_around_an_answer_do_not_matter(answer, before, after):
    for text in (answer, answer.upper(), answer.capitalize()):
        assert parse_choice(before + text + after, THREE) == THREE.index(answer)


# --- entities ---------------------------------------------------------------------------------------------------------

ENTITIES = ["Россия", "Владимир Иванов", "Иванов", "Нью-Йорк", "ООО «Ромашка»", "Центральный банк России"]


@pytest.mark.parametrize(
    ("text", "entity"),
    [
        ("Россия", "Россия"),
        (" россия. ", "Россия"),
        ("Иванов", "Иванов"),
        ("Владимир Иванов", "Владимир Иванов"),
        ("Это Владимир Иванов.", "Владимир Иванов"),  # the longer of two that stand there
        ("нью-йорк", "Нью-Йорк"),
        ("ООО «Ромашка»", "ООО «Ромашка»"),
        ("Пропущено: Центральный банк России, как следует из текста", "Центральный банк России"),
        ("Россия (страна)", "Россия"),
        ('"Россия"', "Россия"),
    ],
)
def test_an_entity_is_found_in_a_text(text, entity):
    assert parse_entity(text, ENTITIES) == entity


@pytest.mark.parametrize(
    "text", ["«Россия»", "«Россия».", "Ответ: «Россия»", "“Россия”", "Россия…", "— Россия", "Россия — страна"]
)
def test_russian_quotation_marks_and_dashes_do_not_hide_an_entity(text):
    assert parse_entity(text, ENTITIES) == "Россия"


def test_other_text_is_kept_for_the_token_f1():
    assert parse_entity(" Иваново \n", ENTITIES) == "Иваново"
    assert parse_entity("России", ["Россия"]) == "России"


@pytest.mark.parametrize("text", ["", "  \n", "...", "?!"])
def test_an_empty_text_names_nothing(text):
    assert parse_entity(text, ENTITIES) is None


def test_a_passage_without_entities_leaves_the_text():
    assert parse_entity("Россия", []) == "Россия"


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logprobs", "best", "tied"),
    [
        ([-1.0, -2.0], 0, False),
        ([-2.0, -1.0, -3.0], 1, False),
        ([-1.0, -1.0], 0, True),
        ([-3.0, -1.0, -1.0], 1, True),
        ([-1.0, -3.0, -3.0], 0, False),
        ([-1.0], 0, False),
    ],
)
def test_the_most_probable_choice_is_taken_and_ties_are_seen(logprobs, best, tied):
    assert pick_choice(logprobs) == best
    assert is_tied(logprobs) is tied


# --- items ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", RUSSIAN_SUPERGLUE)
def test_every_document_becomes_an_item_with_its_gold_answer(task):
    for document in load_split(task, "validation", "mini").documents:
        row = document.row()
        gold = tuple(row["answers"]) if task == "rucos" else row["label"]
        item = get_task(task).item(row, None)
        assert (item.gold, item.prediction) == (gold, None)


def test_hidden_answers_are_none():
    assert get_task("terra").item({"idx": 1, "label": -1}, 0).gold is None
    assert get_task("rucos").item({"idx": {"passage": 1, "query": 2}, "answers": []}, "Киев").gold is None


def test_answers_of_a_muserc_paragraph_are_one_cluster_with_a_group_for_each_question():
    items = [
        get_task("muserc").item({"idx": {"paragraph": 4, "question": question, "answer": answer}, "label": 1}, 1)
        for question, answer in [(7, 1), (7, 2), (8, 3)]
    ]
    assert {item.cluster for item in items} == {4}
    assert [item.group for item in items] == [7, 7, 8]


def test_categories_of_lidirus_are_those_that_are_filled():
    row = {"idx": 1, "label": 0, **dict.fromkeys(CATEGORIES, ""), "logic": "Negation"}
    assert get_task("lidirus").item(row, 1).categories == ("logic",)
    assert get_task("terra").item(row, 1).categories == ()
