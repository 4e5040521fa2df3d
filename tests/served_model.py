"""A small model as vLLM serves it: completions with echoed log-probabilities, and chat, by plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class ServedModel:
    """Answers the bodies of both APIs, one at a time, in float32.

    Args:
        directory: A transformers model. Its tokenizer's chat template answers chats; without one they are refused.
    """

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        names = ("<eos>", "<end_of_turn>")  # as Gemma's generation_config.json has both
        self._ends = {self._tokenizer.convert_tokens_to_ids(name) for name in names}
        self._kept: tuple[tuple[int, ...], Any] = ((), None)
        self._most = self._model.config.max_position_embeddings

    def __call__(self, body: dict[str, Any], chat: bool) -> dict[str, Any] | str:
        """Return the choice with its usage, or the message of an error with status 400."""
        if chat and not self._tokenizer.chat_template:
            return "As of transformers v4.44, default chat template is no longer allowed, so you must provide one."
        if chat:
            prompt = self._tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
            tokens = self._tokenizer(prompt, add_special_tokens=False).input_ids
        else:
            prompt = body["prompt"]
            tokens = self._tokenizer(prompt).input_ids
        if len(tokens) + body["max_tokens"] > self._most:
            return f"This model's maximum context length is {self._most} tokens. However, you requested more."
        written = self._write(tokens, body["max_tokens"], body.get("stop") or [])
        text = self._tokenizer.decode(written, skip_special_tokens=True)
        ends = [end for end in (text.find(stop) for stop in body.get("stop") or []) if end >= 0]
        text = text[: min(ends)] if ends else text
        if body.get("echo"):
            text = prompt + text
        found: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("logprobs") is not None:
            found["logprobs"] = self._logprobs([*tokens, *written], body["logprobs"], len(tokens), body.get("echo"))
        usage = {"prompt_tokens": len(tokens), "completion_tokens": len(written)}
        return {"choices": [{"index": 0, "finish_reason": "stop", **found}], "usage": usage}

    def _write(self, tokens: list[int], most: int, stop: list[str]) -> list[int]:
        written: list[int] = []
        while len(written) < most:
            written.append(int(self._predicted((*tokens, *written))[-1].argmax()))
            text = self._tokenizer.decode(written)
            if written[-1] in self._ends or any(one in text for one in stop):
                break
        return written

    def _predicted(self, tokens: tuple[int, ...]) -> Any:
        """Return the log-probabilities of what follows each of the tokens; the last ones asked for are kept."""
        if self._kept[0] != tokens:
            with self._torch.no_grad():
                self._kept = tokens, self._model(self._torch.tensor([tokens])).logits[0].log_softmax(-1)
        return self._kept[1]

    def _logprobs(self, tokens: list[int], top: int, prompt: int, echo: bool | None) -> dict[str, Any]:
        """Return vLLM's columns: the token itself is among the likeliest, and the first token has no figures."""
        logprobs = self._predicted(tuple(tokens[:-1]))
        texts = [self._tokenizer.decode([token]) for token in tokens]
        own: list[float | None] = [None]
        tops: list[dict[str, float] | None] = [None]
        for place, token in enumerate(tokens[1:]):
            values, numbers = logprobs[place].topk(top)
            own.append(float(logprobs[place, token]))
            tops.append(
                {texts[place + 1]: float(logprobs[place, token])}
                | {self._tokenizer.decode([int(n)]): float(v) for v, n in zip(values, numbers, strict=True)}
            )
        first = 0 if echo else prompt
        columns: dict[str, list[Any]] = {"tokens": texts, "token_logprobs": own, "top_logprobs": tops}
        return {name: column[first:] for name, column in columns.items()}
