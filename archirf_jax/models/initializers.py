"""Values that parameters begin with: (key, shape, dtype = float32) -> array; shapes are (..., in, out)."""

from __future__ import annotations

from flax.linen import initializers

zeros, ones = initializers.zeros_init(), initializers.ones_init()
xavier = initializers.xavier_uniform()
lecun, kaiming = initializers.lecun_normal(), initializers.kaiming_normal()
# Uniform between +-1/sqrt(fan in), as published networks begin.
uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
small_normal, unit_normal = initializers.normal(0.02), initializers.normal(1.0)
