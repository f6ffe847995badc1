"""Checkpoints, run directories and storage."""
