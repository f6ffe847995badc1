"""Task distributions: a module for each family, with its environments."""
