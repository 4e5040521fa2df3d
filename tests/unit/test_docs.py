"""README and docs/: commands that parse, files and links that exist, sizes, and two READMEs that say the same."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from pathlib import Path

import pytest

from harness.cli import build_parser
from harness.training.recipe import recipe_names
from tests.shown_commands import NOT_RUN, PAGES, ROOT, Shown, fenced, shown_commands

SHOWN = shown_commands()
IDS = [f"{shown.page}:{shown.line}" for shown in SHOWN]
# Made by a command on the same page, or the reader's own.
READERS_OWN = {"mine/sentiment-recipe.yaml"}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def value_of(words: tuple[str, ...], option: str) -> str | None:
    return words[words.index(option) + 1] if option in words else None


def test_the_pages_show_commands() -> None:
    assert {shown.page for shown in SHOWN} >= {"README.md", "README.ru.md", "docs/evaluate.md", "docs/train.md"}


@pytest.mark.parametrize("shown", SHOWN, ids=IDS)
def test_a_shown_command_is_run_or_has_a_reason_not_to_be(shown: Shown) -> None:
    assert shown.words[0] == "rsg-harness" or str(shown) in NOT_RUN, "run it in test_docs.py, or name it in NOT_RUN"


def test_no_reason_outlives_its_command() -> None:
    assert set(NOT_RUN) <= {str(shown) for shown in SHOWN}


@pytest.mark.parametrize("reason", sorted({reason for reason in NOT_RUN.values() if "tests/" in reason}))
def test_a_test_that_runs_a_command_instead_exists(reason: str) -> None:
    [path] = re.findall(r"tests/[\w/]+\.py", reason)
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("shown", SHOWN, ids=IDS)
def test_a_shown_command_parses(shown: Shown, capsys: pytest.CaptureFixture[str]) -> None:
    words = shown.harness_words
    if words is None:
        _check_other(shown)
        return
    try:
        build_parser().parse_args(words)
    except SystemExit:
        pytest.fail(f"{shown}: {capsys.readouterr().err}")
    recipe = value_of(words, "--recipe")
    if words[0] == "train" and recipe not in READERS_OWN:
        assert recipe in recipe_names()


def _check_other(shown: Shown) -> None:
    """Check the files, targets, extras and options that a command of another program names."""
    program, *rest = shown.words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        assert rest[:4] == ["install", "-c", "constraints.txt", "-e"]
        extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
        assert set(rest[4].strip(".[]").split(",")) <= set(extras)
    elif program == "python" and rest[0] == "-m":
        assert (ROOT / rest[1].replace(".", "/")).with_suffix(".py").is_file()
    elif program == "python":
        script = text_of(rest[0])
        for option in (word for word in rest if word.startswith("--")):
            assert f'"{option}"' in script
    elif program == "pytest":
        if "-m" in rest:
            markers = tomllib.loads(text_of("pyproject.toml"))["tool"]["pytest"]["ini_options"]["markers"]
            assert rest[rest.index("-m") + 1] in {marker.split(":")[0] for marker in markers}
        for option in (word for word in rest if word != "-m"):
            assert not option.startswith("-") or f'"{option}"' in text_of("conftest.py")
    elif program == "lm_eval":
        assert (ROOT / rest[rest.index("--include_path") + 1]).is_dir()
    elif program == "jupyter":
        assert (ROOT / rest[1]).is_dir()
    else:
        assert program in ("export", "hf"), f"nothing checks {shown}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        found = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert found.exists(), target
        if heading:
            assert heading in headings(found), target


def headings(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    lines = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    named = re.findall(r"`((?:harness|adapters|task_configs|scripts|tests|results|notebooks)/[\w./-]+)`", text_of(page))
    for path in named:
        assert (ROOT / path).exists() or "DATE" in path, path


@pytest.mark.parametrize("page", PAGES)
def test_named_targets_of_make_exist(page: str) -> None:
    targets = re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text_of(page))) <= set(targets)


def test_the_readmes_are_short() -> None:
    assert len(text_of("README.md").encode()) <= 9000
    assert len(text_of("README.ru.md")) <= 9500


def test_both_readmes_show_the_same_commands_outputs_figures_and_links() -> None:
    english, russian = text_of("README.md"), text_of("README.ru.md")
    assert [str(shown) for shown in SHOWN if shown.page == "README.md"] == [
        str(shown) for shown in SHOWN if shown.page == "README.ru.md"
    ]
    assert [block for _, block in fenced("README.md", "")] == [block for _, block in fenced("README.ru.md", "")]
    tables = ["\n".join(line for line in text.splitlines() if line.startswith("| ")) for text in (english, russian)]
    figures = [re.findall(r"\d+(?:\.\d+)?", unicodedata.normalize("NFKC", table).replace(",", ".")) for table in tables]
    assert figures[0] == figures[1]
    links = [set(re.findall(r"\]\(([^)\s]+)\)", text)) - {"README.md", "README.ru.md"} for text in (english, russian)]
    assert links[0] == links[1]
