"""Everything the bot says, in the languages that it speaks.

A language is a module with three tables:
COMMANDS  command -> line in Telegram's menu of commands
TEXTS     key -> text with slots
TASKS     task -> the texts of `TaskTexts`
A task without an entry is shown by its own names and help, so tasks that a user adds work too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, ModuleType

from harness.bot import english, russian
from harness.tasks import InputField, Task

# Telegram's languages whose users read Russian at least as well as English.
_RUSSIAN_READERS = ("ru", "be", "uk", "kk", "ky", "uz", "tg")


@dataclass(frozen=True)
class TaskTexts:
    """The texts of one task.

    Attributes:
        gloss: What it asks, in a few words, for the list of tasks.
        about: What it asks, as a question.
        fields: Field -> the request for it, and its label beside a value.
        names: Label, or option of a field -> what users call it.
    """

    gloss: str = ""
    about: str = ""
    fields: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Language:
    """One language of the bot.

    Attributes:
        code: "ru", "en".
        name: In the language itself.
        commands: Command -> line in the menu.
        texts: Key -> text with slots.
        tasks: Task -> its texts.
    """

    code: str
    name: str
    commands: Mapping[str, str]
    texts: Mapping[str, str]
    tasks: Mapping[str, TaskTexts]

    def say(self, key: str, **values: object) -> str:
        """Return a text with its slots filled. Values are never read as patterns, whoever wrote them."""
        return self.texts[key].format(**values)

    def of_task(self, task: Task) -> TaskTexts:
        """Return the texts of a task; empty ones for a task that has none in this language."""
        return self.tasks.get(task.name, TaskTexts())

    def task_row(self, task: Task) -> str:
        """Return the task's line in the list of tasks."""
        gloss = self.of_task(task).gloss
        return self.say("task_row", name=task.title, gloss=gloss) if gloss else task.title

    def request(self, task: Task, field: InputField) -> str:
        """Return the sentence that asks for a field."""
        if field.name in self.of_task(task).fields:
            return self.of_task(task).fields[field.name][0]
        return self.say("send_with_help" if field.help else "send", field=field.name, help=field.help)

    def label(self, task: Task, field: InputField) -> str:
        """Return what stands beside a field's value."""
        return self.of_task(task).fields.get(field.name, ("", field.name))[1]

    def name_of(self, task: Task, value: str) -> str:
        """Return what users call a label or an option; the value itself where it has no other name."""
        return self.of_task(task).names.get(value, value)


def _language(code: str, name: str, module: ModuleType) -> Language:
    tasks = {task: TaskTexts(**texts) for task, texts in module.TASKS.items()}
    return Language(code, name, module.COMMANDS, module.TEXTS, tasks)


LANGUAGES: Mapping[str, Language] = MappingProxyType(
    {"ru": _language("ru", "Русский", russian), "en": _language("en", "English", english)}
)


def default_language(code: str | None) -> Language:
    """Return the language that users read whose Telegram speaks this one."""
    return LANGUAGES["ru" if code is None or code.split("-")[0].lower() in _RUSSIAN_READERS else "en"]
