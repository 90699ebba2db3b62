"""The path of a message, in this order: receive, resolve, claim, answer, deliver."""
