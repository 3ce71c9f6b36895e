"""Every configuration loads, locks, builds, and gives a loss, without allocating its network."""

from __future__ import annotations

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from archirf_jax import registry, tasks
from archirf_jax.data.pipeline import Batch
from archirf_jax.launch import config as configuration
from configs import dit_rf

FOLDER = pathlib.Path(dit_rf.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "default"))
CASES = [(path, variant) for path in FILES for variant in ("", *getattr(dit_rf, "VARIANTS", ()))]


@pytest.mark.parametrize(("path", "variant"), CASES, ids=lambda value: getattr(value, "stem", value or "default"))
def test_it_loads_locks_builds_and_gives_a_loss(path: pathlib.Path, variant: str) -> None:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*([variant] if variant else []))
    configuration.check(config)
    with pytest.raises(AttributeError):
        config.stepz = 3
    config.data.num_classes = 10

    task = registry.build(tasks, "config.task", config.task, {"config": config})
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((2, size, size, config.data.channels), jnp.float32)
    batch = Batch(image, jax.ShapeDtypeStruct((2,), jnp.int32))  # type: ignore[arg-type]
    state = jax.eval_shape(task.init, jax.random.key(0))
    after, metrics = jax.eval_shape(task.step, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.ema)))


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="digits, mnist, cifar10, openmoji, imagenet64"):
        dit_rf.get_config("cifar")
