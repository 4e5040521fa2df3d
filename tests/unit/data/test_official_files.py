from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invented import OFFICIAL, official_lines, write_official

from harness.data.jsonlines import read_objects
from harness.data.official import load_official
from harness.errors import UserError
from harness.tasks import RUSSIAN_SUPERGLUE, get_task

ANSWERED_BY_LABEL = [task for task in OFFICIAL if task != "rucos"]


def load(root, task, split="train"):
    return load_official(get_task(task), get_task(task).split(split), root)


def refusal(root, task, split="train") -> UserError:
    with pytest.raises(UserError) as caught:
        load(root, task, split)
    assert "\n" not in str(caught.value)
    return caught.value


# --- what is read --------------------------------------------------------------------------------------------------


def test_lidirus_has_numbers_for_string_idx_and_empty_strings_for_absent_categories(tmp_path):
    write_official(tmp_path, "lidirus")
    first, second, third = (document.row() for document in load(tmp_path, "lidirus", "test"))
    assert first == {
        "sentence1": "Снег тает.",
        "sentence2": "Снег не тает.",
        "knowledge": "",
        "lexical_semantics": "",
        "logic": "Negation",
        "predicate_argument_structure": "",
        "idx": 0,
        "label": 1,
    }
    assert (second["lexical_semantics"], second["predicate_argument_structure"]) == ("Factivity", "Coordination scope")
    assert (third["idx"], third["label"], third["logic"], third["knowledge"]) == (2, 0, "", "")


def test_rcb_takes_the_negation_from_the_key_no_negation_where_that_stands_in_its_place(tmp_path):
    write_official(tmp_path, "rcb")
    assert [(d.idx, d.negation, d.label) for d in load(tmp_path, "rcb")] == [
        (0, "no_negation", 2),
        (354, "negation", 0),
    ]


def test_muserc_gives_a_row_an_answer_with_its_three_numbers(tmp_path):
    write_official(tmp_path, "muserc")
    rows = [document.row() for document in load(tmp_path, "muserc")]
    assert rows[1] == {
        "paragraph": "(1) Варя пекла пирог. (2) Кот спал на окне.",
        "question": "Что пекла Варя?",
        "answer": "Хлеб.",
        "idx": {"paragraph": 0, "question": 0, "answer": 1},
        "label": 0,
    }
    assert [tuple(row["idx"].values()) for row in rows] == [(0, 0, 0), (0, 0, 1), (0, 1, 2), (1, 2, 3)]
    assert [row["label"] for row in rows] == [1, 0, 1, 0]


def test_terra_loses_its_csv_quoting_in_premises_and_hypotheses(tmp_path):
    write_official(tmp_path, "terra")
    first, second = load(tmp_path, "terra")
    assert first.premise == '"Пироги готовы", - сказала Варя.'
    assert second.hypothesis == 'Мост "Северный" открыт.'
    assert (first.label, second.label) == (1, 0)


def test_russe_offsets_that_end_a_character_too_far_give_the_word_alone(tmp_path):
    write_official(tmp_path, "russe")
    (document,) = load(tmp_path, "russe")
    assert document.sentence1[document.start1 : document.end1] == "ключи"
    assert document.sentence2[document.start2 : document.end2] == "ключ"
    assert document.end2 == len(document.sentence2)
    assert document.label == 0


def test_rwsd_spans_are_located_by_text_where_the_token_is_wrong(tmp_path):
    write_official(tmp_path, "rwsd")
    (document,) = load(tmp_path, "rwsd")
    assert (document.span1_start, document.span2_start) == (0, document.text.index("он устал"))
    assert (document.span2_index, document.span2_text, document.label) == (3, "он устал", 1)


def test_each_rwsd_span_is_sought_near_its_own_token(tmp_path):
    text = "Волк рычал, волк выл, он мёрз, волк ждал, он спал"
    target = {"span1_text": "волк", "span1_index": 2, "span2_text": "он", "span2_index": 8}
    write_official(tmp_path, "rwsd", [{"idx": 0, "text": text, "target": target, "label": False}])
    (document,) = load(tmp_path, "rwsd")
    assert (document.span1_start, document.span2_start) == (text.index("волк выл"), text.index("он спал"))


def test_rwsd_says_minus_one_where_a_span_does_not_occur(tmp_path):
    lines = official_lines("rwsd")
    lines[0]["target"]["span1_text"] = "Пекарь"
    write_official(tmp_path, "rwsd", lines)
    assert load(tmp_path, "rwsd")[0].span1_start == -1


def test_rucos_entities_are_unique_and_in_order_of_first_appearance(tmp_path):
    write_official(tmp_path, "rucos")
    row = load(tmp_path, "rucos")[0].row()
    assert row["entities"] == ["Твери", "Пётр Лужин", "Омска", "Омске", "Лужина"]
    assert row["answers"] == ["Пётр Лужин", "Лужина"]
    assert row["idx"] == {"passage": 0, "query": 0}
    assert "@highlight" in row["passage"]
    assert "@placeholder" in row["query"]


