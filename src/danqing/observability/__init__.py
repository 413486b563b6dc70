"""Logs and metrics. Knows nothing of what is being measured but names and numbers."""
