"""What the bot answers to what: no network, no model, no waiting. Runs inside one transaction of the store.

An event of a user either has its messages at once, or becomes a job for the model. A job changes nothing in the store
until it is done, so an event that a killed process left behind can be handled again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.bot.store import Dialogue, NameTaken, Store, Turn
from harness.bot.texts import CHOICES, TASKS, choice_name, language_of, say
from harness.data import LABELS, cached_split
from harness.data.official import DIRECTORIES as TASK_NAMES
from harness.evaluation.predict import FIELDS, GAP, Answer, split_entities

MAX_CHARACTERS = 4000  # of a field, a question, a message
MAX_NAME = 64
MAX_DIALOGUES = 50  # of a user
REMINDED_TURNS = 5
SHOWN_CHOICES = 6
BAR_CELLS = 10

_ALIASES = {"get_dialogues": "dialogues", "get_dialogue": "open_dialogue"}


@dataclass(frozen=True)
class Event:
    """A message or a pressed button. `text` or `button` is None; both are where something else was sent."""

    update: int
    user: int
    language: str | None
    text: str | None = None
    button: str | None = None


@dataclass(frozen=True)
class Button:
    """`data` comes back when it is pressed: at most 64 bytes."""

    label: str
    data: str


@dataclass(frozen=True)
class Message:
    """A message as plain text: nothing in it is markup, whoever wrote it."""

    text: str
    buttons: tuple[tuple[Button, ...], ...] = ()


@dataclass(frozen=True)
class QuestionJob:
    """A question of a task. `state`: the conversation's at that time; it is over when the answer is there."""

    task: str
    fields: dict[str, str]
    compare: bool
    gold: str | None
    state: dict[str, Any]


