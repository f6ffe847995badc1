"""Plot a run: its training and its evaluation."""
