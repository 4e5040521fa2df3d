"""What the bot says in English; `harness.bot.texts` explains the tables."""

from __future__ import annotations

from typing import Any

COMMANDS: dict[str, str] = {
    "tasks": "Russian SuperGLUE tasks",
    "compare": "Original and 4-bit model side by side",
    "query": "One question to the model",
    "new_dialogue": "Start a dialogue",
    "dialogues": "Your dialogues",
    "open_dialogue": "Continue a dialogue",
    "remind_dialogue": "The last turns",
    "delete_dialogue": "Delete a dialogue",
    "model": "About the model",
    "language": "Change the language (сменить язык)",
    "cancel": "Stop",
    "forget_me": "Delete my data",
    "help": "Help",
}

TEXTS: dict[str, str] = {
    "start": (
        "Hello! This is a demo of {model}: it solves the tasks of Russian SuperGLUE and talks a little. It reads and "
        "writes Russian.\n\n"
        "/tasks — choose a task and ask a question\n"
        "/compare — one question to two models: the original and the 4-bit one\n"
        "/query — ask the model anything\n"
        "/new_dialogue — start a dialogue\n"
        "/language — change the language (сменить язык)\n"
        "/help — all commands"
    ),
    "help": (
        "Tasks\n"
        "/tasks — choose a task and ask a question\n"
        "/compare — one question to the original and the 4-bit model\n"
        "/model — which model answers\n\n"
        "Dialogue\n"
        "/query text — one question, nothing kept\n"
        "/new_dialogue name — start a named dialogue\n"
        "/dialogues — your dialogues\n"
        "/open_dialogue — continue a dialogue\n"
        "/remind_dialogue — the last turns\n"
        "/delete_dialogue — delete a dialogue\n\n"
        "/language — change the language (сменить язык)\n"
        "/cancel — stop a question or an answer\n"
        "/forget_me — delete everything the bot stores about you\n\n"
        "The model is small and often wrong: the bot shows what it can do and is not a reference book."
    ),
    "unknown_command": "There is no such command. All commands: /help",
    "hint": "To ask something, choose /tasks, /query or /new_dialogue.",
    "text_only": "I understand text only.",
    "choose_language": "Which language should I write in?",
    "language_set": "I write in English now.",
    "choose_task": "Which task?\n\n{tasks}",
    "choose_task_compare": "Which question should both models answer?\n\n{tasks}",
    "task_row": "{name} — {gloss}",
    "no_comparison": "There is nothing to compare with: this model's original, unquantised weights are not here.",
    "example": "An example",
    "cancel": "Cancel",
    "again": "Again",
    "other_task": "Another task",
    "asked": "{name}. {about}\n\n{ask}",
    "asked_unknown": "{name}\n\n{ask}",
    "ask": "{ask}",
    "send": "Send the field “{field}”.",
    "send_with_help": "Send the field “{field}” ({help}).",
    "empty": "The message is empty. {ask}",
    "must_contain": "{part} is missing. {ask}",
    "too_few": "Two or more choices are needed, separated by semicolons. {ask}",
    "stale": "This button no longer works. Start again: /tasks",
    "answer": "{task}\n\n{bars}\n\n{model}, {seconds}",
    "answer_of": "{model}, {seconds}\n{bars}",
    "gold": "Right answer: {gold}",
    "decimal_point": ".",
    "seconds": "{value} s",
    "milliseconds": "{value} ms",
    "model": "{name}\nbackend {backend}: {weights}, executed by {execution} on {device} ({dtype})\n\n{scores}",
    "score": "Russian SuperGLUE, {data}: {score}",
    "partial_score": "Mean of {count} tasks, {data}: {score}",
    "no_scores": "This model is not on the leaderboard yet.",
    "data": "{source}, validation{limit}",
    "official": "official data",
    "hub": "data from Hugging Face",
    "mini": "mini set",
    "limit": ", at most {limit} documents per task",
    "ask_query": "What should I ask the model?",
    "ask_name": "What should the dialogue be called?",
    "name_taken": "You already have a dialogue “{name}”. Choose another name.",
    "name_long": "A name has at most {limit} characters.",
    "too_many_dialogues": "No more than {limit} dialogues are kept. Delete some: /delete_dialogue",
    "dialogue_opened": "Dialogue “{name}” is open. Write to me. To end it: /cancel",
    "dialogue_reopened": "Dialogue “{name}”, turns: {turns}. Write to me. To end it: /cancel",
    "dialogue_closed": "Dialogue “{name}” is closed; to continue: /open_dialogue",
    "no_dialogues": "No dialogues yet. Start one: /new_dialogue",
    "dialogues": "Your dialogues:\n{list}",
    "dialogue_row": "• {name} ({turns})",
    "choose_open": "Which dialogue should be continued?",
    "choose_delete": "Which dialogue should be deleted?",
    "choose_remind": "Which dialogue should be shown?",
    "dialogue_missing": "You have no such dialogue.",
    "dialogue_deleted": "Dialogue “{name}” is deleted.",
    "no_turns": "Dialogue “{name}” has no turns yet.",
    "remind": "Dialogue “{name}”, the last turns:\n\n{turns}",
    "you": "You",
    "bot": "Model",
    "cancelled": "Stopped.",
    "nothing_to_cancel": "There is nothing to stop.",
    "forgotten": "Everything the bot stored about you is deleted.",
    "busy_user": "I am still answering your last question. To stop it: /cancel",
    "full": "Too many questions right now. Try again in a minute.",
    "too_often": "Too often: at most {limit} questions a minute. Wait {seconds} s.",
    "too_long": "Too long: {length} characters, {limit} are allowed.",
    "queued": "You are in the queue, place {place}…",
    "thinking": "Thinking…",
    "timeout": "The model did not answer within {seconds} s. Try a shorter question, or try later.",
    "failed": "No answer because of an internal error. Please try again.",
    "stopping": "The bot is stopping. Please ask again later.",
    "silent": "(the model said nothing)",
    "not_allowed": "This bot is not open to everybody. Your id: {user}",
}

