"""One file for each model family whose branches are known; one row of a table where whole blocks are enough."""
