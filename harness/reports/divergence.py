"""Tables of divergence records."""

from __future__ import annotations

from tabulate import tabulate

from harness.records.divergence import DivergenceRecord, Estimated
from harness.reports.tables import backend_text, mebibytes


def divergence_text(record: DivergenceRecord) -> str:
    """Format what `rsg-harness divergence` prints: a row a backend."""
    headers, rows = divergence_table(record)
    return f"{divergence_heading(record)}\n\n{tabulate(rows, headers=headers, disable_numparse=True)}"


def divergence_heading(record: DivergenceRecord) -> str:
    """Say what was measured on what."""
    return (
        f"{record.backends[0].model.name} · {record.corpus.name}: {record.corpus.positions:,} positions in "
        f"{record.corpus.blocks:,} texts; 95% intervals in brackets"
    )


def divergence_table(record: DivergenceRecord) -> tuple[list[str], list[list[str]]]:
    """Return headers and cells, a row a backend, the reference first."""
    first = record.backends[0]
    headers = [
        "backend", "weights, MiB", "bits a character", f"mean KL from {first.backend}, nats", "99.9% KL",
        "same best, %", "RMS Δp, %", "lost / gained", "positions/s",
    ]  # fmt: skip
    rows = [
        [
            backend_text(one.backend, one.model),
            mebibytes(one.model.weights_bytes),
            estimated_text(one.bits_per_character, "{:.4f}"),
            "" if one is first else estimated_text(one.kl, "{:.5f}"),
            "" if one is first else f"{one.kl_percentile_99_9:.3f}",
            "" if one is first else estimated_text(one.same_best, "{:.2f}", 100),
            "" if one is first else f"{100 * one.probability_rms:.2f}",
            "" if one is first else f"{one.lost} / {one.gained}",
            f"{record.corpus.positions / one.seconds:.0f}" if one.seconds else "–",
        ]
        for one in record.backends
    ]
    return headers, rows


def estimated_text(found: Estimated, form: str, factor: float = 1.0) -> str:
    """Format a figure with its interval: `98.12 [97.9, 98.4]`."""
    low, high = (form.format(factor * value) for value in found.interval)
    return f"{form.format(factor * found.value)} [{low}, {high}]"
