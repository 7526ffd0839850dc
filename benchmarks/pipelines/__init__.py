"""Small pipelines of diffusers, and what a plan does to them: the rows of `benchmarks/sweep.py`."""
