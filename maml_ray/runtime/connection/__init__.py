"""Join a Ray cluster, and notice that it is lost."""
