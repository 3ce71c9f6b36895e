"""The same flow in latents and in pixels, at equal time."""
