"""The built-in families of tasks, one module each."""
