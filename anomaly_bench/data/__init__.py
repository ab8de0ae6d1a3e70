"""Data sets: each loader reads one kind of source into a `Dataset` in memory."""
