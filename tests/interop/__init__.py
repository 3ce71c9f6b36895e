"""Laws of archirf_jax.interop."""