@dataclass(frozen=True)
class ChatJob:
    """A question to the language model, after the turns of its dialogue if it belongs to one."""

    question: str
    dialogue: int | None
    history: tuple[Turn, ...]
    state: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What follows from an event. `stops`: the user's job under way. `forgets`: the user's data were deleted."""

    messages: tuple[Message, ...] = ()
    job: QuestionJob | ChatJob | None = None
    stops: bool = False
    forgets: bool = False


class Conversation:
    """The rules of the conversation.

    Args:
        store: of users and dialogues.
        model: name of the model that answers.
        describe: text of /model in a language.
        history_turns: of a dialogue that a job takes along at most; the model's side cuts them by tokens.
        seed: of the choice of examples; None: a new one each time.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        describe: Callable[[str], str],
        history_turns: int = 50,
        seed: int | None = None,
    ) -> None:
        self._store = store
        self._model = model
        self._describe = describe
        self._history_turns = history_turns
        self._random = random.Random(seed)

    def handle(self, event: Event, under_way: bool) -> Outcome:
        """The answer to an event.

        Args:
            event: of an allowed user.
            under_way: the user's last job is not done.
        """
        language = language_of(event.language)
        if event.button is not None:
            return self._pressed(event, language, under_way)
        if event.text is None:
            return _one(say(language, "text_only"))
        if len(event.text) > MAX_CHARACTERS:
            return _one(say(language, "too_long", length=len(event.text), limit=MAX_CHARACTERS))
        if event.text.startswith("/"):
            return self._command(event, event.text, language, under_way)
        return self._written(event, event.text.strip(), language)

    # Commands.

    def _command(self, event: Event, text: str, language: str, under_way: bool) -> Outcome:
        head, *rest = text[1:].split(maxsplit=1) or [""]
        argument = rest[0].strip() if rest else ""
        name = head.partition("@")[0].lower()
        name = _ALIASES.get(name, name)
        store, user = self._store, event.user
        if name in ("start", "help"):
            return _one(say(language, name, model=self._model))
        if name == "model":
            return _one(self._describe(language))
        if name in ("tasks", "compare"):
            store.set_state(user, {})
            return self._task_menu(language, compare=name == "compare")
        if name == "cancel":
            return self._cancel(user, language, under_way)
        if name == "forget_me":
            store.forget(user)
            return Outcome((Message(say(language, "forgotten")),), stops=True, forgets=True)
        if name == "query":
            if argument:
                return Outcome(job=ChatJob(argument, None, (), store.state(user)))
            store.set_state(user, {"asking": "query"})
            return _one(say(language, "ask_query"))
        if name == "new_dialogue":
            if argument:
                return self._new_dialogue(user, argument, language)
            store.set_state(user, {"asking": "name"})
            return _one(say(language, "ask_name"))
        if name == "dialogues":
            return self._list(user, language)
        if name in ("open_dialogue", "delete_dialogue", "remind_dialogue"):
            return self._on_dialogue(name.removesuffix("_dialogue"), user, argument, language)
        return _one(say(language, "unknown_command"))

    def _cancel(self, user: int, language: str, under_way: bool) -> Outcome:
        state = self._store.state(user)
        if under_way:  # one thing at a time: the dialogue stays open
            if "form" in state:
                self._store.set_state(user, {})
            return Outcome((Message(say(language, "cancelled")),), stops=True)
        if not state:
            return _one(say(language, "nothing_to_cancel"))
        self._store.set_state(user, {})
        dialogue = self._store.dialogue(user, state["dialogue"]) if "dialogue" in state else None
        return _one(say(language, "dialogue_closed", name=dialogue.name) if dialogue else say(language, "cancelled"))

    # Tasks.

    def _task_menu(self, language: str, compare: bool) -> Outcome:
        verb = "compare" if compare else "task"
        buttons = [Button(TASK_NAMES[task], f"{verb}:{task}") for task in FIELDS]
        rows = tuple(tuple(buttons[start : start + 3]) for start in range(0, len(buttons), 3))
        return _one(say(language, "choose_task_compare" if compare else "choose_task"), rows)

    def _start_form(self, user: int, task: str, compare: bool, language: str) -> Outcome:
        self._store.set_state(user, {"form": {"task": task, "fields": {}, "compare": compare}})
        about = TASKS[language][task][0]
        message = self._ask(task, 0, language, "asked", name=TASK_NAMES[task], about=about)
        example = (Button(say(language, "example"), "example"), Button(say(language, "cancel"), "cancel"))
        return Outcome((Message(message.text, (*message.buttons, example)),))

    def _ask(self, task: str, number: int, language: str, key: str = "ask", **values: str) -> Message:
        """Asks for a field of a task, by buttons where it has two values."""
        text = say(language, key, ask=TASKS[language][task][1 + number], **values)
        if FIELDS[task][number] == "question" and task == "parus":
            return Message(text, (tuple(Button(CHOICES[language][v], f"field:{v}") for v in ("cause", "effect")),))
        return Message(text)

    def _fill(self, user: int, form: dict[str, Any], value: str, language: str) -> Outcome:
        task, fields = form["task"], dict(form["fields"])
        number = len(fields)
        name = FIELDS[task][number]
        problem = _problem(task, name, value)
        if problem:
            return Outcome((self._ask(task, number, language, problem),))
        fields[name] = value
        if len(fields) == len(FIELDS[task]):
            return Outcome(job=QuestionJob(task, fields, form["compare"], None, self._store.state(user)))
        self._store.set_state(user, {"form": {**form, "fields": fields}})
        return Outcome((self._ask(task, number + 1, language),))

    def _example(self, user: int, task: str, compare: bool) -> Outcome:
        split = cached_split(task, "test" if task == "lidirus" else "validation", "mini")
        row = self._random.choice(split.documents).row()
        fields = {name: row[name] for name in FIELDS[task]}
        if task == "rucos":
            fields["entities"] = "; ".join(fields["entities"])
            gold = "; ".join(row["answers"])
        else:
            gold = LABELS[task][row["label"]]
        return Outcome(job=QuestionJob(task, fields, compare, gold, self._store.state(user)))

    # Dialogues.

    def _new_dialogue(self, user: int, name: str, language: str) -> Outcome:
        name = " ".join(name.split())
        if len(name) > MAX_NAME:
            return _one(say(language, "name_long", limit=MAX_NAME))
        if len(self._store.dialogues(user)) >= MAX_DIALOGUES:
            return _one(say(language, "too_many_dialogues", limit=MAX_DIALOGUES))
        try:
            number = self._store.add_dialogue(user, name)
        except NameTaken:
            self._store.set_state(user, {"asking": "name"})
            return _one(say(language, "name_taken", name=name))
        self._store.set_state(user, {"dialogue": number})
        return _one(say(language, "dialogue_opened", name=name))

    def _list(self, user: int, language: str) -> Outcome:
        found = self._store.dialogues(user)
        if not found:
            return _one(say(language, "no_dialogues"))
        rows = [say(language, "dialogue_row", name=one.name, turns=one.turns) for one in found]
        return _one(say(language, "dialogues", list="\n".join(rows)))

    def _on_dialogue(self, verb: str, user: int, name: str, language: str) -> Outcome:
        """Opens, deletes or reminds the dialogue of that name; asks which one if none is named."""
        found = self._store.dialogues(user)
        if not found:
            return _one(say(language, "no_dialogues"))
        if name:
            chosen = next((one for one in found if one.name == " ".join(name.split())), None)
            return self._do(verb, user, chosen, language)
        if verb == "remind" and "dialogue" in (state := self._store.state(user)):
            return self._do(verb, user, self._store.dialogue(user, state["dialogue"]), language)
        return _one(say(language, f"choose_{verb}"), tuple((Button(one.name, f"{verb}:{one.id}"),) for one in found))

    def _do(self, verb: str, user: int, dialogue: Dialogue | None, language: str) -> Outcome:
        if dialogue is None:
            return _one(say(language, "dialogue_missing"))
        if verb == "open":
            self._store.set_state(user, {"dialogue": dialogue.id})
            return _one(say(language, "dialogue_reopened", name=dialogue.name, turns=dialogue.turns))
        if verb == "delete":
            self._store.delete_dialogue(user, dialogue.id)
            if self._store.state(user).get("dialogue") == dialogue.id:
                self._store.set_state(user, {})
            return _one(say(language, "dialogue_deleted", name=dialogue.name))
        turns = self._store.turns(user, dialogue.id, REMINDED_TURNS)
        if not turns:
            return _one(say(language, "no_turns", name=dialogue.name))
        you, bot = say(language, "you"), say(language, "bot")
        shown = "\n\n".join(f"{you}: {turn.question}\n{bot}: {turn.answer}" for turn in turns)
        return _one(say(language, "remind", name=dialogue.name, turns=shown))

    # What is written or pressed.

    def _written(self, event: Event, text: str, language: str) -> Outcome:
        state = self._store.state(event.user)
        if "form" in state:
            return self._fill(event.user, state["form"], text, language)
        if not text:
            return _one(say(language, "hint"))
        if state.get("asking") == "query":
            return Outcome(job=ChatJob(text, None, (), state))
        if state.get("asking") == "name":
            return self._new_dialogue(event.user, text, language)
        if "dialogue" in state:
            history = self._store.turns(event.user, state["dialogue"], self._history_turns)
            return Outcome(job=ChatJob(text, state["dialogue"], tuple(history), state))
        return _one(say(language, "hint"))

    def _pressed(self, event: Event, language: str, under_way: bool) -> Outcome:
        """A button. Its data comes from the user's device and may be forged, so nothing in it is believed."""
        verb, _, value = (event.button or "").partition(":")
        user = event.user
        form = self._store.state(user).get("form")
        if verb in ("task", "compare") and value in FIELDS:
            return self._start_form(user, value, verb == "compare", language)
        if verb == "example" and form:
            return self._example(user, form["task"], form["compare"])
        if verb == "field" and form and form["task"] == "parus" and value in ("cause", "effect"):
            number = len(form["fields"])
            if FIELDS["parus"][number] == "question":
                return self._fill(user, form, value, language)
        if verb == "tasks":
            return self._task_menu(language, compare=False)
        if verb == "cancel":
            return self._cancel(user, language, under_way)
        if verb in ("open", "delete", "remind"):
            number = int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else -1
            return self._do(verb, user, self._store.dialogue(user, number), language)
        return _one(say(language, "stale"))

    # Jobs that are done. Both run inside the transaction that writes the reply.

    def answered(
        self, event: Event, job: QuestionJob, answers: Sequence[tuple[str, Answer, float]]
    ) -> tuple[Message, ...]:
        """The reply to a question.

        Args:
            event: that asked.
            job: what it asked.
            answers: (name of the model, its answer, seconds), one or two.
        """
        language = language_of(event.language)
        task = TASK_NAMES[job.task]
        if job.compare:
            parts = [
                say(language, "answer_of", model=model, seconds=_seconds(language, seconds),
                    bars=_bars(language, job, answer))
                for model, answer, seconds in answers
            ]  # fmt: skip
            text = "\n\n".join([task, *parts])
        else:
            [(model, answer, seconds)] = answers
            text = say(
                language, "answer", task=task, bars=_bars(language, job, answer), model=model,
                seconds=_seconds(language, seconds),
            )  # fmt: skip
        if job.gold is not None:
            shown = _shown_fields(language, job)
            text = f"{shown}\n\n{text}\n" + say(language, "gold", gold=_choice(language, job, job.gold))
        if self._store.state(event.user) == job.state:
            self._store.set_state(event.user, {})
        again = Button(say(language, "again"), f"{'compare' if job.compare else 'task'}:{job.task}")
        return (Message(text, ((again, Button(say(language, "other_task"), "tasks")),)),)

    def continued(self, event: Event, job: ChatJob, text: str) -> tuple[Message, ...]:
        """The reply of the language model. A dialogue stays open."""
        language = language_of(event.language)
        if job.dialogue is None and self._store.state(event.user) == job.state:
            self._store.set_state(event.user, {})
        return (Message(text or say(language, "silent")),)