TASKS: dict[str, dict[str, Any]] = {
    "lidirus": {
        "gloss": "does one sentence follow from another (a diagnostic set)",
        "about": "Does the second sentence follow from the first?",
        "fields": {
            "sentence1": ("Send the first sentence.", "First sentence"),
            "sentence2": ("Send the second sentence.", "Second sentence"),
        },
        "names": {"entailment": "follows", "not_entailment": "does not follow"},
    },
    "rcb": {
        "gloss": "does a hypothesis follow from a text or contradict it",
        "about": "Does the hypothesis follow from the text, contradict it, or neither?",
        "fields": {
            "premise": ("Send the text.", "Text"),
            "hypothesis": ("Send the hypothesis.", "Hypothesis"),
        },
        "names": {"entailment": "follows", "contradiction": "contradicts", "neutral": "neither"},
    },
    "parus": {
        "gloss": "which of two sentences is the likelier cause or effect",
        "about": "Which is likelier: the first choice or the second?",
        "fields": {
            "premise": ("Send the given sentence.", "Given sentence"),
            "question": ("What is asked for: the cause or the effect?", "Asked for"),
            "choice1": ("Send the first choice.", "First choice"),
            "choice2": ("Send the second choice.", "Second choice"),
        },
        "names": {"cause": "the cause", "effect": "the effect"},
    },
    "muserc": {
        "gloss": "is the answer to a question about a text right",
        "about": "Is the answer to a question about a text right?",
        "fields": {
            "paragraph": ("Send the text.", "Text"),
            "question": ("Send the question about the text.", "Question"),
            "answer": ("Send the answer to check.", "Answer"),
        },
        "names": {"0": "wrong", "1": "right"},
    },
    "terra": {
        "gloss": "does a hypothesis follow from a text",
        "about": "Does the hypothesis follow from the text?",
        "fields": {
            "premise": ("Send the text.", "Text"),
            "hypothesis": ("Send the hypothesis.", "Hypothesis"),
        },
        "names": {"entailment": "follows", "not_entailment": "does not follow"},
    },
    "russe": {
        "gloss": "does a word have the same sense in two sentences",
        "about": "Does the word have the same sense in both sentences?",
        "fields": {
            "word": ("Which word? Send its dictionary form.", "Word"),
            "sentence1": ("Send the first sentence with this word.", "First sentence"),
            "sentence2": ("Send the second sentence with this word.", "Second sentence"),
        },
        "names": {"false": "different senses", "true": "same sense"},
    },
    "rwsd": {
        "gloss": "which noun does a pronoun refer to",
        "about": "Does the pronoun refer to the given noun?",
        "fields": {
            "text": ("Send the sentence.", "Sentence"),
            "span1_text": ("Which noun may the pronoun refer to? Send it as the sentence has it.", "Noun"),
            "span2_text": ("Send the pronoun as the sentence has it.", "Pronoun"),
        },
        "names": {"False": "no", "True": "yes"},
    },
    "danetqa": {
        "gloss": "a yes-or-no question about a text",
        "about": "Yes or no: a question about a text.",
        "fields": {
            "passage": ("Send the text.", "Text"),
            "question": ("Send a question that is answered by yes or no.", "Question"),
        },
        "names": {"false": "no", "true": "yes"},
    },
    "rucos": {
        "gloss": "which name is missing",
        "about": "Which name is missing in the sentence?",
        "fields": {
            "passage": ("Send the text.", "Text"),
            "query": ("Send a sentence with @placeholder in place of the missing name.", "Sentence"),
            "entities": ("Send the choices, separated by semicolons.", "Choices"),
        },
        "names": {},
    },
}
