"""Laws of archirf_jax.first_stages."""
