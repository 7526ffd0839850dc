"""Bytes to data and back. Nothing of caching is known here."""
