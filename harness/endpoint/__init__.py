"""Models behind OpenAI-compatible servers: the connection, the shapes of answers, many questions at a time."""
