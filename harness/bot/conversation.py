"""The rules of the conversation: what the bot answers to an event. No network, no model, no waiting.

An event gets its messages at once, or becomes a job for the model. A job changes nothing in the store until it is done,
so an event that a killed process left behind can be handled again. All rules run inside a transaction of the store.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from harness.bot.events import TURNS_TOGETHER, Button, ChatJob, Event, Message, Outcome, QuestionJob
from harness.bot.store import Dialogue, NameTaken, Store
from harness.bot.texts import LANGUAGES, Language, default_language
from harness.data import cached_split
from harness.evaluation.predict import Answer, split_list
from harness.tasks import RUSSIAN_SUPERGLUE, InputField, Task

MAX_CHARACTERS = 4000  # in a message
MAX_NAME = 64  # characters
MAX_DIALOGUES = 50  # per user
HISTORY_TURNS = 50  # of a dialogue in a job; the model's side cuts them further, by tokens
REMINDED_TURNS = 5
SHOWN_CHOICES = 6
BAR_CELLS = 10
BUTTONS_PER_ROW = 3

_ALIASES = {"get_dialogues": "dialogues", "get_dialogue": "open_dialogue"}


class Conversation:
    """The rules of the conversation.

    Args:
        store: Users and dialogues.
        model: Name of the model that answers.
        describe: Returns the text of /model.
        tasks: What can be asked, in the order of the menu.
        can_compare: There is a second model for /compare.
        seed: Of the choice of examples; None: another choice in each process.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        describe: Callable[[Language], str],
        tasks: Sequence[Task],
        can_compare: bool = True,
        seed: int | None = None,
    ) -> None:
        self._store = store
        self._model = model
        self._describe = describe
        self._tasks = {task.name: task for task in tasks}
        self._can_compare = can_compare
        self._random = random.Random(seed)

    def language(self, event: Event) -> Language:
        """Return the language in which the user of an event is answered."""
        return LANGUAGES.get(self._store.language(event.user) or "") or default_language(event.language)

    def handle(self, event: Event, under_way: bool) -> Outcome:
        """Return what follows from an event.

        Args:
            event: From an allowed user.
            under_way: The user's last job is not done.
        """
        language = self.language(event)
        if event.button is not None:
            return self._pressed(event.user, event.button, language, under_way)
        if event.text is None:
            return _one(language.say("text_only"))
        if len(event.text) > MAX_CHARACTERS:
            return _one(language.say("too_long", length=len(event.text), limit=MAX_CHARACTERS))
        if event.text.startswith("/"):
            return self._command(event.user, event.text, language, under_way)
        return self._written(event.user, event.text.strip(), language)

    # Commands.

    def _command(self, user: int, text: str, language: Language, under_way: bool) -> Outcome:
        head, *rest = text[1:].split(maxsplit=1) or [""]
        argument = rest[0].strip() if rest else ""
        name = head.partition("@")[0].lower()
        name = _ALIASES.get(name, name)
        store = self._store
        if name in ("start", "help"):
            return _one(language.say(name, model=self._model))
        if name == "model":
            return _one(self._describe(language))
        if name == "language":
            return self._choose_language(user, argument, language)
        if name in ("tasks", "compare"):
            store.set_state(user, {})
            return self._task_menu(language, compare=name == "compare")
        if name == "cancel":
            return self._cancel(user, language, under_way)
        if name == "forget_me":
            store.forget(user)
            return Outcome((Message(language.say("forgotten")),), stops=True, forgets=True)
        if name == "query":
            if argument:
                return Outcome(job=ChatJob(argument, None, (), store.state(user)))
            store.set_state(user, {"asking": "query"})
            return _one(language.say("ask_query"))
        if name == "new_dialogue":
            if argument:
                return self._new_dialogue(user, argument, language)
            store.set_state(user, {"asking": "name"})
            return _one(language.say("ask_name"))
        if name == "dialogues":
            return self._list(user, language)
        if name in ("open_dialogue", "delete_dialogue", "remind_dialogue"):
            return self._on_dialogue(name.removesuffix("_dialogue"), user, argument, language)
        return _one(language.say("unknown_command"))

    def _cancel(self, user: int, language: Language, under_way: bool) -> Outcome:
        state = self._store.state(user)
        if under_way:  # cancel the job alone: the dialogue stays open
            if "form" in state:
                self._store.set_state(user, {})
            return Outcome((Message(language.say("cancelled")),), stops=True)
        if not state:
            return _one(language.say("nothing_to_cancel"))
        self._store.set_state(user, {})
        dialogue = self._store.dialogue(user, state["dialogue"]) if "dialogue" in state else None
        return _one(language.say("dialogue_closed", name=dialogue.name) if dialogue else language.say("cancelled"))

    def _choose_language(self, user: int, code: str, language: Language) -> Outcome:
        if code.lower() in LANGUAGES:
            self._store.set_language(user, code.lower())
            return _one(LANGUAGES[code.lower()].say("language_set"))
        buttons = tuple(Button(one.name, f"language:{code}") for code, one in LANGUAGES.items())
        return _one(language.say("choose_language"), (buttons,))

    # Tasks.

    def _task_menu(self, language: Language, compare: bool) -> Outcome:
        if compare and not self._can_compare:
            return _one(language.say("no_comparison"))
        verb = "compare" if compare else "task"
        buttons = [Button(task.title, f"{verb}:{name}") for name, task in self._tasks.items()]
        rows = tuple(tuple(buttons[at : at + BUTTONS_PER_ROW]) for at in range(0, len(buttons), BUTTONS_PER_ROW))
        tasks = "\n".join(map(language.task_row, self._tasks.values()))
        return _one(language.say("choose_task_compare" if compare else "choose_task", tasks=tasks), rows)

    def _start_form(self, user: int, task: Task, compare: bool, language: Language) -> Outcome:
        if compare and not self._can_compare:
            return _one(language.say("no_comparison"))
        self._store.set_state(user, {"form": {"task": task.name, "fields": {}, "compare": compare}})
        about = language.of_task(task).about
        key = "asked" if about else "asked_unknown"
        message = _request(task, task.fields[0], language, key, name=task.title, about=about)
        row = [Button(language.say("cancel"), "cancel")]
        if _has_examples(task):
            row.insert(0, Button(language.say("example"), "example"))
        return _one(message.text, (*message.buttons, tuple(row)))

    def _fill(self, user: int, form: dict[str, Any], value: str, language: Language) -> Outcome:
        task, fields = self._tasks[form["task"]], dict(form["fields"])
        field = task.fields[len(fields)]
        problem = _problem(field, value)
        if problem:
            return Outcome((_request(task, field, language, problem, part=field.contains),))
        fields[field.name] = value
        if len(fields) == len(task.fields):
            return Outcome(job=QuestionJob(task.name, fields, form["compare"], None, self._store.state(user)))
        self._store.set_state(user, {"form": {**form, "fields": fields}})
        return Outcome((_request(task, task.fields[len(fields)], language),))

    def _example(self, user: int, task: Task, compare: bool) -> Outcome:
        row = self._random.choice(cached_split(task.name, "validation", "mini").documents).row()
        fields = {field.name: _joined(row[field.name]) for field in task.fields}
        gold = _joined(task.named(task.gold(row)))
        return Outcome(job=QuestionJob(task.name, fields, compare, gold, self._store.state(user)))

    # Dialogues.

    def _new_dialogue(self, user: int, name: str, language: Language) -> Outcome:
        name = " ".join(name.split())
        if len(name) > MAX_NAME:
            return _one(language.say("name_long", limit=MAX_NAME))
        if len(self._store.dialogues(user)) >= MAX_DIALOGUES:
            return _one(language.say("too_many_dialogues", limit=MAX_DIALOGUES))
        try:
            number = self._store.add_dialogue(user, name)
        except NameTaken:
            self._store.set_state(user, {"asking": "name"})
            return _one(language.say("name_taken", name=name))
        self._store.set_state(user, {"dialogue": number})
        return _one(language.say("dialogue_opened", name=name))

    def _list(self, user: int, language: Language) -> Outcome:
        found = self._store.dialogues(user)
        if not found:
            return _one(language.say("no_dialogues"))
        rows = [language.say("dialogue_row", name=one.name, turns=one.turns) for one in found]
        return _one(language.say("dialogues", list="\n".join(rows)))

    def _on_dialogue(self, verb: str, user: int, name: str, language: Language) -> Outcome:
        """Open, delete or show the dialogue of this name; ask which one where none is named."""
        found = self._store.dialogues(user)
        if not found:
            return _one(language.say("no_dialogues"))
        if name:
            chosen = next((one for one in found if one.name == " ".join(name.split())), None)
            return self._do(verb, user, chosen, language)
        if verb == "remind" and "dialogue" in (state := self._store.state(user)):
            return self._do(verb, user, self._store.dialogue(user, state["dialogue"]), language)
        return _one(language.say(f"choose_{verb}"), tuple((Button(one.name, f"{verb}:{one.id}"),) for one in found))

    def _do(self, verb: str, user: int, dialogue: Dialogue | None, language: Language) -> Outcome:
        if dialogue is None:
            return _one(language.say("dialogue_missing"))
        if verb == "open":
            self._store.set_state(user, {"dialogue": dialogue.id})
            return _one(language.say("dialogue_reopened", name=dialogue.name, turns=dialogue.turns))
        if verb == "delete":
            self._store.delete_dialogue(user, dialogue.id)
            if self._store.state(user).get("dialogue") == dialogue.id:
                self._store.set_state(user, {})
            return _one(language.say("dialogue_deleted", name=dialogue.name))
        turns = self._store.turns(user, dialogue.id, REMINDED_TURNS)
        if not turns:
            return _one(language.say("no_turns", name=dialogue.name))
        you, bot = language.say("you"), language.say("bot")
        shown = "\n\n".join(f"{you}: {turn.question}\n{bot}: {turn.answer}" for turn in turns)
        return _one(language.say("remind", name=dialogue.name, turns=shown))

    # Texts and buttons.

    def _form(self, user: int) -> dict[str, Any] | None:
        """Return the form that the user is filling in; None as well where its task is no longer served."""
        form = self._store.state(user).get("form")
        return form if form and form["task"] in self._tasks else None

    def _written(self, user: int, text: str, language: Language) -> Outcome:
        form = self._form(user)
        if form:
            return self._fill(user, form, text, language)
        if not text:
            return _one(language.say("hint"))
        state = self._store.state(user)
        if state.get("asking") == "query":
            return Outcome(job=ChatJob(text, None, (), state))
        if state.get("asking") == "name":
            return self._new_dialogue(user, text, language)
        if "dialogue" in state:
            # Counted so that the first turn stays the same one for a while: see `steady_start`.
            dialogue = self._store.dialogue(user, state["dialogue"])
            last = HISTORY_TURNS + (dialogue.turns % TURNS_TOGETHER if dialogue else 0)
            history = self._store.turns(user, state["dialogue"], last)
            return Outcome(job=ChatJob(text, state["dialogue"], tuple(history), state))
        return _one(language.say("hint"))

    def _pressed(self, user: int, data: str, language: Language, under_way: bool) -> Outcome:
        """Handle a button. Its data comes from the user's device and may be forged, so all of it is checked."""
        verb, _, value = data.partition(":")
        form = self._form(user)
        if verb in ("task", "compare") and value in self._tasks:
            return self._start_form(user, self._tasks[value], verb == "compare", language)
        if form:
            task = self._tasks[form["task"]]
            if verb == "example" and _has_examples(task):
                return self._example(user, task, form["compare"])
            options = task.fields[len(form["fields"])].options
            if verb == "option" and 0 <= (number := _number(value)) < len(options):
                return self._fill(user, form, options[number], language)
        if verb == "language" and value in LANGUAGES:
            return self._choose_language(user, value, language)
        if verb == "tasks":
            return self._task_menu(language, compare=False)
        if verb == "cancel":
            return self._cancel(user, language, under_way)
        if verb in ("open", "delete", "remind"):
            return self._do(verb, user, self._store.dialogue(user, _number(value)), language)
        return _one(language.say("stale"))

    # Replies to finished jobs. Both run inside the transaction that stores the reply.

    def answered(
        self, event: Event, job: QuestionJob, answers: Sequence[tuple[str, Answer, float]]
    ) -> tuple[Message, ...]:
        """Return the reply to a question.

        Args:
            event: The event that asked.
            job: The question.
            answers: One or two of (name of the model, its answer, seconds).
        """
        language = self.language(event)
        task = self._tasks[job.task]
        if job.compare:
            parts = [
                language.say("answer_of", model=model, seconds=_seconds(language, seconds),
                             bars=_bars(language, task, job, answer))
                for model, answer, seconds in answers
            ]  # fmt: skip
            text = "\n\n".join([task.title, *parts])
        else:
            [(model, answer, seconds)] = answers
            text = language.say(
                "answer", task=task.title, bars=_bars(language, task, job, answer), model=model,
                seconds=_seconds(language, seconds),
            )  # fmt: skip
        if job.gold is not None:
            shown = "\n".join(
                f"{language.label(task, field)}: {_shown_value(language, task, field, job)}" for field in task.fields
            )
            text = f"{shown}\n\n{text}\n" + language.say("gold", gold=_choice(language, task, job, job.gold))
        if self._store.state(event.user) == job.state:
            self._store.set_state(event.user, {})
        again = Button(language.say("again"), f"{'compare' if job.compare else 'task'}:{job.task}")
        return (Message(text, ((again, Button(language.say("other_task"), "tasks")),)),)

    def continued(self, event: Event, job: ChatJob, text: str) -> tuple[Message, ...]:
        """Return the reply of the language model. A dialogue stays open."""
        if job.dialogue is None and self._store.state(event.user) == job.state:
            self._store.set_state(event.user, {})
        return (Message(text or self.language(event).say("silent")),)


