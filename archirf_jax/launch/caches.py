"""What was computed of a training's data beforehand, latents and states of texts, and the frozen runs that made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archirf_jax.contracts import Frozen
from archirf_jax.launch import latents, text_caches
from archirf_jax.launch.runs import Run


def fit(config: Any, runs: Mapping[str, Run]) -> None:
    """Take what the caches decide that a configuration trains on.

    Raises:
        UserError: as `latents.fit` and `text_caches.fit`.
    """
    latents.fit(config, runs)
    text_caches.fit(config, runs)


def frozen_params(config: Any, runs: Mapping[str, Run]) -> Frozen:
    """The parameters of frozen runs, by name, as a training takes them: those of a cached text encoder are left out."""
    nulls = text_caches.nulls(config)
    return {name: nulls[name] if name in nulls else run.params for name, run in runs.items()}


def frozen_shapes(config: Any, runs: Mapping[str, Run]) -> Frozen:
    """Shapes of what `frozen_params` gives, in its types; parameters are read where nothing else knows them."""
    nulls = text_caches.nulls(config)
    return {name: nulls[name] if name in nulls else run.shapes or run.params for name, run in runs.items()}
