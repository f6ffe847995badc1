"""Train, resume, evaluate, adapt, follow and tune runs."""
