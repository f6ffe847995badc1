"""A policy as a service: everything of it that is not Ray."""
