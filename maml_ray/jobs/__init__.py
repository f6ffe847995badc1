"""Submitting runs to a Ray cluster, and checking that it can run them."""
