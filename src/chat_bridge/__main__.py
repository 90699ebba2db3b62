"""`python -m chat_bridge` is `chat-bridge`."""

from chat_bridge.cli import main

main()
