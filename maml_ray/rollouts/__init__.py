"""Roll out a policy in an environment, and compute the advantages of its trajectories."""
