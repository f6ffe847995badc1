"""Batches of simulations behind the Gymnasium vector interface."""
