"""Policy times environment to trajectories with advantages."""
