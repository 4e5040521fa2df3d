"""What a record says about what answered, and what the answers cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adapters.base import BackendInfo
from harness.models.resolve import LocalModel
from harness.processes import Processes
from harness.records import provenance
from harness.records.run import MemoryRecord, ModelRecord, TokenRecord

if TYPE_CHECKING:
    from harness.evaluation.language_model import PlannedModel


@dataclass(frozen=True)
class Account:
    """What answered a run.

    Attributes:
        scoring_seconds: Time that the answers took, in all parts of a resumed run.
        processes: That shared the work.
        fields: Of the run's record: model, backend, memory and so on.
    """

    scoring_seconds: float
    processes: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class _Costs:
    """What the scoring cost one process, or all that shared a run."""

    processes: int
    scoring_seconds: float  # of the slowest process
    peak_bytes: int  # of the largest
    single_bytes: int  # of the largest
    padding: int
    forward_passes: int
    halved_batches: int


def account_for(language_model: PlannedModel, processes: Processes, scoring_seconds: float) -> Account:
    """Return the account of a model on this machine. All processes must call it.

    Args:
        language_model: After the run.
        processes: Those that shared it.
        scoring_seconds: Of this process.
    """
    opened, statistics = language_model.opened, language_model.scorer.statistics
    info = opened.backend.info
    peak_bytes, of = provenance.peak_memory(opened.backend)
    own = _Costs(
        processes=1,
        scoring_seconds=scoring_seconds,
        peak_bytes=peak_bytes,
        single_bytes=language_model.single_bytes,
        padding=statistics.padding,
        forward_passes=statistics.forward_passes,
        halved_batches=statistics.halved,
    )
    costs = _total(processes.gather(asdict(own)))
    fields = {
        "model": model_record(opened.local, info),
        "backend": info.name,
        "execution": info.execution,
        "device": info.device,
        "dtype": info.dtype,
        "memory": MemoryRecord(peak_bytes=costs.peak_bytes, single_bytes=costs.single_bytes, of=of),
        "tokens": TokenRecord(
            computed=statistics.tokens_computed + language_model.generated_prompt_tokens,
            shared=statistics.tokens_shared,
            padding=costs.padding,
            forward_passes=costs.forward_passes,
            batch_tokens=language_model.batch_tokens,
            halved_batches=costs.halved_batches,
        ),
        "self_check": opened.self_check,
    }
    return Account(costs.scoring_seconds, costs.processes, fields)


def _total(costs: Sequence[Mapping[str, Any]]) -> _Costs:
    """Return what the scoring cost all processes together, from the fields of each one's costs."""
    largest = ("scoring_seconds", "peak_bytes", "single_bytes")
    return _Costs(**{name: (max if name in largest else sum)(cost[name] for cost in costs) for name in costs[0]})


def model_record(model: LocalModel, info: BackendInfo) -> ModelRecord:
    """Return what a record says about a model on a backend."""
    return ModelRecord(
        name=model.name,
        origin=model.origin,
        sha256=model.fingerprint,
        parameters=info.parameters,
        weights=info.weights,
        weights_bytes=info.weights_bytes,
    )