def test_rucos_entities_and_answers_lose_trailing_characters_that_are_no_word(tmp_path):
    lines = official_lines("rucos")
    lines[0]["passage"]["entities"][0]["end"] += 1
    lines[0]["qas"][0]["answers"] = [{"text": "Твери ", "start": 2, "end": 8}]
    write_official(tmp_path, "rucos", lines)
    (document,) = load(tmp_path, "rucos")
    assert document.entities[0] == "Твери"
    assert document.answers == ("Твери",)


def test_several_queries_of_a_passage_become_several_documents(tmp_path):
    lines = official_lines("rucos")
    lines[0]["qas"].append({"query": "Кто такой @placeholder?", "idx": 8, "answers": []})
    write_official(tmp_path, "rucos", lines)
    first, second = load(tmp_path, "rucos")
    assert (first.idx.passage, first.idx.query, second.idx.passage, second.idx.query) == (0, 0, 0, 8)
    assert first.entities == second.entities


@pytest.mark.parametrize("task", ANSWERED_BY_LABEL)
def test_byte_order_mark_crlf_blank_lines_and_a_missing_last_newline_change_nothing(task, tmp_path):
    split = "test" if task == "lidirus" else "train"
    path = write_official(tmp_path, task)
    plain = load(tmp_path, task, split)
    content = path.read_bytes().replace(b"\n", b"\r\n\r\n").removesuffix(b"\r\n\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + content)
    assert load(tmp_path, task, split) == plain


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_a_line_separator_within_a_string_does_not_cut_the_line(separator, tmp_path):
    lines = official_lines("danetqa")
    lines[0]["passage"] = f"Ёж{separator}спит."
    write_official(tmp_path, "danetqa", lines)
    assert load(tmp_path, "danetqa")[0].passage == f"Ёж{separator}спит."


@given(
    st.lists(
        st.dictionaries(
            st.text(st.characters(codec="utf-8"), max_size=5),
            st.text(st.characters(codec="utf-8"), max_size=20),
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_is_written_as_json_lines_is_read_back(tmp_path_factory, objects):
    path = tmp_path_factory.mktemp("lines") / "any.jsonl"
    path.write_bytes("\n".join(json.dumps(line, ensure_ascii=False) for line in objects).encode("utf-8"))
    assert list(read_objects(path)) == list(enumerate(objects, start=1))


@pytest.mark.parametrize("task", [task for task in ANSWERED_BY_LABEL if task != "lidirus"])
def test_a_test_split_without_labels_has_hidden_ones(task, tmp_path):
    lines = json.loads(json.dumps(OFFICIAL[task]), object_hook=lambda value: (value.pop("label", None), value)[1])
    write_official(tmp_path, task, lines, "test")
    documents = load(tmp_path, task, "test")
    assert {document.label for document in documents} == {-1}


def test_a_rucos_test_split_has_no_answers(tmp_path):
    lines = official_lines("rucos")
    del lines[0]["qas"][0]["answers"]
    write_official(tmp_path, "rucos", lines, "test")
    assert load(tmp_path, "rucos", "test")[0].row()["answers"] == []


def test_a_test_split_with_labels_keeps_them(tmp_path):
    write_official(tmp_path, "rcb", split="test")
    assert [document.label for document in load(tmp_path, "rcb", "test")] == [2, 0]


def test_the_validation_split_is_the_file_val(tmp_path):
    write_official(tmp_path, "rcb", split="validation")
    assert (tmp_path / "RCB" / "val.jsonl").is_file()
    assert len(load(tmp_path, "rcb", "validation")) == 2


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ANSWERED_BY_LABEL)
def test_a_missing_label_outside_the_test_split_is_an_error(task, tmp_path):
    lines = json.loads(json.dumps(OFFICIAL[task]), object_hook=lambda value: (value.pop("label", None), value)[1])
    path = write_official(tmp_path, task, lines)
    split = "test" if task == "lidirus" else "train"
    assert refusal(tmp_path, task, split).message == f'{path}:1: no field "label"'


def test_missing_rucos_answers_outside_the_test_split_are_an_error(tmp_path):
    lines = official_lines("rucos")
    del lines[0]["qas"][0]["answers"]
    path = write_official(tmp_path, "rucos", lines)
    assert refusal(tmp_path, "rucos").message == f'{path}:1: no field "answers"'


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (task, field)
        for task, lines in OFFICIAL.items()
        for field in lines[-1]
        if field not in ("label", "genre", "verb", "negation", "no_negation")
        and "gold" not in field
        and "-" not in field
    ],
)
def test_a_missing_field_is_named_with_file_and_line(task, field, tmp_path):
    lines = official_lines(task)
    del lines[-1][field]
    path = write_official(tmp_path, task, lines)
    split = "test" if task == "lidirus" else "train"
    assert refusal(tmp_path, task, split).message == f'{path}:{len(lines)}: no field "{field}"'


def test_a_missing_nested_field_is_named_with_its_place(tmp_path):
    lines = official_lines("muserc")
    del lines[1]["passage"]["questions"][0]["answers"][0]["text"]
    path = write_official(tmp_path, "muserc", lines)
    assert refusal(tmp_path, "muserc").message == f'{path}:2: no field "text" in passage.questions[0].answers[0]'


def test_a_field_of_a_wrong_type_is_named_with_its_value(tmp_path):
    lines = official_lines("danetqa")
    lines[1]["question"] = None
    path = write_official(tmp_path, "danetqa", lines)
    message = refusal(tmp_path, "danetqa").message
    assert message == f'{path}:2: field "question": input should be a valid string, not null'


@pytest.mark.parametrize(
    ("task", "allowed"),
    [
        ("lidirus", '"entailment", "not_entailment"'),
        ("rcb", '"entailment", "contradiction", "neutral"'),
        ("parus", "0, 1"),
        ("terra", '"entailment", "not_entailment"'),
        ("russe", 'false, true, "false", "true", "False", "True", 0, 1'),
        ("rwsd", 'false, true, "false", "true", "False", "True", 0, 1'),
        ("danetqa", 'false, true, "false", "true", "False", "True", 0, 1'),
    ],
)
def test_a_wrong_label_is_named_with_the_allowed_ones(task, allowed, tmp_path):
    lines = official_lines(task)
    lines[-1]["label"] = "возможно"
    path = write_official(tmp_path, task, lines)
    split = "test" if task == "lidirus" else "train"
    message = refusal(tmp_path, task, split).message
    assert message == f'{path}:{len(lines)}: label is "возможно", allowed: {allowed}'


def test_a_wrong_muserc_label_is_named_with_the_line_of_its_paragraph(tmp_path):
    lines = official_lines("muserc")
    lines[1]["passage"]["questions"][0]["answers"][0]["label"] = 2
    path = write_official(tmp_path, "muserc", lines)
    assert refusal(tmp_path, "muserc").message == f"{path}:2: label is 2, allowed: 0, 1"


@pytest.mark.parametrize(("start", "end"), [(5, 5), (9, 4), (0, 10_000)])
def test_a_rucos_entity_outside_its_passage_is_an_error(start, end, tmp_path):
    lines = official_lines("rucos")
    lines[0]["passage"]["entities"][1] = {"start": start, "end": end}
    path = write_official(tmp_path, "rucos", lines)
    assert refusal(tmp_path, "rucos").message.startswith(f"{path}:1: entity {start}–{end} is no span of a passage of ")


@given(st.data())
def test_a_file_cut_in_its_last_line_looks_truncated_wherever_it_is_cut(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("cut")
    path = write_official(root, "rcb")
    content = path.read_bytes()
    start_of_last = content.rstrip().rindex(b"\n") + 1
    path.write_bytes(content[: data.draw(st.integers(start_of_last + 1, len(content) - 2))])
    error = refusal(root, "rcb")
    assert error.message == f"{path}:2: the last line is not valid JSON: the file looks truncated"
    assert error.hint


def test_invalid_json_before_the_last_line_is_named_with_line_and_column(tmp_path):
    lines = official_lines("rcb")
    path = write_official(tmp_path, "rcb", [lines[0], '{"idx": 1,, }', lines[1]])
    message = refusal(tmp_path, "rcb").message
    assert message.startswith(f"{path}:2: invalid JSON: ")
    assert message.endswith(" at column 11")


def test_json_that_is_no_object_is_refused(tmp_path):
    path = write_official(tmp_path, "rcb", ["[1, 2]"])
    assert refusal(tmp_path, "rcb").message == f"{path}:1: expected a JSON object, not [1, 2]"


def test_json_nested_too_deeply_is_refused(tmp_path):
    path = write_official(tmp_path, "rcb", ["[" * 100_000 + "]" * 100_000, *official_lines("rcb")])
    assert refusal(tmp_path, "rcb").message.startswith(f"{path}:1: invalid JSON: nested too deeply")


def test_half_a_surrogate_pair_is_refused(tmp_path):
    lines = official_lines("rcb")
    path = write_official(tmp_path, "rcb", [lines[0], json.dumps(lines[1] | {"premise": "\ud83d"})])
    assert refusal(tmp_path, "rcb").message.startswith(f"{path}:2: a string holds half a surrogate pair")


def test_a_whole_surrogate_pair_is_one_character(tmp_path):
    lines = official_lines("rcb")
    write_official(tmp_path, "rcb", [json.dumps(lines[0] | {"premise": "\U0001f600"})])
    assert load(tmp_path, "rcb")[0].premise == "\U0001f600"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n\r\n \n"])
def test_an_empty_file_is_refused(content, tmp_path):
    path = write_official(tmp_path, "rcb")
    path.write_bytes(content)
    assert refusal(tmp_path, "rcb").message == f"{path} is empty"


def test_a_file_without_examples_is_refused(tmp_path):
    path = write_official(tmp_path, "muserc", [{"idx": 0, "passage": {"text": "(1) Да.", "questions": []}}])
    assert refusal(tmp_path, "muserc").message == f"{path} holds no examples"


@pytest.mark.parametrize("encoding", ["cp1251", "utf-16"])
def test_a_file_in_another_encoding_is_refused_with_its_first_wrong_byte(encoding, tmp_path):
    path = write_official(tmp_path, "danetqa")
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    message = refusal(tmp_path, "danetqa").message
    assert message.startswith(f"{path}:1: not UTF-8 (byte ")
    assert message.endswith("is 0xd1)" if encoding == "cp1251" else "(byte 1 of the line is 0xff)")


def test_a_missing_directory_says_what_is_expected_and_what_is_there(tmp_path):
    (tmp_path / "RCD").mkdir()
    (tmp_path / "TERRa").mkdir()
    error = refusal(tmp_path, "rcb")
    assert error.message == f"no directory {tmp_path / 'RCB'}"
    assert error.hint == f"expected RCB/train.jsonl in {tmp_path}; found there: RCD"


def test_an_empty_root_is_called_empty(tmp_path):
    assert refusal(tmp_path, "rcb").hint == f"expected RCB/train.jsonl in {tmp_path}; it is empty"


def test_a_root_one_step_too_high_or_too_low_is_recognised(tmp_path):
    write_official(tmp_path / "combined", "rcb")
    assert refusal(tmp_path, "rcb").hint == f"did you mean {tmp_path / 'combined'}?"
    too_low = tmp_path / "combined" / "RCB"
    assert refusal(too_low, "rcb").hint == f"name the directory above it: {tmp_path / 'combined'}"


def test_a_missing_root_says_what_is_expected(tmp_path):
    error = refusal(tmp_path / "nowhere", "lidirus", "test")
    assert error.message == f"no directory {tmp_path / 'nowhere'}"
    assert error.hint == "expected the unpacked official archive with LiDiRus/LiDiRus.jsonl"


def test_a_missing_file_names_the_nearest_ones(tmp_path):
    write_official(tmp_path, "rcb").rename(tmp_path / "RCB" / "train.json")
    error = refusal(tmp_path, "rcb")
    assert error.message == f"no file {tmp_path / 'RCB' / 'train.jsonl'}"
    assert error.hint == "found there: train.json"


def test_the_hubs_layout_in_place_of_the_official_one_is_recognised(tmp_path):
    (tmp_path / "danetqa" / "train").mkdir(parents=True)
    (tmp_path / "danetqa" / "train" / "0000.parquet").touch()
    assert f"say hub:{tmp_path}" in refusal(tmp_path, "danetqa").hint


def test_every_task_has_its_directory():
    assert list(RUSSIAN_SUPERGLUE) == list(OFFICIAL)


# --- what no task can use ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(OFFICIAL))
def test_an_idx_that_comes_twice_is_named_with_both_places(tmp_path, task):
    lines = official_lines(task)
    path = write_official(tmp_path, task, [*lines, lines[0]], get_task(task).splits[0])
    error = refusal(tmp_path, task, get_task(task).splits[0])
    assert error.message.startswith(f"{path}:{len(lines) + 1}: idx ")
    assert error.message.endswith(f"stands in {path}:1 too")


def test_an_idx_that_comes_twice_within_a_line_is_refused(tmp_path):
    (first, *_) = official_lines("muserc")
    answers = first["passage"]["questions"][0]["answers"]
    answers[1]["idx"] = answers[0]["idx"]
    write_official(tmp_path, "muserc", [first])
    assert '"answer": 0} stands in' in refusal(tmp_path, "muserc").message


@pytest.mark.parametrize("text", ["", "  "])
def test_a_choice_without_text_is_refused_with_its_line(tmp_path, text):
    first, second, *_ = official_lines("parus")
    path = write_official(tmp_path, "parus", [first, {**second, "choice2": text}])
    assert refusal(tmp_path, "parus").message == f'{path}:2: field "choice2" is empty'


def test_a_passage_without_entities_is_refused_with_its_line(tmp_path):
    (first, *_) = official_lines("rucos")
    path = write_official(tmp_path, "rucos", [{**first, "passage": {**first["passage"], "entities": []}}])
    assert refusal(tmp_path, "rucos").message == f'{path}:1: field "entities" names none to choose from'
