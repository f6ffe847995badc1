"""Serve a trained policy over HTTP: it acts, and adapts to tasks and to callers' data."""
