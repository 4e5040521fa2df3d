"""The page's charts, as Vega-Lite specifications.

Every chart reads a dataset by name, which the page fills with the rows that its filters leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

_LOST, _GAINED = "#d1495b", "#2e8b73"
_RUSSIAN = {
    "backend": "бэкенд",
    "model": "модель",
    "mean of the tasks × 100": "среднее по задачам × 100",
    "lost ← % of answers → gained": "потеряно ← % ответов → приобретено",
    "lost": "потеряно",
    "gained": "приобретено",
}
# As many as Vega draws that can be told apart; more models repeat them, and their numbers tell them apart.
_SHAPES = [
    "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left", "wedge",
    "arrow",
]  # fmt: skip
_REFERENCE_COLOURS = {"human": "#8a6fb0", "majority": "#c98a1b"}


def quality_against(column: str, title: str, sized: bool = True) -> dict[str, Any]:
    """Draw quality against a cost, as MOROCCO does; a line joins the Pareto-optimal rows.

    Args:
        column: The cost, a column of the dataset `rows`; the column `front_` + its name says who is on the line.
        title: The title of the cost's axis.
        sized: Whether the size of a disc shows the memory, and its number the model.
    """
    base = alt.Chart(alt.NamedData("rows"))
    ticks = alt.Axis(format=".3~f" if column == "seconds" else ",.0f")
    cost = alt.X(f"{column}:Q", title=title, scale=alt.Scale(type="log", nice=False, padding=30), axis=ticks)
    colour = alt.Color("backend:N", title="backend", legend=alt.Legend(orient="bottom", columns=3))
    shape = alt.Shape(
        "model:N",
        title="model",
        sort=None,
        scale=alt.Scale(range=_SHAPES),
        legend=alt.Legend(orient="bottom", columns=1, symbolFillColor="gray", labelLimit=250),
    )
    line = (
        base.transform_filter(f"datum.front_{column}")
        .mark_line(strokeDash=[4, 4], opacity=0.6)
        .encode(x=cost, y="score:Q", detail="data:N", color=alt.value("gray"))
    )
    intervals = base.mark_rule(opacity=0.5).encode(x=cost, y="low:Q", y2="high:Q", color=colour)
    size = alt.Size(
        "memory:Q",
        title="memory, MiB",
        scale=alt.Scale(range=[60, 700]),
        legend=alt.Legend(orient="bottom", values=[500, 1000, 2000, 4000], symbolFillColor="gray"),
    )
    discs = base.mark_point(filled=True, stroke="gray", strokeWidth=1).encode(
        x=cost,
        y=alt.Y("score:Q", title="mean of the tasks × 100", scale=alt.Scale(zero=False)),
        size=size if sized else alt.value(200),
        color=colour,
        shape=shape,
        fillOpacity=alt.condition("datum.borrowed", alt.value(0.15), alt.value(0.85)),
        href="link:N",
        tooltip=[
            alt.Tooltip("label:N", title="model"),
            alt.Tooltip("executed:N", title="executed by"),
            alt.Tooltip("score:Q", title="mean", format=".1f"),
            alt.Tooltip("seconds:Q", title="seconds a document", format=".3f"),
            alt.Tooltip("memory:Q", title="memory at batch size 1, MiB", format=".0f"),
            alt.Tooltip("weights:Q", title="weights, MiB", format=".0f"),
            alt.Tooltip("data:N", title="data"),
        ],
    )
    numbers = base.mark_text(fontSize=10, dx=12, dy=-12, align="left").encode(
        x=cost, y="score:Q", text="number:N", color=alt.value("gray")
    )
    layers = [line, intervals, discs, *([numbers] if sized else [])]
    return _spec(alt.layer(*layers).properties(height=300))


def task_bars(task: str, references: Mapping[str, float]) -> dict[str, Any]:
    """Draw a task's scores with 95% intervals.

    Args:
        task: The task whose rows of the dataset `scores` are drawn.
        references: Name -> score × 100 of the lines to draw.
    """
    base = alt.Chart(alt.NamedData("scores")).transform_filter(alt.datum.task == task)
    # The names stand above the bars, as wide as the chart: beside them they would be cut off.
    names = alt.Y("label:N", title=None, sort=None, axis=None, scale=alt.Scale(paddingInner=0.2, paddingOuter=0.1))
    score = alt.X("score:Q", title=None)
    tooltip = [
        alt.Tooltip("label:N", title="model"),
        alt.Tooltip("score:Q", title="score × 100", format=".1f"),
        alt.Tooltip("low:Q", title="95% from", format=".1f"),
        alt.Tooltip("high:Q", title="to", format=".1f"),
        alt.Tooltip("data:N", title="data"),
    ]
    bars = base.mark_bar(opacity=0.75, size=12, yOffset=8).encode(
        y=names, x=score, color=alt.Color("backend:N", legend=None), href="link:N", tooltip=tooltip
    )
    intervals = base.mark_rule(strokeWidth=2, yOffset=8).encode(
        y=names, x=alt.X("low:Q"), x2="high:Q", color=alt.value("gray")
    )
    labels = base.mark_text(
        align="left", yOffset=-7, xOffset=2, fontSize=11, limit=alt.ExprRef("width - 4"), clip=False
    ).encode(y=names, x=alt.value(0), text="label:N", color=alt.value("gray"), tooltip=tooltip)
    lines = [
        alt.Chart(alt.InlineData([{"value": value, "name": f"{name} {value:.1f} (test set)"}]))
        .mark_rule(strokeDash=[3, 3], strokeWidth=1.5, color=_REFERENCE_COLOURS[name])
        .encode(x="value:Q", tooltip="name:N")
        for name, value in references.items()
    ]
    return _spec(alt.layer(bars, intervals, *lines, labels).properties(height=alt.Step(36)))


def flip_bars(pair: str) -> dict[str, Any]:
    """Draw the answers that a quantised model loses and gains, in percent of each task's answers.

    Args:
        pair: The pair of runs whose rows of the dataset `flips` are drawn.
    """
    chart = (
        alt.Chart(alt.NamedData("flips"))
        .transform_filter(alt.datum.pair == pair)
        .mark_bar()
        .encode(
            y=alt.Y("task:N", title=None, sort=None),
            x=alt.X("share:Q", title="lost ← % of answers → gained"),
            color=alt.Color(
                "way:N",
                title=None,
                scale=alt.Scale(domain=["lost", "gained"], range=[_LOST, _GAINED]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=["task:N", "way:N", "answers:Q", alt.Tooltip("of:Q", title="of"), alt.Tooltip("points:N")],
        )
    )
    return _spec(chart.properties(height=alt.Step(18)))


def drawn_in_russian(specification: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], dataset: str) -> alt.Chart:
    """Return a chart by itself with Russian titles, for a notebook.

    Args:
        specification: What one of the functions above returned.
        rows: The rows of the dataset that it reads.
        dataset: The name of this dataset.
    """
    datasets = {**specification.get("datasets", {}), dataset: list(rows)}
    return alt.Chart.from_dict(_in_russian({**specification, "width": 420, "datasets": datasets}))


def _in_russian(value: Any) -> Any:
    """Return a specification and its data in Russian; the names of the columns stay."""
    if isinstance(value, Mapping):
        return {key: part if key == "field" else _in_russian(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_in_russian(part) for part in value]
    return _RUSSIAN.get(value, value) if isinstance(value, str) else value


def _spec(chart: Any) -> dict[str, Any]:
    spec = chart.properties(width="container").to_dict()
    del spec["config"]  # the page's own, for light and for dark
    return spec
