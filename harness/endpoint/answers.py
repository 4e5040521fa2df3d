"""The shapes of a server's answers. Both APIs, and what servers make of OpenAI's two shapes of log-probabilities.

According to their documentation, vLLM uses OpenAI's two shapes. llama.cpp (tried: b11549) and mlx_lm.server (tried:
0.32) use the chat shape for both APIs; the latter spells tokens as its vocabulary does ("▁да", "ĠÐ´Ð°").
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_TEXT_PARTS = ("text", "output_text")


class _Lenient(BaseModel):
    """A part of an answer; fields that servers add are ignored, and so are those that are null."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class Token(_Lenient):
    token: str = ""
    logprob: float | None = None  # some servers give none for tokens that they rule out


class Content(_Lenient):
    token: str = ""
    top_logprobs: list[Token] = []


class Logprobs(_Lenient):
    content: list[Content] | None = None  # the chat shape
    tokens: list[str] | None = None  # the completions shape: this field and the next two
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Message(_Lenient):
    content: str | None = None
    refusal: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        """Join the texts of an answer in parts; thoughts and pictures are none of it."""
        if not isinstance(value, list):
            return value
        parts = [part for part in value if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS]
        return "".join(str(part.get("text") or "") for part in parts)


class Choice(_Lenient):
    message: Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(_Lenient):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Answer(_Lenient):
    """An answer of either API."""

    choices: list[Choice] = Field(min_length=1)
    usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        """The first choice; no more than one is ever asked for."""
        return self.choices[0]

    @property
    def text(self) -> str:
        """What the model wrote, or how it refused."""
        message = self.choice.message or Message(content=self.choice.text)
        return message.content or message.refusal or ""

    @property
    def is_cut(self) -> bool:
        """Whether it ended at max_tokens."""
        return self.choice.finish_reason == "length"

    @property
    def is_declined(self) -> bool:
        """Whether the server says that the model refused to answer."""
        message = self.choice.message
        return bool(message and message.refusal) or self.choice.finish_reason == "content_filter"


def without_thoughts(text: str) -> str:
    """Return what a reasoning model answers after its thoughts, where the server leaves these in the text."""
    _, _, answer = text.rpartition("</think>")
    return "" if "<think>" in answer else answer


def _byte_letters() -> dict[str, int]:
    """Return letter -> byte, as byte-level vocabularies spell bytes (GPT-2's table, which most others use)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + number): byte for number, byte in enumerate(hidden)},
    }


_BYTE_LETTERS = _byte_letters()


def plain_text(token: str) -> str:
    """Return a token as text where the server spells it as its vocabulary does ("▁да", "ĠÐ´Ð°")."""
    token = token.replace("▁", " ")
    if token.isascii():
        return token
    try:
        return bytes(_BYTE_LETTERS[letter] for letter in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return token
