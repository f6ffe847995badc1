"""A run seen from outside: status, metrics, registry."""
