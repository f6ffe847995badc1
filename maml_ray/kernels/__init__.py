"""Numba kernels: arrays in, arrays out, without settings or objects."""
