"""Laws of archirf_jax.samplers."""
