"""A run on many devices is the run on one: the same losses, a share of the memory, checkpoints that open anywhere."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from archirf_jax import sharding
from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.tasks import footprint
from archirf_jax.tasks.building import make_task
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.start import start
from archirf_jax.training.step_runner import StepRunner, placed
from tests.tasks import settings
from tests.training.toys import Denoising, Feed, config

BATCH = 32
SHARES = {1: 1.0, 2: 0.7, 4: 0.5, 8: 0.4}  # of the parameters on one of so many devices: small leaves lie on all
DISPATCH = Feed.dispatch  # of all runs, so that there is one program a mesh


@functools.cache
def task(depth: int = 0, accumulation: int = 1) -> Denoising:
    """With layers that are large enough to be cut: two, or a stack."""
    made = config(batch_size=BATCH, accumulation=accumulation, schedule__warmup_steps=10)
    return Denoising(made, width=128 if depth else 4096, depth=depth)


@functools.cache
def runner(made: Denoising, mesh: Mesh) -> StepRunner:
    return StepRunner(made, Feed(batch_size=BATCH), 0, mesh=mesh)


def run(mesh: Mesh, steps: int, made: Denoising, folder: pathlib.Path) -> tuple[TrainState, np.ndarray]:
    """The state after `steps` and their losses, from the newest checkpoint in `folder` or from the start."""
    checkpoints = Checkpoints(folder, keep=1)
    data, state = Feed(batch_size=BATCH), start(made, 0, {}, checkpoints, mesh, folder)
    checkpoints.close()
    step, losses = int(state.step), []
    runner(made, mesh).compile(state, data.chunk(step, 1)[0])
    for done in range(0, steps, DISPATCH):
        chunk, n = data.chunk(step + done, min(DISPATCH, steps - done))
        state, rows = runner(made, mesh)(state, chunk, n)
        losses.append(np.asarray(rows["loss"])[:n, 0])
    return state, np.concatenate(losses)


def params(state: TrainState) -> list[jax.Array]:
    return jax.tree.leaves(state.networks["net"].params)


def assert_close(ours: TrainState, theirs: TrainState) -> None:
    for a, b in zip(params(ours), params(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-5)


def assert_placed(state: TrainState, mesh: Mesh) -> None:
    """Every leaf lies as the rule says, which is a share of it where it is large."""
    places = jax.tree.leaves(sharding.place(state, mesh))
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(state), places, strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), path
        large = leaf.size >= sharding.SMALL and any(side % mesh.shape["fsdp"] == 0 for side in leaf.shape)
        assert leaf.addressable_shards[0].data.size == leaf.size // (mesh.shape["fsdp"] if large else 1), path


@pytest.mark.parametrize(
    ("names", "shape", "fsdp", "cut"),
    [
        (["block_0", "mlp", "hidden", "kernel"], (256, 1024), 4, PartitionSpec(None, "fsdp")),
        (["block_0", "mlp", "out", "kernel"], (1024, 256), 4, PartitionSpec("fsdp")),
        (["blocks_0", "mlp", "hidden", "kernel"], (4096, 64, 128), 4, PartitionSpec(None, None, "fsdp")),
        (["block_0", "conv", "kernel"], (3, 3, 128, 256), 8, PartitionSpec(None, None, None, "fsdp")),
        (["block_0", "mlp", "hidden", "kernel"], (250, 1001), 2, PartitionSpec("fsdp")),
        (["block_0", "mlp", "hidden", "kernel"], (251, 1001), 2, PartitionSpec()),
        (["block_0", "mlp", "hidden", "bias"], (1024,), 4, PartitionSpec()),
        (["block_0", "mlp", "hidden", "kernel"], (256, 1024), 1, PartitionSpec()),
    ],
)
def test_the_longest_axis_that_divides_is_cut_but_not_of_small_leaves_nor_that_of_a_scan(
    names: list[str], shape: tuple[int, ...], fsdp: int, cut: PartitionSpec
) -> None:
    path = [jax.tree_util.DictKey(name) for name in names]
    assert sharding.spec(path, shape, fsdp) == cut
    assert sharding.spec([jax.tree_util.GetAttrKey("opt"), *path], shape, fsdp) == cut


def compare(data: int, fsdp: int, steps: int, made: Denoising, folder: pathlib.Path) -> None:
    alone, expected = run(sharding.make_mesh(1, 1), steps, made, folder)
    mesh = sharding.make_mesh(data, fsdp)
    state, losses = run(mesh, steps, made, folder)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_close(state, alone)
    assert_placed(state, mesh)
    held = [sum(leaf.addressable_shards[0].data.nbytes for leaf in params(s)) for s in (state, alone)]
    assert held[0] <= SHARES[fsdp] * held[1]


def test_losses_on_a_mesh_are_those_on_one_device(tmp_path: pathlib.Path) -> None:
    compare(2, 4, 10, task(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("data", "fsdp", "depth"), [(8, 1, 0), (1, 8, 2), (2, 4, 2)])
def test_fifty_losses_on_eight_devices_are_those_on_one(
    data: int, fsdp: int, depth: int, tmp_path: pathlib.Path
) -> None:
    compare(data, fsdp, 50, task(depth), tmp_path)


@pytest.mark.slow
def test_parts_of_a_batch_on_a_mesh_are_those_on_one_device(tmp_path: pathlib.Path) -> None:
    compare(2, 2, 8, task(accumulation=4), tmp_path)


@pytest.mark.slow
def test_a_step_that_gathers_repeated_blocks_is_that_on_one_device() -> None:
    made: Any = make_task(
        settings.config(changes={"model.hidden_size": 64, "model.depth": 2, "model.scan": True, "model.remat": True})
    )
    shapes = jax.eval_shape(made.init, jax.random.key(0), {})
    network = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes.networks["model"])
    network = network.replace(params=settings.moved(shapes.networks["model"].params))
    state = TrainState(step=np.int32(0), networks={"model": network})
    found = []
    for fsdp in (1, 8):
        mesh = sharding.make_mesh(1, fsdp, jax.devices()[:fsdp])
        program, _ = footprint.compiled(made, {}, mesh, len(settings.BATCH["image"]))
        batch = jax.device_put(settings.BATCH, sharding.of_batch(mesh))
        found.append(program(jax.device_put(state, sharding.place(state, mesh)), {}, batch, jax.random.key(1)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5)


def test_what_was_saved_on_eight_devices_goes_on_on_fewer(tmp_path: pathlib.Path) -> None:
    eight = sharding.make_mesh(2, 4)
    first, _ = run(eight, 3, task(), tmp_path / "none")
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    checkpoints.save(first, {})
    checkpoints.wait()
    checkpoints.close()
    for data, fsdp in ((2, 2), (1, 2), (1, 1)):
        mesh, reader = sharding.make_mesh(data, fsdp), Checkpoints(tmp_path / "c", keep=1)
        opened = start(task(), 0, {}, reader, mesh, tmp_path)
        reader.close()
        assert_placed(opened, mesh)
        assert int(opened.step) == 3
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), opened, first)
    _, later = run(sharding.make_mesh(1, 1), 3, task(), tmp_path / "c")
    _, expected = run(sharding.make_mesh(1, 1), 6, task(), tmp_path / "none")
    np.testing.assert_allclose(later, expected[3:], rtol=1e-5)


def test_each_process_decodes_the_rows_that_its_devices_hold() -> None:
    for data, fsdp in ((1, 1), (4, 2), (2, 1)):
        np.testing.assert_array_equal(sharding.own_rows(sharding.make_mesh(data, fsdp), 16), np.arange(16))


def test_frozen_parameters_are_cut_by_the_same_rule() -> None:
    frozen = placed({"teacher": {"net": {"kernel": np.ones((256, 128), np.float32)}}}, sharding.make_mesh(2, 4))
    assert frozen["teacher"]["net"]["kernel"].sharding.spec == PartitionSpec("fsdp")


@pytest.mark.parametrize(("data", "fsdp", "field"), [(None, 3, "mesh.fsdp"), (4, 4, "mesh.data")])
def test_a_mesh_that_the_devices_do_not_make_is_refused(data: int | None, fsdp: int, field: str) -> None:
    with pytest.raises(UserError) as caught:
        sharding.make_mesh(data, fsdp)
    assert caught.value.field == field


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does() -> None:
    sharding.check_batch(sharding.make_mesh(4, 2), 64, 4)
    with pytest.raises(UserError) as caught:
        sharding.check_batch(sharding.make_mesh(4, 2), 100, 4)
    assert caught.value.field == "batch_size" and "96" in str(caught.value)


def test_the_mesh_takes_all_devices_unless_it_is_given_a_number() -> None:
    assert sharding.make_mesh().shape == {"data": 8, "fsdp": 1}
    assert sharding.make_mesh(None, 4).shape == {"data": 2, "fsdp": 4}
    assert sharding.agreed(7) == 7
    spread = jax.device_put(jnp.arange(16.0), sharding.of_batch(sharding.make_mesh()))
    np.testing.assert_array_equal(sharding.fetch(spread), np.arange(16.0))
