"""A trained agent, and how good it is."""
