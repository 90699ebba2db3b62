"""A Telegram without Telegram: a process that speaks the Bot API to a bot, and lets tests or a page play its users.

`python -m tests.fake_telegram --help` tells how to start it. `client.py` is the Python client of its control API.
"""
