"""deploy.yaml to frozen settings."""
