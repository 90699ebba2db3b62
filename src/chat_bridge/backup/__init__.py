"""Backups: made, listed, verified, restored, pruned, and made again every so many hours."""
