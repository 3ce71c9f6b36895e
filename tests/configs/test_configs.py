"""Every configuration loads, locks, builds, and gives a loss, without allocating its network."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from archirf_jax import processes, registry, tasks
from archirf_jax.data.pipeline import Batch
from archirf_jax.launch import config as configuration
from configs import dit_rf

FOLDER = pathlib.Path(dit_rf.__file__).parent
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("__init__", "default")}
CASES = [(name, variant) for name in FILES for variant in dit_rf.VARIANTS]


def load(name: str, *variant: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FILES[name])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*variant)


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_it_loads_locks_builds_and_gives_a_loss(name: str, variant: str) -> None:
    config = load(name, variant)
    configuration.check(config)
    with pytest.raises(AttributeError):
        config.stepz = 3
    config.data.num_classes = 10
    config.model.depth = 1  # all blocks are alike, and each takes its time

    task = registry.build(tasks, "config.task", config.task, {"config": config})
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((2, size, size, config.data.channels), jnp.float32)
    batch = Batch(image, jax.ShapeDtypeStruct((2,), jnp.int32))  # type: ignore[arg-type]
    state = jax.eval_shape(task.init, jax.random.key(0))
    after, metrics = jax.eval_shape(task.step, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.ema)))


@pytest.mark.parametrize("name", FILES)
def test_digits_are_the_default(name: str) -> None:
    assert load(name).to_dict() == load(name, "digits").to_dict()


@pytest.mark.parametrize("variant", dit_rf.VARIANTS)
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"dit_rf"}))
def test_the_others_differ_from_dit_rf_in_process_sampler_and_learned_variance_alone(name: str, variant: str) -> None:
    ours, first = (dict(configuration.leaves(load(file, variant))) for file in (name, "dit_rf"))
    differing = {field for field in ours.keys() | first.keys() if ours.get(field) != first.get(field)}
    assert all(field.startswith(("process.", "sample.")) for field in differing - {"model.learn_sigma"}), differing
    assert ours["process.condition_dropout"] == first["process.condition_dropout"]


@pytest.mark.parametrize("name", FILES)
def test_every_field_of_the_process_is_listed(name: str) -> None:
    fields = load(name).process.to_dict()
    process = registry.build(processes, "config.process.name", fields.pop("name"), fields)
    assert set(fields) == {field.name for field in dataclasses.fields(process)}


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_variant_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match="digits, mnist, cifar10, openmoji, imagenet64"):
        load(name, "cifar")
