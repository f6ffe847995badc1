"""What a person sees of a run: progress, metrics, plots, the report."""
