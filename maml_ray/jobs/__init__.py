"""Submit runs to a Ray cluster as jobs, and check whether a cluster can run them."""
