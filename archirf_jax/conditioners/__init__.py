"""What networks are conditioned on, one kind a file, found by the file's name: from a batch to a condition."""
