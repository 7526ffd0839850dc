"""Files and bytes as data: nothing of caching is known here."""
