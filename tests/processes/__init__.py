"""Laws of archirf_jax.processes."""
