"""A training run on Ray: actors, work queue, fault handling."""
