"""Functions from records to batches, which can be combined."""