def _one(text: str, buttons: tuple[tuple[Button, ...], ...] = ()) -> Outcome:
    return Outcome((Message(text, buttons),))


def _problem(task: str, field: str, value: str) -> str | None:
    """Key of the text that says what is wrong with a field; None for nothing."""
    if not value:
        return "empty"
    if task == "parus" and field == "question" and value not in ("cause", "effect"):
        return "ask"
    if task == "rucos" and field == "query" and GAP not in value:
        return "placeholder"
    if task == "rucos" and field == "entities" and len(split_entities(value)) < 2:
        return "entities"
    return None


def _bars(language: str, job: QuestionJob, answer: Answer) -> str:
    """The choices with their probabilities, the most probable first."""
    ordered = sorted(answer.choices.items(), key=lambda choice: -choice[1])[:SHOWN_CHOICES]
    rows = []
    for label, share in ordered:
        filled = round(BAR_CELLS * share)
        bar = "█" * filled + "░" * (BAR_CELLS - filled)
        rows.append(f"{bar} {100 * share:.0f} % {_choice(language, job, label)}")
    return "\n".join(rows)


def _choice(language: str, job: QuestionJob, label: str) -> str:
    """What an answer is called: PARus is answered with the user's own sentences."""
    return job.fields[label] if job.task == "parus" else choice_name(language, job.task, label)


def _shown_fields(language: str, job: QuestionJob) -> str:
    """An example's fields, after what each of them is asked with."""
    asks = TASKS[language][job.task][1:]
    values = [choice_name(language, job.task, value) if job.task == "parus" else value for value in job.fields.values()]
    return "\n".join(f"{ask.rstrip('?')}: {value}" for ask, value in zip(asks, values, strict=True))


def _seconds(language: str, seconds: float) -> str:
    if seconds < 1:
        return say(language, "milliseconds", value=round(1000 * seconds))
    text = f"{seconds:.1f}"
    return say(language, "seconds", value=text.replace(".", ",") if language == "ru" else text)
