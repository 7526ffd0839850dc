"""Images sampled from models: one batch, many batches in shards, by one process or many."""

from forecache.sampling.fine import Converged, converged
from forecache.sampling.shards import Sampled, sample_shards

__all__ = ["Converged", "Sampled", "converged", "sample_shards"]