def _one(text: str, buttons: tuple[tuple[Button, ...], ...] = ()) -> Outcome:
    return Outcome((Message(text, buttons),))


def _request(task: Task, field: InputField, language: Language, key: str = "ask", **values: str) -> Message:
    """Return the message that asks for a field, with a button for each of its options."""
    text = language.say(key, ask=language.request(task, field), **values)
    options = tuple(
        Button(language.name_of(task, option), f"option:{number}") for number, option in enumerate(field.options)
    )
    return Message(text, (options,) if options else ())


def _problem(field: InputField, value: str) -> str | None:
    """Return the key of the text that says what is wrong with a field's value; None where nothing is."""
    if not value:
        return "empty"
    if field.options and value not in field.options:
        return "ask"
    if field.contains not in value:
        return "must_contain"
    if field.is_list and len(split_list(value)) < 2:
        return "too_few"
    return None


def _has_examples(task: Task) -> bool:
    """Return whether the bundled mini set has documents of the task."""
    return task.name in RUSSIAN_SUPERGLUE


def _joined(value: Any) -> str:
    """Return a value of a document as a person would type it."""
    return value if isinstance(value, str) else "; ".join(value)


def _number(value: str) -> int:
    """Return the number in a button's data; -1 for anything else."""
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else -1


def _bars(language: Language, task: Task, job: QuestionJob, answer: Answer) -> str:
    """Return the choices with their probabilities, the most probable first."""
    ordered = sorted(answer.choices.items(), key=lambda choice: -choice[1])[:SHOWN_CHOICES]
    rows = []
    for label, share in ordered:
        filled = round(BAR_CELLS * share)
        bar = "█" * filled + "░" * (BAR_CELLS - filled)
        rows.append(f"{bar} {100 * share:.0f} % {_choice(language, task, job, label)}")
    return "\n".join(rows)


def _choice(language: Language, task: Task, job: QuestionJob, label: str) -> str:
    """Return what users call an answer: a label that is the name of a field stands for that field's text."""
    if not task.choices and label in job.fields:
        return job.fields[label]
    return language.name_of(task, label)


def _shown_value(language: Language, task: Task, field: InputField, job: QuestionJob) -> str:
    value = job.fields[field.name]
    return language.name_of(task, value) if field.options else value


def _seconds(language: Language, seconds: float) -> str:
    if seconds < 1:
        return language.say("milliseconds", value=round(1000 * seconds))
    text = f"{seconds:.1f}"
    return language.say("seconds", value=text.replace(".", language.say("decimal_point")))
