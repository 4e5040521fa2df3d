"""The official metrics against scikit-learn, an explicit resampling and cases worked out by hand."""

from __future__ import annotations

import math
import re
import string
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from harness.tasks import RUSSIAN_SUPERGLUE, get_task
from harness.tasks.lidirus import CATEGORIES
from harness.tasks.metrics import (
    Estimate,
    Item,
    bootstrap_samples,
    compute,
    estimate,
    mean_estimate,
    normalised,
    token_f1,
)

UNREADABLE = 99  # scikit-learn's view of a prediction that is no label
ACCURACY_TASKS = ("parus", "terra", "russe", "rwsd", "danetqa")

METRICS = {name: get_task(name).metrics for name in RUSSIAN_SUPERGLUE}


def items_of(gold: Sequence[int], predicted: Sequence[int | None]) -> list[Item]:
    return [Item(number, right, said) for number, (right, said) in enumerate(zip(gold, predicted, strict=True))]


def for_sklearn(predicted: Sequence[int | None]) -> list[int]:
    return [UNREADABLE if said is None else said for said in predicted]


@st.composite
def answers(draw: st.DrawFn, labels: int) -> tuple[list[int], list[int | None]]:
    """Gold and predicted labels; constant ones and unreadable answers often."""
    size = draw(st.integers(1, 40))
    known = st.sampled_from(draw(st.sampled_from([list(range(labels)), [0], [labels - 1]])))
    said = st.sampled_from(draw(st.sampled_from([list(range(labels)), [0], [1], [None], [None, *range(labels)]])))
    return (
        draw(st.lists(known, min_size=size, max_size=size)),
        draw(st.lists(said, min_size=size, max_size=size)),
    )


# --- against scikit-learn ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ACCURACY_TASKS)
@settings(max_examples=60, deadline=None)
@given(case=answers(2))
def test_accuracy_is_that_of_scikit_learn(task, case):
    gold, predicted = case
    expected = accuracy_score(gold, for_sklearn(predicted))
    for name in ("acc", "rsg"):
        assert compute(METRICS[task][name], items_of(gold, predicted)) == pytest.approx(expected)


@settings(max_examples=300, deadline=None)
@given(case=answers(3))
def test_rcb_is_the_mean_of_macro_f1_and_accuracy(case):
    gold, predicted = case
    items, said = items_of(gold, predicted), for_sklearn(predicted)
    present = sorted(set(gold) | set(said) - {UNREADABLE})
    accuracy = accuracy_score(gold, said)
    macro = f1_score(gold, said, average="macro", labels=present, zero_division=0)
    assert compute(METRICS["rcb"]["acc"], items) == pytest.approx(accuracy)
    assert compute(METRICS["rcb"]["macro_f1"], items) == pytest.approx(macro)
    assert compute(METRICS["rcb"]["rsg"], items) == pytest.approx((macro + accuracy) / 2)


@settings(max_examples=300, deadline=None)
@given(case=answers(2))
def test_lidirus_is_the_matthews_correlation(case):
    gold, predicted = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of a single label
        expected = matthews_corrcoef(gold, for_sklearn(predicted))
    for name in ("mcc", "rsg"):
        assert compute(METRICS["lidirus"][name], items_of(gold, predicted)) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(case=answers(2), data=st.data())
def test_a_category_of_lidirus_counts_only_its_own_examples(case, data):
    gold, predicted = case
    subsets = st.lists(st.sampled_from(CATEGORIES), unique=True)
    items = [
        Item(number, right, said, categories=tuple(data.draw(subsets)))
        for number, (right, said) in enumerate(zip(gold, predicted, strict=True))
    ]
    for category in CATEGORIES:
        inside = [item for item in items if category in item.categories]
        metric = METRICS["lidirus"][f"mcc_{category}"]
        expected = compute(METRICS["lidirus"]["mcc"], inside) if inside else 0.0
        assert compute(metric, items) == pytest.approx(expected)


