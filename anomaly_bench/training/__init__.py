"""Runs what a detector says of its own learning: device, precision, batches, progress, checkpoints, scoring."""
