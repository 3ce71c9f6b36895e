"""Every configuration loads, locks, builds, and gives a loss, without allocating its network."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from archirf_jax import processes, registry
from archirf_jax.data.fields import shapes
from archirf_jax.errors import UserError
from archirf_jax.launch import fields
from archirf_jax.launch.defaults import defaults
from archirf_jax.launch.overrides import load_file
from archirf_jax.models.bert import BERT
from archirf_jax.models.dit import MODULATIONS
from archirf_jax.tasks.building import make_task
from configs import default

FOLDER = pathlib.Path(default.__file__).parent
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.py")) if path.stem not in ("__init__", "default")}
DESIGNS = "dit_designs_rf"
OTHER_TASKS = ("autoencoder", "autoencoder_kl", "autoencoder_vq")  # which share nothing but the data with dit_rf
LATENT = ("captions_latent_rf", "dit_latent_rf", "mmdit_latent_rf")  # in latents of configurations of "autoencoder"
TEXT = ("scenes_rf", "adm_text_ddpm")  # on captions
OWN_VARIANTS = {
    DESIGNS: list(MODULATIONS),
    "captions_latent_rf": ["openmoji"],
    "scenes_rf": ["scenes", "words", "minilm", "cached"],
    "adm_text_ddpm": ["scenes"],
}
VARIANTS = {name: OWN_VARIANTS.get(name, list(default.DATA)) for name in FILES}
# Fields in which the others may differ from dit_rf: what their names say.
NOISE = ("process.", "objective.", "sample.")
NETWORK = ("model.", "optimizer.")
EDM2 = ("schedule.", "ema.sigma_rel", "ema.snapshot_steps")  # how it is published to be trained
DIFFERING = {
    "dit_ddpm": (*NOISE, "model.learn_sigma"),
    "dit_edm": NOISE,
    "mmdit_rf": ("model.",),
    "adm_ddpm": (*NOISE, "model."),
    "adm_classifier": (*NOISE, "task", *NETWORK),
    "edm2_edm": (*NOISE, *NETWORK, *EDM2),
    "edm2_rf": (*NETWORK, *EDM2),
}
# All blocks and levels are alike, and each takes its time.
SHALLOW = {
    **{"depth": 1, "depth_single": 1, "num_res_blocks": 1, "num_blocks": 1, "layers_per_block": 1},
    **{"channel_mult": (1, 2), "attention_downsamples": (2,), "attention_levels": (1,)},
}


def load(name: str, *variant: str) -> Any:
    return load_file(":".join([str(FILES[name]), *variant]))


@functools.cache
def built(name: str, variant: str) -> tuple[Any, Any]:
    """The task of a configuration, whose network is shallow, and the shapes of its state."""
    config = load(name, variant)
    with pytest.raises(AttributeError):
        config.stepz = 3
    fields.check(config)
    config.data.num_classes = 10
    config.model.update({field: value for field, value in SHALLOW.items() if field in config.model})
    runs = dict.fromkeys(config.frozen)
    if name in LATENT:
        runs |= _latents(config, variant)
    if "text" in config.frozen:
        runs |= _encoder()
    task = make_task(config, runs)
    return task, jax.eval_shape(task.init, jax.random.key(0), getattr(task, "frozen_shapes", {}))


def _latents(config: Any, variant: str) -> dict[str, Any]:
    """The run of the autoencoder; the configuration gets what a cache decides."""
    task, state = built("autoencoder", variant)
    with config.unlocked(), config.ignore_type():
        config.data.fields.moments = ConfigDict({"name": "latents", "shape": task.latent_shape})
        if "text" in config.data.fields:
            config.data.fields.text.length = config.conditioners.text.length = 16
        config.first_stage.mean = config.first_stage.std = (1.0,) * task.latent_shape[-1]
    return {"autoencoder": types.SimpleNamespace(task=task, shapes=state.networks["model"].params)}


def _encoder() -> dict[str, Any]:
    """The run of MiniLM."""
    model = BERT.preset("MiniLM-L6")
    ids = jax.ShapeDtypeStruct((1, 16), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), ids)["params"]
    group = ConfigDict({"tokenizer": {"length": 256, "pad_id": 0, "empty": (101, 102), "digest": ""}})
    run = types.SimpleNamespace(task=types.SimpleNamespace(model=model), shapes={"model": params}, config=group)
    return {"text": run}


# A set of images has the network of the first one, and each takes a third of a second.
CASES = [
    pytest.param(name, variant, marks=[pytest.mark.slow] * (name not in OWN_VARIANTS and variant != VARIANTS[name][0]))
    for name in FILES
    for variant in VARIANTS[name]
]


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_it_loads_locks_and_builds(name: str, variant: str) -> None:
    _, state = built(name, variant)
    for network in state.networks.values():
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((network.params, network.averages)))


@pytest.mark.parametrize("name", FILES)
def test_it_gives_a_loss(name: str) -> None:
    task, state = built(name, VARIANTS[name][0])

    def losses(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
        parts = {each: task.losses(state, frozen, batch, key, each) for each in task.updates}
        return [of(state.networks[each].params, drawn, 0)[0] for each, (drawn, of) in parts.items()]

    frozen = getattr(task, "frozen_shapes", {})
    found = jax.eval_shape(losses, state, frozen, shapes(task.fields, 2), jax.random.key(0))
    assert {(leaf.shape, leaf.dtype.name) for leaf in found} == {((2,), "float32")}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_step_keeps_the_form_of_the_state(name: str) -> None:
    task, state = built(name, VARIANTS[name][0])
    frozen = getattr(task, "frozen_shapes", {})
    after, metrics = jax.eval_shape(task.step, state, frozen, shapes(task.fields, 2), jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {(leaf.shape, leaf.dtype.name) for leaf in metrics.values()} == {((2,), "float32")}


@pytest.mark.parametrize("name", FILES)
def test_the_first_variant_is_the_default(name: str) -> None:
    assert load(name).to_dict() == load(name, VARIANTS[name][0]).to_dict()


@pytest.mark.parametrize("variant", default.DATA)
@pytest.mark.parametrize("name", DIFFERING)
def test_the_others_differ_from_dit_rf_in_what_their_names_say_alone(name: str, variant: str) -> None:
    ours, first = (dict(fields.leaves(load(file, variant))) for file in (name, "dit_rf"))
    differing = {field for field in ours.keys() | first.keys() if ours.get(field) != first.get(field)}
    assert all(field.startswith(DIFFERING[name]) for field in differing), differing


def test_every_configuration_is_compared_with_dit_rf() -> None:
    assert DIFFERING.keys() | {"dit_rf", DESIGNS, *OTHER_TASKS, *LATENT, *TEXT} == FILES.keys()


@pytest.mark.parametrize("design", MODULATIONS)
def test_the_designs_differ_in_the_design_alone(design: str) -> None:
    expected = load("dit_rf").to_dict()
    expected["model"]["conditioning"] = design
    assert load(DESIGNS, design).to_dict() == expected


@pytest.mark.parametrize("name", FILES)
def test_every_field_of_the_process_is_listed(name: str) -> None:
    given = load(name).process.to_dict()
    process = registry.build(processes, "process", given.pop("name"), given)
    assert set(given) == {field.name for field in dataclasses.fields(process)}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("variant", ["", "cifar"])
def test_a_wrong_variant_is_refused_in_one_line_with_the_right_ones(name: str, variant: str) -> None:
    with pytest.raises(UserError) as caught:
        load(name, variant)
    message = str(caught.value)
    assert caught.value.field == "config" and "\n" not in message and len(message) < 300
    assert all(other in message for other in VARIANTS[name])


def test_every_field_has_a_type_and_a_range() -> None:
    listed = {field for field, _ in fields.leaves(default.get_config()) if not fields.is_free(field)}
    assert listed == fields.FIELDS.keys()


def test_the_package_has_the_same_defaults() -> None:
    ours, theirs = (dict(fields.leaves(config)) for config in (default.get_config(), defaults()))
    assert {name: ours[name] for name in fields.FIELDS} == {name: theirs[name] for name in fields.FIELDS}
