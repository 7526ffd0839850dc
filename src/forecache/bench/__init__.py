"""Timing of plans on models: seconds, MACs and memory, in turn, so that their ratios can be trusted."""
