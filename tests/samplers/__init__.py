"""Tests of archirf_jax.samplers, and the closed forms that they use."""
