"""Trained agents: load, adapt, evaluate, record and export them."""
