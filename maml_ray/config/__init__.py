"""Read ``deploy.yaml`` into frozen, validated settings."""