@st.composite
def muserc_items(draw: st.DrawFn) -> list[Item]:
    items = []
    for paragraph in range(draw(st.integers(1, 4))):
        for question in range(draw(st.integers(1, 4))):
            for _ in range(draw(st.integers(1, 4))):
                gold, said = draw(st.integers(0, 1)), draw(st.sampled_from([0, 1, 1, None]))
                items.append(Item(paragraph, gold, said, group=(paragraph, question)))
    return items


@settings(max_examples=300, deadline=None)
@given(items=muserc_items())
def test_muserc_is_the_mean_of_f1_over_answers_and_exact_questions(items):
    gold = [item.gold for item in items]
    # An unreadable answer is wrong, whichever answer was right.
    said = [1 - item.gold if item.prediction is None else item.prediction for item in items]
    f1a = f1_score(gold, said, zero_division=0)
    questions: dict[object, list[bool]] = {}
    for item in items:
        questions.setdefault(item.group, []).append(item.prediction == item.gold)
    em = sum(all(right) for right in questions.values()) / len(questions)
    assert compute(METRICS["muserc"]["f1a"], items) == pytest.approx(f1a)
    assert compute(METRICS["muserc"]["em"], items) == pytest.approx(em)
    assert compute(METRICS["muserc"]["rsg"], items) == pytest.approx((f1a + em) / 2)


def test_muserc_by_hand():
    said = [(0, "a", 1, 1), (0, "a", 0, 0), (0, "b", 1, 0), (0, "b", 0, 0), (1, "c", 0, 1), (1, "c", 1, 1)]
    items = [Item(paragraph, gold, prediction, group) for paragraph, group, gold, prediction in said]
    assert compute(METRICS["muserc"]["f1a"], items) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    right = sum(item.prediction == item.gold for item in items)
    assert compute(METRICS["muserc"]["acc"], items) == pytest.approx(right / len(items))
    assert compute(METRICS["muserc"]["em"], items) == pytest.approx(1 / 3)
    assert compute(METRICS["muserc"]["rsg"], items) == pytest.approx((2 / 3 + 1 / 3) / 2)


# --- RuCoS ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Москва", "москва"),
        ("  «Спартак»,  Москва! ", "«спартак» москва"),  # only ASCII punctuation goes, as officially
        ("The Beatles", "the beatles"),  # no English articles are dropped
        ("Нью-Йорк", "ньюйорк"),
        ("Ёлка\nЕль", "ёлка ель"),
        ("...", ""),
    ],
)
def test_answers_are_normalised_as_officially(text, expected):
    assert normalised(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [
        ("Владимир Путин", "Путин", 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        ("Путин", "владимир путин.", 2 / 3),
        ("а а б", "а б б", 2 / 3),
        ("Москва", "Киев", 0.0),
        ("", "Киев", 0.0),
        ("Киев", "КИЕВ!", 1.0),
    ],
)
def test_token_f1_by_hand(prediction, gold, f1):
    assert token_f1(prediction, gold) == pytest.approx(f1)


def plain_f1(prediction: str, gold: str) -> float:
    """SQuAD's evaluation, written out: shared words are struck off one by one."""
    clean = [re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower()).split() for text in (prediction, gold)]
    rest, shared = list(clean[1]), 0
    for word in clean[0]:
        if word in rest:
            rest.remove(word)
            shared += 1
    if shared == 0:
        return 0.0
    precision, recall = shared / len(clean[0]), shared / len(clean[1])
    return 2 * precision * recall / (precision + recall)


names = st.text(alphabet="абАБ .,-«»", max_size=12)


@settings(max_examples=300, deadline=None)
@given(prediction=names, gold=names)
def test_token_f1_is_that_of_a_plain_implementation(prediction, gold):
    assert token_f1(prediction, gold) == pytest.approx(plain_f1(prediction, gold))


