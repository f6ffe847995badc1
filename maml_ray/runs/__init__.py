"""The verbs: train, resume, evaluate, adapt, follow, tune."""
