"""The one place that speaks SQL and Redis: the rows of the bridge, and its hot copies."""
