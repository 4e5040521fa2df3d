"""The demo of a model in a chat: Telegram, or the terminal."""
