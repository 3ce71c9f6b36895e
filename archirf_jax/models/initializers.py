"""Values that parameters begin with: (key, shape, dtype = float32) -> array.

Flax asks an initializer for the shape of its parameter whenever a module is used. Each is a compiled function here, so
that it is traced once for a shape and not at every use, which takes a third of the time to trace a small network.
"""

from __future__ import annotations

import flax.linen as nn
import jax


def traced_once(init: nn.initializers.Initializer) -> nn.initializers.Initializer:
    """The same values; shape and dtype are given by position."""
    return jax.jit(init, static_argnums=(1, 2))


zeros, ones = traced_once(nn.initializers.zeros_init()), traced_once(nn.initializers.ones_init())
xavier = traced_once(nn.initializers.xavier_uniform())
lecun = traced_once(nn.initializers.lecun_normal())
kaiming = traced_once(nn.initializers.kaiming_normal())
# Uniform between +-1/sqrt(fan in), as published networks begin.
uniform = traced_once(nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))
small_normal, unit_normal = (traced_once(nn.initializers.normal(deviation)) for deviation in (0.02, 1.0))
