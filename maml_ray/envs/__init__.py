"""Batches of simulations with Gymnasium's vector interface, and locomotion environments."""
