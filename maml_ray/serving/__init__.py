"""A trained policy behind HTTP."""
