"""Telegram: bots, by long polling or webhook."""
