from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.data import fingerprint
from harness.tasks import RUSSIAN_SUPERGLUE, document_key, get_task
from harness.tasks.document import LabelError, describe
from harness.tasks.parus import PARus
from harness.tasks.rucos import RuCoS
from harness.text import short

ROW = {"premise": "Шёл снег.", "choice1": "Холодно.", "choice2": "Жарко.", "question": "cause", "idx": 3, "label": 0}
ANSWER = {"paragraph": "(1) Да.", "question": "Да?", "answer": "Да.", "label": 1}


def test_tasks_schemas_and_labels_are_in_one_order():
    assert RUSSIAN_SUPERGLUE == ("lidirus", "rcb", "parus", "muserc", "terra", "russe", "rwsd", "danetqa", "rucos")
    assert tuple(get_task(name).document.__name__.lower() for name in RUSSIAN_SUPERGLUE) == RUSSIAN_SUPERGLUE
    assert get_task("rcb").labels == ("entailment", "contradiction", "neutral")


def test_a_row_holds_plain_values_with_the_nested_index_kept():
    document = get_task("rucos").parse(
        {
            "passage": "Варя пришла",
            "query": "@placeholder",
            "entities": ("Варя ",),
            "answers": ("Варя",),
            "idx": {"passage": 1, "query": 2},
        },
    )
    assert isinstance(document, RuCoS)
    assert document.row() == {
        "passage": "Варя пришла",
        "query": "@placeholder",
        "entities": ["Варя"],
        "answers": ["Варя"],
        "idx": {"passage": 1, "query": 2},
    }


def test_a_document_cannot_be_changed():
    document = PARus(**ROW)
    with pytest.raises(ValidationError):
        document.label = 1


def test_unknown_columns_are_ignored():
    assert get_task("parus").parse({**ROW, "genre": "сказка"}).row() == ROW


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"premise": 5}, 'field "premise": input should be a valid string, not 5'),
        ({"idx": "три"}, 'field "idx": input should be a valid integer, not "три"'),
        ({"idx": True}, 'field "idx": input should be a valid integer, not true'),
        ({"idx": -1}, 'field "idx": input should be greater than or equal to 0, not -1'),
        ({"question": "why"}, "field \"question\": input should be 'cause' or 'effect', not \"why\""),
        ({"label": 2}, 'field "label": input should be -1, 0 or 1, not 2'),
    ],
)
def test_a_wrong_value_is_described_in_a_line(change, message):
    with pytest.raises(ValidationError) as caught:
        get_task("parus").parse(ROW | change)
    assert describe(caught.value) == message


def test_half_a_surrogate_pair_is_shown_in_words_that_can_be_printed():
    assert short("\ud83d").encode("utf-8") == b'"\\ud83d"'


def test_a_long_value_is_cut_and_stays_on_one_line():
    assert short("а\nб" * 100) == '"' + "а\\nб" * 14 + "а\\n…"


def test_a_numeric_string_is_an_idx():
    assert get_task("parus").parse(ROW | {"idx": "17"}).row()["idx"] == 17


@pytest.mark.parametrize(
    ("task", "value", "index"),
    [
        ("lidirus", "entailment", 0),
        ("terra", "not_entailment", 1),
        ("rcb", "entailment", 0),
        ("rcb", "contradiction", 1),
        ("rcb", "neutral", 2),
        ("parus", 1, 1),
        ("muserc", 0, 0),
        *[(task, true, 1) for task in ("russe", "rwsd", "danetqa") for true in (True, "true", "True", 1)],
        *[(task, false, 0) for task in ("russe", "rwsd", "danetqa") for false in (False, "false", "False", 0)],
    ],
)
def test_every_documented_spelling_of_a_label_is_read(task, value, index):
    assert get_task(task).label_index(value) == index


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("lidirus", "Entailment"),
        ("lidirus", 0),
        ("terra", True),
        ("rcb", "not_entailment"),
        ("parus", True),
        ("parus", 2),
        ("parus", "1"),
        ("muserc", 1.0),
        ("danetqa", "да"),
        ("russe", "TRUE"),
        ("rwsd", None),
        ("rwsd", [True]),
    ],
)
def test_any_other_label_is_refused_with_the_allowed_ones(task, value):
    with pytest.raises(LabelError) as caught:
        get_task(task).label_index(value)
    assert str(caught.value).startswith(f"label is {short(value)}, allowed: ")


def test_the_hubs_classes_are_read_by_name_where_the_file_names_them():
    assert get_task("rcb").hub_label_index(1, ["entailment", "neutral", "contradiction"]) == 2
    assert get_task("rcb").hub_label_index(1, None) == 1
    assert get_task("parus").hub_label_index(1, ["choice1", "choice2"]) == 1
    assert get_task("muserc").hub_label_index(0, ["False", "True"]) == 0
    assert get_task("danetqa").hub_label_index(-1, ["False", "True"]) == -1
    assert get_task("terra").hub_label_index("not_entailment", None) == 1


@pytest.mark.parametrize(("value", "names"), [(3, None), (-2, None), (2, ["False", "True"]), (True, None)])
def test_a_class_index_out_of_range_is_refused(value, names):
    with pytest.raises(LabelError):
        get_task("rcb").hub_label_index(value, names)


def answers(*paragraphs: int):
    return [
        get_task("muserc").parse({**ANSWER, "idx": {"paragraph": paragraph, "question": 0, "answer": number}})
        for number, paragraph in enumerate(paragraphs)
    ]


def test_a_document_is_a_paragraph_in_muserc_and_an_example_elsewhere():
    documents = answers(0, 0, 1, 2, 0)
    assert [document_key(document) for document in documents] == [0, 0, 1, 2, 0]
    assert [document_key(document.row()) for document in documents] == [0, 0, 1, 2, 0]
    assert document_key(PARus(**ROW)) == 3
    assert document_key({"idx": {"passage": 4, "query": 9}}) == (4, 9)
    assert document_key({"idx": 7}) == 7


def test_the_fingerprint_is_sha_256_over_lines_of_sorted_json():
    # printf of the one line of JSON below, piped to sha256sum
    assert fingerprint([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    one = PARus(**(ROW | {"premise": "а", "choice1": "б", "choice2": "в"}))
    assert fingerprint([one]) == "f7261fbb448b6431ad1f586e5f80a90f2221126dc3b66a06169764391a3adc3b"


@given(
    st.dictionaries(st.sampled_from(["premise", "choice1", "choice2"]), st.text("аб я", max_size=20).map("я{}".format))
)
def test_a_document_survives_the_round_trip_through_its_row(change):
    document = PARus(**(ROW | change))
    assert PARus(**document.row()) == document
    assert (fingerprint([document]) == fingerprint([PARus(**ROW)])) == (document == PARus(**ROW))


def test_importing_the_package_loads_no_heavy_library():
    script = "import sys, harness.data; print({'datasets','pyarrow','huggingface_hub','torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
