"""What knows nothing of reinforcement learning: errors, files, seeds, signals."""
