"""Data: sources, order, decoding, feeds, and this project's TFDS builders."""
