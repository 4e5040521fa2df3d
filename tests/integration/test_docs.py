"""Every command that README.md, README.ru.md and docs/ show runs, but for those that `NOT_RUN` gives a reason for.

A command runs in a directory that holds what the pages name: DIR is a small official archive, RUN_A a finished run,
gemma-3-270m-ru-en a model. The best kept checkpoint is a tiny one. `WORDS`, `VALUES` and `ADDED` say what else stands
in for real models, servers and sizes.
"""

from __future__ import annotations

import io
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from harness.data.sources import MINI_ROOT
from harness.tasks import registry
from tests.integration.test_submission_archive import without_answers
from tests.integration.training import RECIPE, call, write_recipe
from tests.openai_server import TEACHER, Behaviour, OpenAIServer
from tests.russian_tokenizer import make_russian_gemma
from tests.shown_commands import NOT_RUN, fenced, shown_commands

# They share what `prepared` makes.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("docs")]

Words = tuple[str, ...]

# Word of a shown command -> what stands in for it.
WORDS = {
    "google/gemma-3-1b-it": "tiny",
    "embedded": "tiny",
    "hub": "DIR",
    "gemma-3-270m": "small.yaml",  # as --recipe
    "gemma-3-1b-it": "small.yaml",
}
# Option -> value in place of the shown one, so that a test takes seconds.
VALUES = {"--limit": "2", "--count": "2", "--new-tokens": "5", "--row-steps": "1", "--lora-steps": "1"}
# Command -> options that it gets besides.
ADDED: dict[str, Words] = {
    "run": ("--limit", "2"),
    "sweep": ("--limit", "2"),
    "adapt": ("--model", "russian"),
    "distill": ("--limit", "2", "--tasks", "rcb"),
}
WRITTEN = {"premise": "Слово {hash} стоит на доске.", "hypothesis": "Доска {hash} исписана словом {hash}."}
SENTENCES = {"positive": ("Мы победили!", "Дочь вернулась."), "negative": ("Мы проиграли.", "Отпуск отменили.")}


def substituted(words: Words) -> Words:
    """Return a shown command with everything replaced that is not available here or takes long."""
    replaced = [WORDS.get(word, word) for word in words]
    for number, word in enumerate(replaced[:-1]):
        if word in VALUES:
            replaced[number + 1] = VALUES[word]
    added = ADDED.get(words[0], ())
    for option, value in zip(added[::2], added[1::2], strict=True):
        if option not in replaced:
            replaced += [option, value]
    return tuple(replaced)


def runnable() -> dict[Words, str]:
    """Return the commands to run, each once, and the first place that shows it."""
    found: dict[Words, str] = {}
    for shown in shown_commands():
        if shown.words[0] == "rsg-harness" and str(shown) not in NOT_RUN:
            found.setdefault(substituted(shown.words[1:]), f"{shown.page}:{shown.line} {' '.join(shown.words[1:3])}")
    return found


COMMANDS = runnable()


