"""Task distributions: what they are, how settings name them, and those that are built in."""
