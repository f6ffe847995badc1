"""Policies as data, and acting with them in NumPy."""
