"""General helpers without reinforcement learning: errors, files, seeds, signals."""
