"""Laws of archirf_jax.models."""
