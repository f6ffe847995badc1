"""The policy as data, and acting with it in NumPy."""
