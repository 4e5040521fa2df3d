"""A teacher's answers, from any OpenAI-compatible server, kept line by line for the training of a smaller model."""
