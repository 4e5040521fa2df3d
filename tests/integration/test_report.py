"""results/index.html from real records, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.records.run import read_run
from tests.integration.command import Command
from tests.integration.training import call

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")
BACKENDS = ("torch", "mlx-q8", "mlx-q3")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, shared_environment: dict[str, str]) -> Path:
    """Records of a small model on three backends, and the page made of them."""
    directory = tmp_path_factory.mktemp("report") / "results"
    for backend in BACKENDS:
        output = directory / "runs" / f"small-{backend}"
        given = ("--model", tiny_model, "--backend", backend, "--limit", "4", "--output", output)
        done = call(shared_environment, "run", *given)
        assert done.returncode == 0, done.stderr
    done = call(shared_environment, "report", "--results", directory)
    assert done.returncode == 0, done.stderr
    return directory


def test_the_page_holds_the_records_figures(results: Path) -> None:
    text = (results / "index.html").read_text(encoding="utf-8")
    [content] = re.findall(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)
    datasets = json.loads(content)["datasets"]
    for backend in BACKENDS:
        record = read_run(results / "runs" / f"small-{backend}")
        found = {row["task"]: row["score"] for row in datasets["scores"] if row["backend"] == backend}
        assert found == {name: pytest.approx(100 * (task.score or 0)) for name, task in record.tasks.items()}
        [row] = [row for row in datasets["rows"] if row["backend"] == backend]
        assert row["score"] == pytest.approx(100 * (record.score or 0))
        assert (results / row["link"]).is_file()
    assert {row["backend"] for row in datasets["flips"]} == {"mlx-q8", "mlx-q3"}


def test_no_record_is_an_error_of_one_line(rsg_harness: Command, tmp_path: Path) -> None:
    done = rsg_harness("report", "--results", tmp_path)
    assert done.returncode == 2
    assert "holds no finished run" in done.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    # Chromium refuses its sandbox to root; the other flags keep it from calling home.
    flags = ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield started
        started.close()


def opened(browser: Any, results: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The page when all is drawn, what its console complained of, and what it fetched."""
    page = browser.new_page(**options)
    complaints: list[str] = []
    fetched: list[str] = []
    # Vega-Lite warns of charts whose height follows their bars and whose width follows the page; errors count.
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: fetched.append(request.url))
    page.goto((results / "index.html").as_uri())
    page.wait_for_selector("body[data-drawn]")
    return page, complaints, fetched


@needs_browser
def test_the_table_sorts_and_filters(browser: Any, results: Path) -> None:
    page, complaints, fetched = opened(browser, results)

    def values(task: str) -> list[float]:
        cells = page.locator(f'#board tbody tr:not([hidden]) td[data-task="{task}"]')
        return [float(cells.nth(number).get_attribute("data-value")) for number in range(cells.count())]

    header = page.locator('#board th[data-task="muserc"] button')
    header.click()
    assert len(values("muserc")) == 3
    assert values("muserc") == sorted(values("muserc"), reverse=True)
    header.click()
    assert values("muserc") == sorted(values("muserc"))
    assert page.locator('#board th[aria-sort="ascending"]').inner_text().startswith("MuSeRC")

    page.select_option("#filter-backend", "mlx-q3")
    assert len(values("muserc")) == 1
    assert page.locator("#count").inner_text() == "1 of 3 rows"
    page.select_option("#filter-task", "terra")
    assert page.locator("#board th[data-task]:visible").count() == 1
    assert page.locator("#task-terra").is_visible()
    assert not page.locator("#task-rcb").is_visible()
    page.wait_for_function("document.querySelectorAll('#task-terra .mark-rect.role-mark path').length === 1")
    assert not complaints
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


@needs_browser
def test_every_chart_is_drawn_and_every_link_leads_to_a_file(browser: Any, results: Path) -> None:
    page, complaints, _ = opened(browser, results)
    charts = page.locator(".chart")
    assert charts.count() == 3 + 9 + 2
    for number in range(charts.count()):
        box = charts.nth(number).locator("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 50
    assert page.locator("#by-seconds .mark-symbol.role-mark path").count() == 3
    assert page.locator("#task-terra .mark-rect.role-mark path").count() == 3
    for link in page.locator("main a").all():
        assert (results / link.get_attribute("href")).is_file()
    assert not complaints


@needs_browser
def test_it_fits_a_phone_and_follows_the_colour_scheme(browser: Any, results: Path) -> None:
    page, complaints, _ = opened(browser, results, viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360

    def label_colour() -> str:
        return str(page.locator("#task-terra .role-axis-label text").first.get_attribute("fill"))

    dark = label_colour()
    page.emulate_media(color_scheme="light")
    page.wait_for_function(
        "before => document.querySelector('#task-terra .role-axis-label text')?.getAttribute('fill') !== before",
        arg=dark,
    )
    assert not complaints
