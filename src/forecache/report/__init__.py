"""Figures and HTML pages of runs, benchmarks and measurements."""