@settings(max_examples=150, deadline=None)
@given(cases=st.lists(st.tuples(st.none() | names, st.lists(names, min_size=1, max_size=3)), min_size=1, max_size=10))
def test_rucos_takes_the_best_of_all_right_entities(cases):
    items = [Item(number, tuple(gold), said) for number, (said, gold) in enumerate(cases)]

    def same(said: str, gold: str) -> bool:
        clean = [re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower()).split() for text in (said, gold)]
        return clean[0] == clean[1]

    f1 = np.mean([0.0 if said is None else max(plain_f1(said, right) for right in gold) for said, gold in cases])
    em = np.mean([said is not None and any(same(said, right) for right in gold) for said, gold in cases])
    assert compute(METRICS["rucos"]["f1"], items) == pytest.approx(f1)
    assert compute(METRICS["rucos"]["em"], items) == pytest.approx(em)
    assert compute(METRICS["rucos"]["rsg"], items) == pytest.approx((f1 + em) / 2)


def test_rucos_by_hand():
    items = [
        Item((0, 0), ("Москва", "столица России"), "столица"),
        Item((0, 1), ("Киев",), "киев."),
        Item((1, 2), ("Минск",), None),
        Item((1, 3), ("Минск",), "Гродно"),
    ]
    assert compute(METRICS["rucos"]["f1"], items) == pytest.approx((2 / 3 + 1) / 4)
    assert compute(METRICS["rucos"]["em"], items) == pytest.approx(1 / 4)


# --- answers that could not be read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*ACCURACY_TASKS, "rcb", "lidirus"])
def test_an_unreadable_answer_never_scores_above_a_readable_wrong_one_in_accuracy(task):
    gold = [0, 1] * 5
    unread = items_of(gold, [None, *gold[1:]])
    wrong = items_of(gold, [1, *gold[1:]])
    assert compute(METRICS[task]["acc"], unread) == compute(METRICS[task]["acc"], wrong) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("task", "gold"),
    [*((task, 1) for task in (*ACCURACY_TASKS, "rcb", "lidirus", "muserc")), ("muserc", 0), ("rucos", ("Минск",))],
)
def test_a_run_whose_answers_all_are_unreadable_scores_nothing(task, gold):
    items = [Item(number, gold, None, group=number) for number in range(6)]
    for metric in METRICS[task].values():
        assert compute(metric, items) == 0


def test_every_task_has_its_figure_named_rsg():
    assert set(RUSSIAN_SUPERGLUE) == {*ACCURACY_TASKS, "lidirus", "rcb", "muserc", "rucos"}
    for metrics in (METRICS[name] for name in RUSSIAN_SUPERGLUE):
        assert all(metric.name == name for name, metric in metrics.items())
        assert "rsg" in metrics


# --- standard errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "size"), [(50, 100), (180, 200), (7, 300)])
def test_the_standard_error_of_accuracy_is_the_binomial_one(right, size):
    items = items_of([1] * size, [1] * right + [0] * (size - right))
    found = estimate(METRICS["terra"]["acc"], items)
    share = right / size
    assert found.value == pytest.approx(share)
    assert found.stderr == pytest.approx(math.sqrt(share * (1 - share) / size), rel=0.1)
    low, high = found.interval
    assert low <= found.value <= high
    assert high - low == pytest.approx(2 * 1.96 * found.stderr, rel=0.15)


def unlike_paragraphs() -> list[Item]:
    """Paragraphs of unequal size and unequal difficulty, so that drawing answers would understate the error."""
    generator = np.random.default_rng(5)
    items = []
    for paragraph in range(30):
        ease = generator.beta(0.7, 0.5)
        for question in range(int(generator.integers(1, 6))):
            for _ in range(int(generator.integers(2, 5))):
                gold = int(generator.integers(0, 2))
                items.append(
                    Item(paragraph, gold, gold if generator.random() < ease else 1 - gold, (paragraph, question))
                )
    return items


