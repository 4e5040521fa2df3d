"""A stand-in for Telegram's Bot API on loopback: its JSON, its confirmation of updates, and faults on demand."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl

TOKEN = "123456789:AAE-stand-in-token-of-the-tests-0000"


@dataclass
class Shown:
    """A message from the bot, as its user sees it now."""

    id: int
    text: str
    buttons: dict[str, str]  # label -> data
    parameters: dict[str, Any]  # of the last call
    earlier: list[str] = field(default_factory=list)  # texts before edits


@dataclass
class Fault:
    """What the next calls of a method get instead of an answer."""

    method: str
    code: int
    times: int
    retry_after: int | None = None


class TelegramServer:
    """Telegram, for one bot."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.chats: defaultdict[int, list[Shown]] = defaultdict(list)
        self.calls: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.bodies: list[str] = []
        self.blocked_by: set[int] = set()
        self._updates: list[dict[str, Any]] = []
        self._next_update = 1000
        self._next_message = 1
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                _, bot, method = self.path.split("/", 2)
                code, answer = server._answer(bot, method, dict(parse_qsl(body)))
                sent = json.dumps(answer).encode()
                try:
                    self.send_response(code)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(sent)))
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:  # the bot was killed
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exception(), ConnectionError):  # the bot was killed
                    super().handle_error(request, client_address)

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> TelegramServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    # What users do.

    def write(self, user: int, text: str | None, language: str | None = "ru", chat: str = "private") -> int:
        """Send a message, or a photograph where `text` is None; return the id of the update."""
        with self.changed:
            message: dict[str, Any] = self._message(user, text, chat)
            message["from"] = _user(user, language)
            if text is None:
                message["photo"] = []
            return self._deliver({"message": message})

    def press(self, user: int, data: str, language: str | None = "ru") -> int:
        """Press a button with this data, which a forger may choose freely."""
        with self.changed:
            query = {
                "id": str(self._next_update),
                "from": _user(user, language),
                "chat_instance": "1",
                "data": data,
                "message": self._message(user, "…", "private"),
            }
            return self._deliver({"callback_query": query})

    def press_labelled(self, user: int, label: str, language: str | None = "ru") -> int:
        """Press the button of this label in the user's last message."""
        with self.changed:
            data = self.chats[user][-1].buttons[label]
        return self.press(user, data, language)

    # What users see.

    def texts(self, user: int) -> list[str]:
        with self.changed:
            return [shown.text for shown in self.chats[user]]

    def last(self, user: int) -> Shown:
        with self.changed:
            return self.chats[user][-1]

    def wait(self, holds: Callable[[], Any], seconds: float = 30) -> Any:
        """Wait until `holds` returns something true, and return that."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while not (found := holds()):
                left = deadline - time.monotonic()
                if left <= 0 or not self.changed.wait(left):
                    seen = {user: [shown.text[-80:] for shown in chat[-3:]] for user, chat in self.chats.items()}
                    raise AssertionError(f"nothing after {seconds} s; the last messages: {seen}")
            return found

    def ask(self, user: int, text: str, until: str = "", seconds: float = 30, **options: Any) -> str:
        """Send a message, and return the next reply that contains `until`."""
        with self.changed:
            before = len(self.chats[user])
        self.write(user, text, **options)
        return self.next(user, before, until, seconds)

    def choose(self, user: int, label: str, until: str = "", seconds: float = 30, **options: Any) -> str:
        """Press a button of the last message, and return the next reply that contains `until`."""
        with self.changed:
            before = len(self.chats[user])
        self.press_labelled(user, label, **options)
        return self.next(user, before, until, seconds)

    def next(self, user: int, before: int, until: str = "", seconds: float = 30) -> str:
        """Return the first message after the first `before` ones that contains `until`."""

        def found() -> Shown | None:
            return next((one for one in self.chats[user][before:] if until in one.text), None)

        return self.wait(found, seconds).text

    # What the bot does.

    def _answer(self, bot: str, method: str, parameters: dict[str, str]) -> tuple[int, dict[str, Any]]:
        with self.changed:
            self.calls[method] += 1
            if bot != f"bot{TOKEN}":
                return 401, {"ok": False, "error_code": 401, "description": "Unauthorized"}
            for fault in self.faults:
                if fault.method == method and fault.times:
                    fault.times -= 1
                    answer: dict[str, Any] = {"ok": False, "error_code": fault.code, "description": "fault on demand"}
                    if fault.retry_after is not None:
                        answer["parameters"] = {"retry_after": fault.retry_after}
                    return fault.code, answer
            call = getattr(self, f"_{method}", None)
            if call is None:
                return 200, {"ok": True, "result": True}
            code, result = call(parameters)
            self.changed.notify_all()
            if code != 200:
                return code, {"ok": False, "error_code": code, "description": result}
            return 200, {"ok": True, "result": result}

    def _getMe(self, parameters: dict[str, str]) -> tuple[int, Any]:
        return 200, {"id": 123456789, "is_bot": True, "first_name": "RSG", "username": "rsg_stand_in_bot"}

    def _getUpdates(self, parameters: dict[str, str]) -> tuple[int, Any]:
        offset = int(parameters.get("offset", 0))
        deadline = time.monotonic() + float(parameters.get("timeout", 0))
        self._updates = [update for update in self._updates if update["update_id"] >= offset]
        while not self._updates and (left := deadline - time.monotonic()) > 0:
            self.changed.wait(left)
        return 200, self._updates[: int(parameters.get("limit", 100))]

    def _sendMessage(self, parameters: dict[str, str]) -> tuple[int, Any]:
        user = int(parameters["chat_id"])
        if user in self.blocked_by:
            return 403, "Forbidden: bot was blocked by the user"
        refused = _refused(parameters)
        if refused:
            return 400, refused
        message = self._message(user, parameters["text"], "private")
        self.chats[user].append(
            Shown(message["message_id"], parameters["text"], _buttons(parameters), dict(parameters))
        )
        return 200, message

    def _editMessageText(self, parameters: dict[str, str]) -> tuple[int, Any]:
        user, number = int(parameters["chat_id"]), int(parameters["message_id"])
        shown = next((one for one in self.chats[user] if one.id == number), None)
        if shown is None:
            return 400, "Bad Request: message to edit not found"
        if shown.text == parameters["text"] and shown.buttons == _buttons(parameters):
            return 400, "Bad Request: message is not modified"
        refused = _refused(parameters)
        if refused:
            return 400, refused
        shown.earlier.append(shown.text)
        shown.text, shown.buttons, shown.parameters = parameters["text"], _buttons(parameters), dict(parameters)
        return 200, {**self._message(user, shown.text, "private"), "message_id": number}

    def _message(self, user: int, text: str | None, chat: str) -> dict[str, Any]:
        self._next_message += 1
        place = {"id": user if chat == "private" else -user, "type": chat}
        message = {"message_id": self._next_message, "date": int(time.time()), "chat": place}
        return message if text is None else {**message, "text": text}

    def _deliver(self, update: dict[str, Any]) -> int:
        self._next_update += 1
        self._updates.append({"update_id": self._next_update, **update})
        self.changed.notify_all()
        return self._next_update


def _user(user: int, language: str | None) -> dict[str, Any]:
    found = {"id": user, "is_bot": False, "first_name": f"user {user}"}
    return found if language is None else {**found, "language_code": language}


def _buttons(parameters: dict[str, str]) -> dict[str, str]:
    keyboard = json.loads(parameters.get("reply_markup", "{}")).get("inline_keyboard", [])
    return {button["text"]: button["callback_data"] for row in keyboard for button in row}


def _refused(parameters: dict[str, str]) -> str | None:
    """Say why Telegram would refuse the message; None where it would not."""
    if not parameters["text"].strip():
        return "Bad Request: message text is empty"
    if len(parameters["text"].encode("utf-16-le")) // 2 > 4096:
        return "Bad Request: message is too long"
    if any(not 0 < len(data.encode()) <= 64 for data in _buttons(parameters).values()):
        return "Bad Request: BUTTON_DATA_INVALID"
    return None
