"""OpenAI-compatible endpoints over sockets of our own: what stands between a token and its time is kept short."""
