"""Images sampled from models: one batch, many batches in shards, by one process or many."""

from forecache.sampling.shards import Sampled, sample_shards

__all__ = ["Sampled", "sample_shards"]
