"""Import and export: conversations of other programs in, sessions out."""
