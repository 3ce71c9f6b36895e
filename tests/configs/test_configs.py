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
from archirf_jax.models.dit import MODULATIONS
from configs import dit_rf

FOLDER = pathlib.Path(dit_rf.__file__).parent
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("__init__", "default")}
DESIGNS = "dit_designs_rf"
VARIANTS = {name: list(MODULATIONS if name == DESIGNS else dit_rf.VARIANTS) for name in FILES}
CASES = [(name, variant) for name in FILES for variant in VARIANTS[name]]
# Fields in which the others may differ from dit_rf: what their names say.
NETWORK = ("model.", "optimizer.")
EDM2 = ("schedule.", "ema.stds", "ema.snapshot_steps")  # how it is published to be trained
DIFFERING = {
    "dit_ddpm": ("process.", "sample.", "model.learn_sigma"),
    "dit_edm": ("process.", "sample."),
    "mmdit_rf": ("model.",),
    "adm_ddpm": ("process.", "sample.", "model."),
    "adm_classifier": ("process.", "sample.", "task", *NETWORK),
    "edm2_edm": ("process.", "sample.", *NETWORK, *EDM2),
    "edm2_rf": (*NETWORK, *EDM2),
}
# All blocks and levels are alike, and each takes its time.
SHALLOW = {
    **{"depth": 1, "depth_single": 1, "num_res_blocks": 1, "num_blocks": 1},
    **{"channel_mult": (1, 2), "attention_downsamples": (2,), "attention_levels": (1,)},
}


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
    config.model.update({field: value for field, value in SHALLOW.items() if field in config.model})

    task = registry.build(tasks, "config.task", config.task, {"config": config})
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((2, size, size, config.data.channels), jnp.float32)
    batch = Batch(image, jax.ShapeDtypeStruct((2,), jnp.int32))  # type: ignore[arg-type]
    state = jax.eval_shape(task.init, jax.random.key(0))
    after, metrics = jax.eval_shape(task.step, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {(leaf.shape, leaf.dtype.name) for leaf in metrics.values()} == {((2,), "float32")}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((after.params, after.ema)))


@pytest.mark.parametrize("name", FILES)
def test_the_first_variant_is_the_default(name: str) -> None:
    default = "adaln_zero" if name == DESIGNS else "digits"
    assert load(name).to_dict() == load(name, default).to_dict()


@pytest.mark.parametrize("variant", dit_rf.VARIANTS)
@pytest.mark.parametrize("name", sorted(FILES.keys() - {"dit_rf", DESIGNS}))
def test_the_others_differ_from_dit_rf_in_what_their_names_say_alone(name: str, variant: str) -> None:
    ours, first = (dict(configuration.leaves(load(file, variant))) for file in (name, "dit_rf"))
    differing = {field for field in ours.keys() | first.keys() if ours.get(field) != first.get(field)}
    assert all(field.startswith(DIFFERING[name]) for field in differing), differing
    assert ours["process.condition_dropout"] == first["process.condition_dropout"]


@pytest.mark.parametrize("design", MODULATIONS)
def test_the_designs_differ_in_the_design_alone(design: str) -> None:
    expected = load("dit_rf").to_dict()
    expected["model"]["conditioning"] = design
    assert load(DESIGNS, design).to_dict() == expected


@pytest.mark.parametrize("variant", dit_rf.VARIANTS)
def test_networks_have_registers_and_normed_queries_and_keys(variant: str) -> None:
    for name in ("dit_rf", "mmdit_rf"):
        assert (load(name, variant).model.registers, load(name, variant).model.qk_norm) == (4, "rms")


@pytest.mark.parametrize("name", FILES)
def test_every_field_of_the_process_is_listed(name: str) -> None:
    fields = load(name).process.to_dict()
    process = registry.build(processes, "config.process.name", fields.pop("name"), fields)
    assert set(fields) == {field.name for field in dataclasses.fields(process)}


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_variant_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=", ".join(VARIANTS[name])):
        load(name, "cifar")
