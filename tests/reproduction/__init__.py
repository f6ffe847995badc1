"""The papers' experiments: train them, evaluate them by one protocol, draw them side by side."""
