"""Text generation in PyTorch: prompts are computed once, then every step computes a token for each row still open.

What prompts of a batch have in common at their beginning is computed once. On request the texts are remembered for
later prompts that begin with them, as the next turn of a dialogue does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import transformers

from adapters.architecture import Logits
from adapters.base import Sampling
from adapters.growing import LEAST_SHARED, Row, longest_beginning, new_rows, remembering
from adapters.sampling import next_token, no_numbers
from adapters.text import GrowingAnswer, common_length, growing_answers
from adapters.torch_cache import Batch, Computed, extend
from adapters.torch_decoder import make_stepping
from adapters.torch_vocabulary import NextToken

NOTHING = Computed((), ())


class Generation:
    """Generates with one model, whose layers keep nothing but keys and values.

    Args:
        model: transformers' model.
        tokenizer: Its tokenizer.
        rule: How logits follow from the output of the head.
        end_tokens: Tokens of which each ends a text.
    """

    def __init__(self, model: Any, tokenizer: Any, rule: Logits, end_tokens: Collection[int]) -> None:
        self._decoder = model.get_decoder()
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._head = NextToken(model.get_output_embeddings(), rule)
        self._stepping = make_stepping(self._decoder)
        self._dtype = model.dtype if self._stepping is None else torch.float32
        self._remembered: list[Computed] = []  # the oldest first

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None,
        remember: bool,
    ) -> list[str]:
        """Do `Backend.generate` for at least one prompt and one new token."""
        rows = new_rows(prompts, sampling, on_text, self._tokenizer)
        computed, hidden = self._read(prompts, remember)
        batch = Batch(self._decoder, computed, self._dtype)
        del computed
        watched = on_text is not None or any(sampling.stop)
        growing = list(rows)
        for left in range(sampling.max_new_tokens, 0, -1):
            tokens = self._choose(hidden, growing, sampling)
            for number in reversed(range(len(growing))):  # dropping a row moves only rows that are done with
                row, token = growing[number], tokens[number]
                if row.add(token, token in self._end_tokens, watched) or left == 1:
                    if remember:
                        text = batch.row(number, [*row.prompt, *row.tokens.ids]).copied(self._decoder.dtype)
                        self._remembered = remembering(self._remembered, text)
                    batch.drop(number)
                    growing[number] = growing[-1]
                    tokens[number] = tokens[-1]
                    growing.pop()
                    tokens.pop()
            if not growing:
                break
            hidden = self._step(batch, tokens)
        return [row.finish(self._tokenizer) for row in rows]

    def _step(self, batch: Batch, tokens: Sequence[int]) -> torch.Tensor:
        """Compute one token of each row; return the hidden states [rows, hidden size]."""
        device = self._head.device
        ids = torch.tensor([[token] for token in tokens], device=device)
        if self._stepping is not None:
            states = self._stepping(ids, batch)
        else:
            options: dict[str, Any] = {}
            mask = batch.mask(device)
            if mask is not None:  # without padding transformers knows positions and mask
                options = {"attention_mask": mask.long(), "position_ids": batch.positions(device)}
            output = self._decoder(input_ids=ids, past_key_values=batch.cache, use_cache=True, **options)
            states = output.last_hidden_state[:, 0]
        batch.grown()
        return states

    def _choose(self, hidden: torch.Tensor, rows: Sequence[Row], sampling: Sampling) -> list[int]:
        if not bool(torch.isfinite(hidden).all()):
            raise no_numbers()
        if sampling.temperature <= 0:
            return self._head.likeliest(hidden)
        logits = self._head.logits(hidden, sampling.temperature)
        return [next_token(logits[number], sampling, row.generator) for number, row in enumerate(rows)]

    # Prompts.

    def _read(self, prompts: Sequence[Sequence[int]], remember: bool) -> tuple[list[Computed], torch.Tensor]:
        """Compute the prompts; return them, and the hidden states of their last tokens [prompts, hidden size]."""
        known = [self._longest_beginning(prompt) if remember else NOTHING for prompt in prompts]
        shortest = min(map(len, prompts))
        shared = min(shortest - 1, *(common_length(prompts[0], prompt) for prompt in prompts))
        if shared < LEAST_SHARED or len(prompts) == 1:
            shared = 0
        start = known[0].beginning(shared)
        alone = sum(len(prompt) - len(text.tokens) for prompt, text in zip(prompts, known, strict=True))
        together = shared - len(start.tokens) + sum(len(prompt) - shared for prompt in prompts)
        if alone < together or len(prompts) == 1:
            parts = [
                extend(self._decoder, text, [prompt[len(text.tokens) :]])
                for prompt, text in zip(prompts, known, strict=True)
            ]
            return [text for texts, _ in parts for text in texts], torch.cat([hidden for _, hidden in parts])
        if shared > len(start.tokens):
            [start], _ = extend(self._decoder, start, [prompts[0][len(start.tokens) : shared]])
        return extend(self._decoder, start, [prompt[shared:] for prompt in prompts])

    def forget(self) -> None:
        """Forget all texts; a call that is under way may remember its own still."""
        self._remembered = []

    def _longest_beginning(self, prompt: Sequence[int]) -> Computed:
        """Return the longest remembered beginning of a prompt, without its last token: that one must be computed."""
        found = longest_beginning(self._remembered, prompt)
        return found[0].beginning(found[1]) if found else NOTHING


def library_generate(
    model: Any,
    tokenizer: Any,
    end_tokens: Collection[int],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    on_text: Callable[[int, str], None] | None,
) -> list[str]:
    """Do `Backend.generate` by transformers' own loop: for recurrent layers, whose caches only it understands."""
    # Padding stands on the left here: transformers' generation continues every row at the same column.
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    answers = growing_answers(len(prompts), sampling.stop, on_text)
    options: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        transformers.set_seed(sampling.seed)
    model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(end_tokens),
        generation_config=transformers.GenerationConfig(),  # not the model's own penalties, as everywhere here
        stopping_criteria=transformers.StoppingCriteriaList([_StopWatcher(tokenizer, longest, answers)]),
        **options,
    )
    return [answer.finish() for answer in answers]


class _StopWatcher(transformers.StoppingCriteria):
    """End a row at its first stop string and report the text as it grows."""

    def __init__(self, tokenizer: Any, prompt_length: int, answers: list[GrowingAnswer]) -> None:
        self._tokenizer = tokenizer
        self._prompt_length = prompt_length
        self._answers = answers

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        decoded = self._tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=True)
        stopped = [answer.update(text) for answer, text in zip(self._answers, decoded, strict=True)]
        return torch.tensor(stopped, device=input_ids.device)
