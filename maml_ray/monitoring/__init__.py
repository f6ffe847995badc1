"""Publish a run's status and metrics, and find the runs on a cluster."""
