"""Laws of archirf_jax.conditioners."""
