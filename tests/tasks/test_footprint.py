"""The memory that is planned is the memory that XLA's program of a training takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax import sharding
from archirf_jax.data.fields import shapes
from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.tasks import footprint
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.footprint import Memory, MemoryPlan, changed, held, measure
from archirf_jax.training import devices
from archirf_jax.training.step_runner import StepRunner
from configs import dit_rf

PLAIN = MemoryPlan(remat=False, accumulation=1, fsdp=1)
H100, TPU = devices.find("h100"), devices.find("tpu-v4")


def configuration(variant: str = "digits", **fields: Any) -> Any:
    """A real one; the number of classes is what the data would have decided."""
    known = {"data.num_classes": 10} | {name.replace("__", "."): value for name, value in fields.items()}
    return changed(dit_rf.get_config(variant), known)


# Fields of networks and optimizers that compile sooner.
BARE = {"model__qk_norm": None, "model__registers": 0, "optimizer__clip_norm": None}


def small(**fields: Any) -> Any:
    """One that compiles at once."""
    return configuration(**BARE | {"model__depth": 3, "model__scan": True, "batch_size": 32} | fields)


class Given:
    """A feed whose chunk is the batch."""

    dispatch = 4

    def batch(self, chunk: Any, i: Any, key: Any) -> Any:
        return chunk


def by_xla(config: Any, way: MemoryPlan, number: int) -> int:
    """Bytes on each of so many devices of the program that the loop runs."""
    config = changed(config, way.fields())
    mesh = sharding.make_mesh(number // way.fsdp, way.fsdp, jax.devices()[:number])
    task: Any = make_task(config)
    state, cut = sharding.shaped(jax.eval_shape(task.init, jax.random.key(0), {}), mesh), sharding.of_batch(mesh)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=cut), shapes(task.fields, config.batch_size)
    )
    runner: Any = StepRunner(task, Given(), 0, {}, mesh)
    runner.compile(state, batch)
    (program,) = runner._compiled.values()
    taken = program.memory_analysis()
    read, written = taken.argument_size_in_bytes, taken.output_size_in_bytes - taken.alias_size_in_bytes
    return int(read + taken.temp_size_in_bytes + written)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "number", "way"),
    [
        (configuration(model__scan=True, **BARE), 8, MemoryPlan(remat=True, accumulation=4, fsdp=8)),
        (configuration("mnist", model__scan=False, model__depth=1, **BARE), 1, PLAIN),
    ],
    ids=["loop", "no_loop"],
)
def test_it_is_what_xla_takes_for_the_program_that_trains(config: Any, number: int, way: MemoryPlan) -> None:
    assert measure(config, way, number).total == pytest.approx(by_xla(config, way, number), rel=0.05)


def precise(dtype: str) -> Any:
    """A configuration of larger images in a precision."""
    return small(data__image_size=32, batch_size=8, model__dtype=dtype, ema__more_decays=(0.99,))


@pytest.fixture(scope="module")
def half() -> tuple[Any, Memory]:
    """(the configuration of a network of half precision, its memory on a TPU)."""
    return precise("bfloat16"), measure(precise("bfloat16"), PLAIN, 1, TPU)


@pytest.fixture(scope="module")
def flash() -> Memory:
    """That of the same network on a GPU."""
    return measure(precise("bfloat16"), PLAIN, 1, H100)


def test_the_state_is_counted_by_its_numbers(half: tuple[Any, Memory]) -> None:
    config, found = half
    task: Any = make_task(config)
    params = jax.eval_shape(task.init_params, jax.random.key(0), {})
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.parameters == found.gradients == 4 * count
    assert found.averages == 8 * count
    assert found.optimizer == pytest.approx(8 * count, rel=1e-3)  # and a counter
    assert sum(dataclasses.astuple(found)) == found.total


def test_leaves_are_cut_where_the_mesh_cuts_them() -> None:
    large, little = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((256, 512), (8,)))
    tree = {"kernel": large, "bias": little}
    assert [held(tree, fsdp) for fsdp in (1, 2, 512, 3)] == [4 * (2**17 // fsdp + 8) for fsdp in (1, 2, 512, 1)]


@pytest.mark.slow
def test_what_is_cut_finer_than_this_machine_can_is_extrapolated() -> None:
    config = small(batch_size=64)
    few, many = (
        measure(changed(config, {"batch_size": number}), MemoryPlan(False, 1, number), number) for number in (8, 16)
    )
    assert many.activations == pytest.approx(few.activations, rel=0.01)
    assert many.parameters < 0.7 * few.parameters


@pytest.mark.slow
def test_activations_grow_as_the_images_of_a_device_do() -> None:
    sizes = [measure(small(batch_size=size), PLAIN, 2).activations for size in (128, 192, 256)]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.02)


@pytest.mark.slow
def test_where_a_gpu_has_flash_attention_no_weights_are_kept(half: tuple[Any, Memory], flash: Memory) -> None:
    config, kept = half
    heads, tokens = config.model.num_heads, 16 * 16
    weights = 8 * config.model.depth * heads * tokens**2
    assert kept.activations - flash.activations > 4 * weights  # in float32, if once


@pytest.mark.slow
def test_half_precision_keeps_about_half(flash: Memory) -> None:
    single = measure(precise("float32"), PLAIN, 1, H100)
    assert flash.activations < 0.65 * single.activations
    assert flash.parameters == single.parameters


@pytest.mark.slow
def test_remat_counts_although_a_cpu_undoes_it_outside_a_loop() -> None:
    config = small(model__scan=False, batch_size=64)
    kept, again = (measure(config, MemoryPlan(remat, 1, 1), 1, H100).activations for remat in (False, True))
    assert again < 0.5 * kept


def test_attention_by_heads_is_attention() -> None:
    q, k, v, slope = jax.random.normal(jax.random.key(0), (4, 2, 7, 3, 8))
    k, v = k[:, :5], v[:, :5]
    ours, back = jax.vjp(footprint.flash_like, q, k, v)
    theirs, theirs_back = jax.vjp(attention.attend, q, k, v)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    for mine, other in zip(back(slope), theirs_back(slope), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_what_does_not_divide_is_refused_with_a_way_out() -> None:
    for plan, number, field in ((PLAIN, 5, "batch_size"), (MemoryPlan(False, 1, 3), 8, "mesh.fsdp")):
        with pytest.raises(UserError) as caught:
            measure(small(), plan, number)
        assert caught.value.field == field


def test_a_configuration_is_copied_and_gets_no_new_fields() -> None:
    config = configuration()
    other = changed(config, {"model.remat": True, "model.nothing": 3, "batch_size": 7})
    assert (other.model.remat, other.batch_size) == (True, 7)
    assert (config.model.remat, config.batch_size) == (False, 128)
    assert "nothing" not in other.model
