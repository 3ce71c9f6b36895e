"""Questions about the field, each asked and answered in a folder of its own."""
