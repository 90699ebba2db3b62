"""The HTTP side: the chat page and its protocol, the REST API, health and metrics."""