@pytest.mark.parametrize("name", ["f1a", "em", "rsg"])
def test_muserc_is_resampled_by_paragraphs(name):
    items = unlike_paragraphs()
    paragraphs = sorted({item.cluster for item in items})
    members = {paragraph: [item for item in items if item.cluster == paragraph] for paragraph in paragraphs}
    generator = np.random.default_rng(99)
    draws = []
    for _ in range(600):
        f1_gold, f1_said, exact = [], [], []
        for paragraph in generator.choice(paragraphs, len(paragraphs)):
            questions: dict[object, bool] = {}
            for item in members[paragraph]:
                f1_gold.append(item.gold)
                f1_said.append(item.prediction)
                questions[item.group] = questions.get(item.group, True) and item.prediction == item.gold
            exact += questions.values()
        hits = sum(g == s == 1 for g, s in zip(f1_gold, f1_said, strict=True))
        f1a, em = 2 * hits / (sum(f1_gold) + sum(f1_said)), float(np.mean(exact))
        draws.append({"f1a": f1a, "em": em, "rsg": (f1a + em) / 2}[name])
    found = estimate(METRICS["muserc"][name], items)
    assert found.stderr == pytest.approx(np.std(draws, ddof=1), rel=0.12)
    np.testing.assert_allclose(found.interval, np.percentile(draws, [2.5, 97.5]), atol=0.03)
    assert found.interval[0] < found.value < found.interval[1]
    # Drawing answer by answer would promise more than there is.
    alone = [Item(number, item.gold, item.prediction, item.group) for number, item in enumerate(items)]
    if name == "f1a":
        assert estimate(METRICS["muserc"][name], alone).stderr < 0.8 * found.stderr


def random_items(task: str, size: int, generator: np.random.Generator) -> list[Item]:
    if task == "rucos":
        entities = ["Москва", "город Москва", "Минск", "река Минск"]
        return [Item(n, (entities[n % 4],), str(generator.choice(entities))) for n in range(size)]
    labels = 3 if task == "rcb" else 2
    found = []
    for number in range(size):
        gold = int(generator.integers(labels))
        said = gold if generator.random() < 0.6 else int(generator.integers(labels))
        found.append(Item(number // 4 if task == "muserc" else number, gold, said, number // 2, CATEGORIES))
    return found


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in RUSSIAN_SUPERGLUE for name in METRICS[task]])
def test_the_interval_holds_the_value_and_the_seed_fixes_it(task, name):
    items = random_items(task, 120, np.random.default_rng(1))
    found = estimate(METRICS[task][name], items, seed=3)
    assert found.interval[0] <= found.value <= found.interval[1]
    assert 0 < found.stderr < 0.2
    assert found == estimate(METRICS[task][name], items, seed=3)
    assert found != estimate(METRICS[task][name], items, seed=4)
    draws = bootstrap_samples(METRICS[task][name], items, seed=3)
    assert draws.shape == (1000,)
    assert np.isfinite(draws).all()
    assert draws.mean() == pytest.approx(found.value, abs=found.stderr)


@pytest.mark.parametrize("said", [0, 1, None])
def test_constant_answers_to_constant_questions_have_no_spread(said):
    found = estimate(METRICS["lidirus"]["mcc"], items_of([1] * 10, [said] * 10))
    assert found == Estimate(0.0, 0.0, (0.0, 0.0))


def test_one_example_has_a_value_and_no_spread():
    assert estimate(METRICS["terra"]["acc"], items_of([1], [1])) == Estimate(1.0, 0.0, (1.0, 1.0))


def test_the_mean_of_figures_has_the_error_of_a_mean_of_independent_ones():
    parts = [Estimate(0.2, 0.03, (0.1, 0.3)), Estimate(0.6, 0.04, (0.5, 0.7))]
    found = mean_estimate(parts)
    assert found.value == pytest.approx(0.4)
    assert found.stderr == pytest.approx(0.05 / 2)
    assert found.interval == pytest.approx((0.4 - 1.96 * 0.025, 0.4 + 1.96 * 0.025), abs=1e-4)
    generator = np.random.default_rng(0)
    simulated = np.mean([generator.normal(part.value, part.stderr, 100_000) for part in parts], axis=0)
    assert found.stderr == pytest.approx(simulated.std(), rel=0.02)


def test_the_mean_of_one_figure_is_that_figure():
    assert mean_estimate([Estimate(0.5, 0.1, (0.3, 0.7))]).stderr == pytest.approx(0.1)
