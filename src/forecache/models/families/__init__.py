"""The built-in model families: one file each, or one row of `whole_blocks` where whole blocks are enough.

A file ends with ``FAMILIES``, a tuple of `forecache.models.family.Family`, which `forecache.models.registry` collects.
"""
