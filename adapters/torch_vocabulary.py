"""From hidden states to the vocabulary in PyTorch: exact logits a slice at a time, and the next token's logits fast.

A small model's vocabulary matrix is most of what is read for a token: 168 of gemma-3-270m's 268 million weights. On a
CPU the next token is therefore found in two steps: a product with an 8-bit copy of the matrix, whose error has a known
bound, and exact products for the tokens that the bound leaves in the running. The result is that of the exact product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from adapters.architecture import Logits

# Rows of the vocabulary matrix that are cast to float32 at a time: 16,384 rows of a 1,152-wide model are 75 MB.
VOCABULARY_CHUNK = 16_384
# Logits of this many tokens at a time on a CPU: the softmax then finds them in the caches, and their memory is reused.
CPU_CHUNK = 4_096
# Smaller matrices, in numbers, are multiplied exactly at once: a second copy would save nothing.
LARGE_MATRIX = 1 << 21
# States are split in two parts of 7 bits each. With 8, processors without 8-bit dot products would saturate: they add
# two products in 16 bits.
STATE_LIMIT = 63
# A token whose logit is this many temperatures below the largest is 22,000 times less probable: it may keep the logit
# of the 8-bit product.
EXACT_NATS = 10.0
# The share of tokens whose rounding is bounded by one number for all.
USUAL_SHARE = 0.98
# Tokens whose logits are computed in float32 where the first product is of 16 bits.
RESCORED = 16  # the most that MPS sorts out


class NextToken:
    """The output head of a model, ready for one state of each row at a time. Not for several threads at once.

    Args:
        head: Weight [vocabulary, hidden size] of any type, and perhaps a bias.
        rule: How logits follow from the head's output.
    """

    def __init__(self, head: Any, rule: Logits) -> None:
        self._head = head
        self._rule = rule
        self.device = head.weight.device
        self._coarse = None
        self._is_large = head.weight.numel() >= LARGE_MATRIX
        if self._is_large and head.weight.device.type == "cpu":
            # PyTorch's quantised product is not in every build of it.
            with contextlib.suppress(RuntimeError, AttributeError, TypeError):
                self._coarse = CoarseProduct(head.weight, head.bias)

    def likeliest(self, hidden: torch.Tensor) -> list[int]:
        """Return the token with the largest logit for each row.

        Args:
            hidden: [rows, hidden size], last hidden states of any type.
        """
        if self._coarse is not None:
            hidden = hidden.float()
            rough, lengths, lost = self._coarse(hidden)
            rows = zip(hidden, rough.numpy(), lengths.tolist(), lost.tolist(), strict=True)
            return [self._likeliest_of(self._coarse, *row) for row in rows]
        weight, bias = self._head.weight, self._head.bias
        if weight.dtype == torch.float32 or not self._is_large:
            return self._exact(hidden).argmax(dim=1).tolist()
        found = functional.linear(hidden.to(weight.dtype), weight, bias).topk(RESCORED, dim=1)
        exact = torch.bmm(weight[found.indices].float(), hidden.float()[:, :, None])[:, :, 0]
        exact = exact if bias is None else exact + bias[found.indices].float()
        # The 16-bit result is off by the rounding of its output, and of its state: 2 ** -8 of the logit for bfloat16.
        margin = found.values[:, :1].float().abs().clamp(min=1) * 2**-6
        if bool((found.values[:, -1:].float() > found.values[:, :1].float() - margin).any()):
            return self._exact(hidden).argmax(dim=1).tolist()
        return found.indices.gather(1, exact.argmax(dim=1, keepdim=True))[:, 0].tolist()

    def logits(self, hidden: torch.Tensor, temperature: float) -> np.ndarray:
        """Return logits to sample from, float32 [rows, vocabulary]. The next call may overwrite them.

        Args:
            hidden: [rows, hidden size], last hidden states of any type.
            temperature: Of the sampling, above 0; says which tokens matter.
        """
        if self._coarse is None:
            return self._exact(hidden).cpu().numpy()
        hidden = hidden.float()
        logits = apply_rule(self._coarse(hidden)[0], self._rule)
        for state, row in zip(hidden, logits, strict=True):
            candidates = np.flatnonzero(row.numpy() >= float(row.max()) - EXACT_NATS * temperature)
            exact = torch.from_numpy(self._products_of(state, candidates))
            row[torch.from_numpy(candidates)] = apply_rule(exact, self._rule)
        return logits.numpy()

    def _likeliest_of(
        self, coarse: CoarseProduct, state: torch.Tensor, rough: np.ndarray, length: float, lost: float
    ) -> int:
        least = self._products_of(state, np.array([rough.argmax()]))[0]
        candidates = coarse.at_least(least, rough, length, lost)
        return int(candidates[self._products_of(state, candidates).argmax()])

    def _products_of(self, state: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
        """Return a state's exact products with the rows of some tokens, float32 [tokens]."""
        rows = torch.from_numpy(tokens)
        products = torch.cat([self._head.weight[some].float() @ state for some in rows.split(VOCABULARY_CHUNK)])
        return (products if self._head.bias is None else products + self._head.bias[rows].float()).numpy()

    def _exact(self, hidden: torch.Tensor) -> torch.Tensor:
        return apply_rule(self._product(hidden.float()), self._rule)

    def _product(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self._head.weight
        if weight.dtype == torch.float32:
            return functional.linear(hidden, weight, self._head.bias)
        return torch.cat(list(head_outputs(hidden, self._head)), dim=1)


class CoarseProduct:
    """The product of states with a vocabulary matrix in 8 bits, and how far it can be from the exact one.

    Args:
        weight: [vocabulary, hidden size], on the CPU.
        bias: [vocabulary], added to the product; None: there is none.

    Raises:
        RuntimeError, AttributeError, TypeError: This PyTorch cannot multiply so.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self._bias = None if bias is None else bias.float()
        self._buffer = torch.empty(0, len(weight))
        self._parts: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
        errors, longest = [], 0.0
        for rows in weight.split(VOCABULARY_CHUNK):
            exact = rows.float()
            scales = (exact.abs().amax(dim=1) / 127).clamp_(min=1e-30)
            codes = (exact / scales[:, None]).round_()
            packed = torch.ops.onednn.qlinear_prepack(codes.to(torch.int8), None)
            self._parts.append((packed, scales, torch.zeros(len(rows), dtype=torch.int32)))
            longest = max(longest, float(torch.linalg.vector_norm(exact, dim=1).max()))
            errors.append(torch.linalg.vector_norm(exact - codes.mul_(scales[:, None]), dim=1))
        self._longest = longest
        self._errors = torch.cat(errors).numpy()
        # A few tokens with a much larger error than the others are looked at one by one.
        self._usual_error = float(np.quantile(self._errors, USUAL_SHARE))
        self._unusual = np.flatnonzero(self._errors > self._usual_error)
        self._check(weight)

    def _check(self, weight: torch.Tensor) -> None:
        state = torch.randn(1, weight.shape[1], generator=torch.Generator().manual_seed(0))
        rough, lengths, lost = self(state)
        some = slice(0, VOCABULARY_CHUNK)
        exact = functional.linear(state, weight[some].float(), None if self._bias is None else self._bias[some])
        off = (rough[0, some] - exact[0]).abs().numpy()
        if not (off <= self._bound(self._errors[some], float(lengths[0]), float(lost[0]))).all():
            raise RuntimeError("the 8-bit product is wrong")

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the product, which the next call overwrites, and what bounds its error.

        Args:
            hidden: float32 [rows, hidden size].

        Returns:
            float32 [rows, vocabulary]; the lengths of the states [rows], and of what their rounding has lost [rows].
        """
        first, first_scale = _codes(hidden)
        rest = hidden - first * first_scale
        second, second_scale = _codes(rest)
        codes = (torch.cat([first, second]) + (STATE_LIMIT + 1)).to(torch.uint8)
        count = len(hidden)
        if len(self._buffer) < count:
            self._buffer = torch.empty(count, self._buffer.shape[1])
        found = self._buffer[:count]
        start = 0
        for packed, scales, zeros in self._parts:
            products = torch.ops.onednn.qlinear_pointwise(
                codes, 1.0, STATE_LIMIT + 1, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )
            part = found[:, start : start + len(scales)]
            torch.mul(products[:count], first_scale, out=part)
            part.addcmul_(products[count:], second_scale)
            start += len(scales)
        if self._bias is not None:
            found += self._bias
        lost = torch.linalg.vector_norm(rest - second * second_scale, dim=1)
        return found, torch.linalg.vector_norm(hidden, dim=1), lost

    def at_least(self, least: float, rough: np.ndarray, length: float, lost: float) -> np.ndarray:
        """Return the tokens whose exact product may reach a value.

        Args:
            least: The value.
            rough: float32 [vocabulary], a row of the product.
            length, lost: Of its state.
        """
        near = np.flatnonzero(rough >= least - self._bound(self._usual_error, length, lost))
        tokens = np.concatenate([near, self._unusual])
        return np.unique(tokens[rough[tokens] >= least - self._bound(self._errors[tokens], length, lost)])

    def _bound(self, errors: Any, length: float, lost: float) -> Any:
        """Return the bound of a product's error: Cauchy-Schwarz for the rounding of the weights, and of the state.

        A hundred-thousandth covers the sums in float32.
        """
        return errors * length + (lost + 1e-5 * length) * self._longest


def _codes(states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whole numbers of at most `STATE_LIMIT`, and the factor [rows, 1] that makes them the states."""
    scale = (states.abs().amax(dim=1, keepdim=True) / STATE_LIMIT).clamp(min=1e-30)
    return (states / scale).round_(), scale


@contextlib.contextmanager
def exact_bfloat16_products(weight_dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN multiply float32 matrices that hold bfloat16 numbers as bfloat16, with sums in float32.

    Hidden states and weights of a bfloat16 model are exact in bfloat16, so nothing is rounded. oneDNN does so on CPUs
    with AMX, where the product is about twice as fast; with AVX-512 alone it multiplies in float32 all the same. The
    result must be float32: in bfloat16 one in forty yes/no questions ends in a tie.
    """
    if weight_dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        yield
        return
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def vocabulary_pass(
    hidden: torch.Tensor, head: Any, rows: torch.Tensor, wanted: torch.Tensor, rule: Logits
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute logits over the vocabulary in float32, a slice at a time, and keep what log-probabilities need.

    Args:
        hidden: float32 [n, hidden size].
        head: Weight [vocabulary, hidden size] of any type, and perhaps a bias.
        rows: int64 [m], the hidden state that predicts each wanted token.
        wanted: int64 [m], token ids.
        rule: How logits follow from the head's output.

    Returns:
        The logarithm of the sum of exponentials [n], the largest logit [n], the wanted logits [m]; all float32.
    """
    best = torch.full((len(hidden),), -torch.inf, device=hidden.device)
    total = torch.zeros_like(best)
    logits_wanted = torch.empty(len(wanted), device=hidden.device)
    start = 0
    for output in head_outputs(hidden, head):
        logits = apply_rule(output, rule)
        inside = (wanted >= start) & (wanted < start + logits.shape[1])
        logits_wanted[inside] = logits[rows[inside], wanted[inside] - start]
        new_best = torch.maximum(best, logits.max(dim=1).values)
        total = total * torch.exp(best - new_best) + logits.sub_(new_best[:, None]).exp_().sum(dim=1)
        best = new_best
        start += logits.shape[1]
    return best + torch.log(total), best, logits_wanted


def head_outputs(hidden: torch.Tensor, head: Any) -> Iterator[torch.Tensor]:
    """Yield the head's output a slice of the vocabulary at a time, float32 [n, slice]."""
    chunk = CPU_CHUNK if head.weight.device.type == "cpu" else VOCABULARY_CHUNK
    for start in range(0, len(head.weight), chunk):
        output = hidden @ head.weight[start : start + chunk].float().T
        if head.bias is not None:
            output += head.bias[start : start + chunk].float()
        yield output


def apply_rule(output: torch.Tensor, rule: Logits) -> torch.Tensor:
    """Return the logits that follow from the output of a head."""
    if rule.scale != 1:
        output = output * rule.scale
    return output if rule.cap is None else torch.tanh(output / rule.cap) * rule.cap
