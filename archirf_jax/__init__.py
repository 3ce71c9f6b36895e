"""archirf_jax: train, sample and judge diffusion and rectified-flow image models in JAX."""
