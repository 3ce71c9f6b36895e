"""Laws of archirf_jax.visuals."""
