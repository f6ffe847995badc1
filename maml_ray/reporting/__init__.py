"""What a person looks at: progress, metrics, plots, reports."""
