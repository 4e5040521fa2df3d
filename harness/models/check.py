"""Check an open model: the planner's log-probabilities against the library's own forward pass of the same weights.

The planner takes a model apart (decoder, cache, output head) as its architecture says. If that were wrong for a model,
nothing would show it in the scores, so a few of them are computed in both ways when it is loaded.
"""

from __future__ import annotations

from adapters.base import Backend, UserError
from harness.scoring.encoding import TextEncoder, encode_pairs
from harness.scoring.plan import make_plan
from harness.scoring.scorer import NotFinite, Scorer

# Short, since this is a part of every start.
CONTEXT = "Река замёрзла.\nБыло тепло?\nОтвет:"
CHOICES = (" нет, холодно", " да, тепло")
# Largest difference of a token's log-probability, in nats. In types of fewer bits it depends on the shape of the batch.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.5, "int8": 0.5}
# A budget for which the shared context pays for a prefix of its own, so that the check covers prefixes.
_BATCH_TOKENS = 16


def check_backend(backend: Backend, encoder: TextEncoder) -> float:
    """Return the largest difference a token between the planner's log-probabilities and the library's, in nats.

    Raises:
        UserError: It is larger than rounding explains, so that the model's scores could not be trusted.
    """
    sequences = encode_pairs(encoder, [(CONTEXT, choice) for choice in CHOICES], backend.info.context_length)
    plan = make_plan(sequences, _BATCH_TOKENS, backend.shares_prefixes)
    try:
        scores = Scorer(backend).score(plan, sequences)
    except NotFinite as error:
        raise UserError(
            f"this model's log-probabilities are not numbers in {backend.info.dtype}", "try --dtype float32"
        ) from error
    largest = 0.0
    for sequence, score in zip(sequences, scores, strict=True):
        start = sequence.continuation_start
        expected = float(backend.library_logprobs(sequence.tokens)[start - 1 :].sum())
        difference = abs(score.logprob - expected) / (len(sequence.tokens) - start)
        if not difference <= TOLERANCES[backend.info.dtype]:  # NaN is refused too
            raise UserError(
                f"this model cannot be scored on {backend.info.name}: a choice of the self-check has log-probability "
                f"{score.logprob:.4f}, and {expected:.4f} by {backend.info.execution}'s own forward pass",
                "please report the model's name; lm-eval's own models can evaluate it meanwhile",
            )
        largest = max(largest, difference)
    return largest
