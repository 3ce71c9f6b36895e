"""Laws of archirf_jax.evaluation."""
