"""Numba loops: arrays in, arrays out; no settings and no objects."""
