"""Timing of plans on models: latency, MACs and peak memory, measured in alternating rounds."""
