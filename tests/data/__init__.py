"""Tests of archirf_jax.data and of preparing data."""
