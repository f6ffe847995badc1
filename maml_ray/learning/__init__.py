"""A rollout worker and a learner, without Ray."""
