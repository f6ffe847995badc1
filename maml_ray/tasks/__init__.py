"""Task distributions: what is to be learned, one module a family."""
