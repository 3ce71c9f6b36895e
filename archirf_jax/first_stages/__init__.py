"""What is diffused in place of the image, one kind a file, found by the file's name."""
