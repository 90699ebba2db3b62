"""Where messages come from and replies go: one package for each platform. They know nothing of storage."""
