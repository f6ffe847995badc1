"""Benchmarks: every figure a ratio, both sides measured in the same run, interleaved."""
