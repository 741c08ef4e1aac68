"""Benchmarks, and later sweeps and the paper's tables. Import its modules; this file loads nothing."""
