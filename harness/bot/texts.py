"""Everything the bot says, in Russian and in English."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# Languages of Telegram's users who read Russian at least as well as English.
_RUSSIAN_READERS = ("ru", "be", "uk", "kk", "ky", "uz", "tg")

_RU: dict[str, str] = {
    "start": (
        "Здравствуйте! Это демонстрация модели {model}: она решает задачи Russian SuperGLUE и поддерживает беседу.\n\n"
        "/tasks — задать вопрос по одной из девяти задач\n"
        "/compare — один вопрос двум моделям: полной и 4-битной\n"
        "/query — спросить модель о чём угодно\n"
        "/new_dialogue — начать беседу\n"
        "/help — все команды"
    ),
    "help": (
        "Задачи\n"
        "/tasks — выбрать задачу и задать вопрос\n"
        "/compare — один вопрос полной и 4-битной модели\n"
        "/model — что за модель отвечает\n\n"
        "Беседа\n"
        "/query текст — один вопрос без продолжения\n"
        "/new_dialogue имя — начать именованную беседу\n"
        "/dialogues — ваши беседы\n"
        "/open_dialogue — продолжить беседу\n"
        "/remind_dialogue — последние реплики\n"
        "/delete_dialogue — удалить беседу\n\n"
        "/cancel — прервать вопрос или ответ\n"
        "/forget_me — удалить всё, что бот о вас хранит\n\n"
        "Модель маленькая и часто ошибается: это показ её умений, а не справочник."
    ),
    "commands": (
        "tasks=Задачи Russian SuperGLUE;compare=Полная и 4-битная модель рядом;query=Один вопрос модели;"
        "new_dialogue=Начать беседу;dialogues=Ваши беседы;open_dialogue=Продолжить беседу;"
        "remind_dialogue=Последние реплики;delete_dialogue=Удалить беседу;model=О модели;cancel=Прервать;"
        "forget_me=Удалить мои данные;help=Помощь"
    ),
    "unknown_command": "Такой команды нет. Список команд: /help",
    "hint": "Чтобы задать вопрос, выберите /tasks, /query или /new_dialogue.",
    "text_only": "Я понимаю только текст.",
    "choose_task": "Какую задачу выбрать?",
    "choose_task_compare": "Какой вопрос задать обеим моделям?",
    "example": "Готовый пример",
    "cancel": "Отмена",
    "again": "Ещё раз",
    "other_task": "Другая задача",
    "asked": "{name}. {about}\n\n{ask}",
    "ask": "{ask}",
    "empty": "Пустое сообщение. {ask}",
    "placeholder": "В предложении нужен пропуск @placeholder. {ask}",
    "entities": "Нужно хотя бы два варианта через точку с запятой. {ask}",
    "stale": "Эта кнопка уже не действует. Начните заново: /tasks",
    "answer": "{task}\n\n{bars}\n\n{model}, {seconds}",
    "answer_of": "{model}, {seconds}\n{bars}",
    "gold": "Верный ответ: {gold}",
    "seconds": "{value} с",
    "milliseconds": "{value} мс",
    "model": "{name}\nбэкенд {backend}: {weights}, считает {execution} на {device} ({dtype})\n\n{figures}",
    "score": "Russian SuperGLUE, {data}: {score}",
    "partial_score": "Среднее по задачам ({count}), {data}: {score}",
    "no_figures": "В таблице результатов этой модели ещё нет.",
    "data": "{source}, валидация{limit}",
    "official": "официальные данные",
    "hub": "данные хаба",
    "mini": "мини-набор",
    "limit": ", не больше {limit} документов на задачу",
    "ask_query": "Что спросить у модели?",
    "ask_name": "Как назвать беседу?",
    "name_taken": "Беседа «{name}» у вас уже есть. Выберите другое имя.",
    "name_long": "Имя не должно быть длиннее {limit} знаков.",
    "too_many_dialogues": "Больше {limit} бесед хранить нельзя. Удалите лишние: /delete_dialogue",
    "dialogue_opened": "Беседа «{name}» начата. Пишите. Закончить: /cancel",
    "dialogue_reopened": "Беседа «{name}», реплик: {turns}. Пишите. Закончить: /cancel",
    "dialogue_closed": "Беседа «{name}» закрыта; продолжить: /open_dialogue",
    "no_dialogues": "Бесед пока нет. Начать: /new_dialogue",
    "dialogues": "Ваши беседы:\n{list}",
    "dialogue_row": "• {name} ({turns})",
    "choose_open": "Какую беседу продолжить?",
    "choose_delete": "Какую беседу удалить?",
    "choose_remind": "Какую беседу напомнить?",
    "dialogue_missing": "Такой беседы у вас нет.",
    "dialogue_deleted": "Беседа «{name}» удалена.",
    "no_turns": "В беседе «{name}» ещё нет реплик.",
    "remind": "Беседа «{name}», последнее:\n\n{turns}",
    "you": "Вы",
    "bot": "Модель",
    "cancelled": "Прервано.",
    "nothing_to_cancel": "Прерывать нечего.",
    "forgotten": "Всё, что бот о вас хранил, удалено.",
    "busy_user": "Я ещё отвечаю на прошлый вопрос. Прервать его: /cancel",
    "full": "Сейчас слишком много вопросов. Попробуйте через минуту.",
    "too_often": "Слишком часто: не больше {limit} вопросов в минуту. Подождите {seconds} с.",
    "too_long": "Слишком длинно: {length} знаков, можно {limit}.",
    "queued": "Вы в очереди, место {place}…",
    "thinking": "Думаю…",
    "timeout": "Модель не успела ответить за {seconds} с. Попробуйте вопрос покороче или позже.",
    "failed": "Не получилось ответить: внутренняя ошибка. Попробуйте ещё раз.",
    "stopping": "Бот останавливается. Повторите вопрос позже.",
    "silent": "(модель промолчала)",
    "not_allowed": "Этот бот открыт не для всех. Ваш номер: {user}",
}

_EN: dict[str, str] = {
    "start": (
        "Hello! This is a demo of {model}: it solves the tasks of Russian SuperGLUE and talks a little. It reads and "
        "writes Russian.\n\n"
        "/tasks — ask a question of one of the nine tasks\n"
        "/compare — one question to two models: whole and 4-bit\n"
        "/query — ask the model anything\n"
        "/new_dialogue — start a dialogue\n"
        "/help — all commands"
    ),
    "help": (
        "Tasks\n"
        "/tasks — choose a task and ask\n"
        "/compare — one question to the whole and the 4-bit model\n"
        "/model — which model answers\n\n"
        "Dialogue\n"
        "/query text — one question, nothing kept\n"
        "/new_dialogue name — start a named dialogue\n"
        "/dialogues — your dialogues\n"
        "/open_dialogue — go on with a dialogue\n"
        "/remind_dialogue — the last turns\n"
        "/delete_dialogue — delete a dialogue\n\n"
        "/cancel — stop a question or an answer\n"
        "/forget_me — delete all the bot keeps about you\n\n"
        "The model is small and often wrong: this shows what it can do and is no reference book."
    ),
    "commands": (
        "tasks=Russian SuperGLUE tasks;compare=Whole and 4-bit model side by side;query=One question to the model;"
        "new_dialogue=Start a dialogue;dialogues=Your dialogues;open_dialogue=Go on with a dialogue;"
        "remind_dialogue=The last turns;delete_dialogue=Delete a dialogue;model=About the model;cancel=Stop;"
        "forget_me=Delete my data;help=Help"
    ),
    "unknown_command": "There is no such command. All commands: /help",
    "hint": "To ask something choose /tasks, /query or /new_dialogue.",
    "text_only": "I understand text only.",
    "choose_task": "Which task?",
    "choose_task_compare": "Which question shall both models answer?",
    "example": "An example",
    "cancel": "Cancel",
    "again": "Again",
    "other_task": "Another task",
    "asked": "{name}. {about}\n\n{ask}",
    "ask": "{ask}",
    "empty": "The message is empty. {ask}",
    "placeholder": "The sentence needs the gap @placeholder. {ask}",
    "entities": "Two or more choices are needed, separated by semicolons. {ask}",
    "stale": "This button no longer works. Start again: /tasks",
    "answer": "{task}\n\n{bars}\n\n{model}, {seconds}",
    "answer_of": "{model}, {seconds}\n{bars}",
    "gold": "Right answer: {gold}",
    "seconds": "{value} s",
    "milliseconds": "{value} ms",
    "model": "{name}\nbackend {backend}: {weights}, executed by {execution} on {device} ({dtype})\n\n{figures}",
    "score": "Russian SuperGLUE, {data}: {score}",
    "partial_score": "Mean of {count} tasks, {data}: {score}",
    "no_figures": "This model is not on the leaderboard yet.",
    "data": "{source}, validation{limit}",
    "official": "official data",
    "hub": "the hub's data",
    "mini": "mini set",
    "limit": ", at most {limit} documents a task",
    "ask_query": "What shall I ask the model?",
    "ask_name": "What shall the dialogue be called?",
    "name_taken": "You have a dialogue “{name}” already. Choose another name.",
    "name_long": "A name has at most {limit} characters.",
    "too_many_dialogues": "No more than {limit} dialogues are kept. Delete some: /delete_dialogue",
    "dialogue_opened": "Dialogue “{name}” is open. Write to me. To end it: /cancel",
    "dialogue_reopened": "Dialogue “{name}”, turns: {turns}. Write to me. To end it: /cancel",
    "dialogue_closed": "Dialogue “{name}” is closed; to go on: /open_dialogue",
    "no_dialogues": "No dialogues yet. Start one: /new_dialogue",
    "dialogues": "Your dialogues:\n{list}",
    "dialogue_row": "• {name} ({turns})",
    "choose_open": "Which dialogue?",
    "choose_delete": "Which dialogue shall be deleted?",
    "choose_remind": "Which dialogue?",
    "dialogue_missing": "You have no such dialogue.",
    "dialogue_deleted": "Dialogue “{name}” is deleted.",
    "no_turns": "Dialogue “{name}” has no turns yet.",
    "remind": "Dialogue “{name}”, the last turns:\n\n{turns}",
    "you": "You",
    "bot": "Model",
    "cancelled": "Stopped.",
    "nothing_to_cancel": "There is nothing to stop.",
    "forgotten": "All that was kept about you is deleted.",
    "busy_user": "I am still at your last question. To stop it: /cancel",
    "full": "Too many questions right now. Try again in a minute.",
    "too_often": "Too often: at most {limit} questions a minute. Wait {seconds} s.",
    "too_long": "Too long: {length} characters, {limit} are allowed.",
    "queued": "You are in the queue, place {place}…",
    "thinking": "Thinking…",
    "timeout": "The model did not answer within {seconds} s. Try a shorter question, or later.",
    "failed": "No answer because of an internal error. Please try again.",
    "stopping": "The bot is stopping. Please ask again later.",
    "silent": "(the model said nothing)",
    "not_allowed": "This bot is not open to everybody. Your id: {user}",
}

LANGUAGES: Mapping[str, Mapping[str, str]] = MappingProxyType({"ru": _RU, "en": _EN})

# task -> what it asks, and a request for each of its fields in the order of harness.evaluation.predict.FIELDS.
TASKS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "ru": {
            "lidirus": ("Следует ли второе предложение из первого?", "Первое предложение?", "Второе предложение?"),
            "rcb": ("Следует ли гипотеза из текста, противоречит ему или ни то ни другое?", "Текст?", "Гипотеза?"),
            "parus": (
                "Какое из двух предложений — причина или следствие данного?",
                "Исходное предложение?",
                "Что ищем?",
                "Первый вариант?",
                "Второй вариант?",
            ),
            "muserc": ("Верен ли ответ на вопрос к тексту?", "Текст?", "Вопрос?", "Ответ, который надо проверить?"),
            "terra": ("Следует ли гипотеза из текста?", "Текст?", "Гипотеза?"),
            "russe": (
                "В одном ли значении слово стоит в двух предложениях?",
                "Слово?",
                "Первое предложение?",
                "Второе предложение?",
            ),
            "rwsd": (
                "К этому ли слову относится местоимение?",
                "Предложение?",
                "Существительное или имя из него?",
                "Местоимение из него?",
            ),
            "danetqa": (
                "Да или нет: ответ на вопрос к тексту.",
                "Текст?",
                "Вопрос, на который отвечают да или нет?",
            ),
            "rucos": (
                "Кто или что пропущено в предложении?",
                "Текст?",
                "Предложение с пропуском @placeholder?",
                "Варианты через точку с запятой?",
            ),
        },
        "en": {
            "lidirus": ("Does the second sentence follow from the first?", "First sentence?", "Second sentence?"),
            "rcb": ("Does the hypothesis follow from the text, contradict it, or neither?", "Text?", "Hypothesis?"),
            "parus": (
                "Which of two sentences is the cause or the effect of a given one?",
                "Given sentence?",
                "What is asked for?",
                "First choice?",
                "Second choice?",
            ),
            "muserc": ("Is the answer to a question about a text right?", "Text?", "Question?", "Answer to check?"),
            "terra": ("Does the hypothesis follow from the text?", "Text?", "Hypothesis?"),
            "russe": (
                "Does a word have the same sense in two sentences?",
                "Word?",
                "First sentence?",
                "Second sentence?",
            ),
            "rwsd": (
                "Does the pronoun refer to this noun?",
                "Sentence?",
                "A noun or name in it?",
                "A pronoun in it?",
            ),
            "danetqa": ("Yes or no: a question about a text.", "Text?", "A question to be answered by yes or no?"),
            "rucos": (
                "Who or what is missing in the sentence?",
                "Text?",
                "A sentence with the gap @placeholder?",
                "Choices, separated by semicolons?",
            ),
        },
    }
)

# What the answers are called; PARus and RuCoS are answered with the user's own words.
CHOICES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "ru": {
            "entailment": "следует",
            "not_entailment": "не следует",
            "contradiction": "противоречит",
            "neutral": "ни то ни другое",
            "muserc 0": "неверно",
            "muserc 1": "верно",
            "russe false": "в разных",
            "russe true": "в одном",
            "rwsd False": "нет",
            "rwsd True": "да",
            "danetqa false": "нет",
            "danetqa true": "да",
            "cause": "причину",
            "effect": "следствие",
        },
        "en": {
            "entailment": "follows",
            "not_entailment": "does not follow",
            "contradiction": "contradicts",
            "neutral": "neither",
            "muserc 0": "wrong",
            "muserc 1": "right",
            "russe false": "different senses",
            "russe true": "same sense",
            "rwsd False": "no",
            "rwsd True": "yes",
            "danetqa false": "no",
            "danetqa true": "yes",
            "cause": "the cause",
            "effect": "the effect",
        },
    }
)


def language_of(code: str | None) -> str:
    """Which of our languages a user of this Telegram language reads."""
    return "ru" if code is None or code.split("-")[0].lower() in _RUSSIAN_READERS else "en"


def say(language: str, key: str, **values: object) -> str:
    """A text with its values. Values are put in as they are: what users write is never read as a pattern."""
    return LANGUAGES[language][key].format(**values)


def choice_name(language: str, task: str, label: str) -> str:
    """What an answer is called; the label itself where the user's own words are the answers."""
    names = CHOICES[language]
    return names.get(f"{task} {label}") or names.get(label, label)
