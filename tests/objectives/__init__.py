"""Laws of archirf_jax.objectives."""
