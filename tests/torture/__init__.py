"""Torture: a whole bridge under faults, and a checker that looks whether its promises were kept."""