@pytest.fixture(scope="module")
def prepared(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    float32_model: Path,
    checkpoint: Path,
    shared_environment: dict[str, str],
) -> Path:
    """What the pages name, in one directory. Nothing changes it: commands run in a copy that links to it."""
    root = tmp_path_factory.mktemp("docs")
    make_official(root / "DIR")
    (root / "tiny").symlink_to(tiny_model)
    make_russian_gemma(root / "russian", dtype="float32")
    (root / "gemma-3-270m-ru-en").symlink_to(root / "russian")
    write_recipe(root, float32_model, steps=2, evaluate_every=2)
    for name in ("ru", "en", "texts"):
        (root / name).mkdir()
        lines = (f"Это предложение номер {number}, и оно короткое." for number in range(300))
        (root / name / "some.txt").write_text("\n".join(lines), encoding="utf-8")
    make_own_task(root, float32_model)

    kept = root / "results" / "checkpoints"
    kept.mkdir(parents=True)
    (kept / "gemma-3-270m-rsg").symlink_to(checkpoint)
    for words in (
        ("run", "--data", "DIR", "--tasks", "terra,rcb", "--output", "RUN_A"),
        ("run", "--data", "DIR", "--tasks", "terra,rcb", "--backend", "mlx-q8", "--output", "RUN_B"),
        ("run", "--data", "DIR", "--split", "test", "--output", "RUN"),
        ("quantize", "--output", "q4"),
        ("quantize", "--format", "gguf", "--output", "best.gguf"),
    ):
        done = call(shared_environment, *words, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture(scope="module")
def distilled(prepared: Path, shared_environment: dict[str, str]) -> Path:
    """What a teacher labelled and wrote, prepared for training."""
    for output, more in (("labels", ()), ("written", ("--generate", "examples", "--count", "2"))):
        with OpenAIServer(teacher(more)) as server:
            asked = ("--endpoint", server.url, "--teacher", TEACHER, "--data", "DIR", *ADDED["distill"], *more)
            done = call(shared_environment, "distill", *asked, "--output", output, cwd=prepared)
        assert done.returncode == 0, done.stderr
    return prepared


def teacher(words: Words) -> Behaviour:
    """Return how a server answers the questions of this command."""
    written = json.dumps(WRITTEN, ensure_ascii=False)
    return Behaviour(texts=(written,) if "--generate" in words else ("да", "нет"))


def make_official(root: Path) -> None:
    """Write an official archive of a few documents a task: from the mini set, the test files without answers."""
    for task in MINI_ROOT.iterdir():
        (root / task.name).mkdir(parents=True)
        for file in task.iterdir():
            lines = file.read_text(encoding="utf-8").splitlines()[:8]
            (root / task.name / file.name).write_text("\n".join(lines) + "\n", encoding="utf-8")
            if file.name == "val.jsonl":
                hidden = [json.dumps(without_answers(json.loads(line)), ensure_ascii=False) for line in lines[:2]]
                (root / task.name / "test.jsonl").write_text("\n".join(hidden) + "\n", encoding="utf-8")


def make_own_task(root: Path, model: Path) -> None:
    """Write the files of docs/adding.md, as the page shows them, and its data."""
    (root / "mine").mkdir()
    for language, ending in (("python", "py"), ("yaml", "yaml")):
        [(_, text)] = fenced("docs/adding.md", language)
        (root / "mine" / f"sentiment.{ending}").write_text(text, encoding="utf-8")
    rows = [{"text": text, "label": label} for label, texts in SENTENCES.items() for text in texts]
    lines = [json.dumps({"idx": number, **row}, ensure_ascii=False) + "\n" for number, row in enumerate(rows)]
    (root / "DIR" / "Sentiment").mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (root / "DIR" / "Sentiment" / name).write_text("".join(lines), encoding="utf-8")
    recipe = {**RECIPE, "model": str(model), "tasks": {"sentiment": {}, "terra": {}}, "steps": 1, "evaluate_every": 1}
    (root / "mine" / "sentiment-recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.fixture
def workplace(words: Words, request: pytest.FixtureRequest, prepared: Path, tmp_path: Path) -> Path:
    """A directory that links to everything prepared, with results of its own."""
    if "--distilled" in words:
        request.getfixturevalue("distilled")
    for path in prepared.iterdir():
        if path.name != "results":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "checkpoint").symlink_to(prepared / "results" / "checkpoints" / "gemma-3-270m-rsg")
    (tmp_path / "results" / "runs").mkdir(parents=True)
    for name in ("RUN_A", "RUN_B"):
        shutil.copytree(prepared / name, tmp_path / "results" / "runs" / name)
    (tmp_path / "results" / "checkpoints").symlink_to(prepared / "results" / "checkpoints")
    return tmp_path


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the tasks that a command includes."""
    monkeypatch.setattr(registry, "_tasks", dict(registry._tasks))
    monkeypatch.setattr(registry, "_directories", [])


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, id=name) for words, name in COMMANDS.items()],
)
def test_a_shown_command_works(
    words: Words, workplace: Path, shared_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = list(words)
    if "--output" in given:
        output = workplace / given[given.index("--output") + 1]
        output.unlink(missing_ok=True)
        output.with_suffix(".rsg").unlink(missing_ok=True)  # the heads beside a GGUF file
    elif words[0] == "train":  # its default is a directory of the kept checkpoints
        given += ["--output", "trained"]
    monkeypatch.setattr("sys.stdin", io.StringIO("/tasks\n"))  # of the bot's console
    with ExitStack() as stack:
        if "--endpoint" in words:
            server = stack.enter_context(OpenAIServer(teacher(words)))
            given[given.index("--endpoint") + 1] = server.url
            given[given.index("NAME")] = TEACHER
        done = call(shared_environment, *given, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stdout
