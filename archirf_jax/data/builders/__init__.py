"""This project's own TFDS builders; importing one makes its name known to TFDS. None needs TensorFlow."""

# Built without a download; the module of the same name holds the builder.
EMBEDDED = ("digits", "openmoji", "scenes")
