"""A teacher's answers, from any OpenAI-compatible server, kept line by line to train a smaller model on."""
