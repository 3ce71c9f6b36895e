"""Which latents are good to reconstruct from, and which to generate in."""
