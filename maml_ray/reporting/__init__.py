"""Output for people: progress display, metric logs, plots, reports, comparisons."""
