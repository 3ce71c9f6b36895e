"""What devices send is counted to the byte where it is known, and a plan's formula agrees with the compiled step."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from archirf_jax import sharding
from archirf_jax.tasks import footprint
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.communication import Count, Counts, Traffic, count, planned, sent
from archirf_jax.tasks.footprint import MemoryPlan, changed
from archirf_jax.training import devices
from configs import dit_rf

H100 = devices.find("h100")
SCALARS = 400  # bytes of norms and metrics, which are added up too


WHOLE, CUT = PartitionSpec(), PartitionSpec("data")


def program(fn: Any, devices: int, out: Any = WHOLE) -> str:
    """Of arrays (8 x devices, 4), of which each device has (8, 4) float32: 128 bytes."""
    mesh = sharding.make_mesh(devices, 1, jax.devices()[:devices])
    mapped = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=CUT, out_specs=out))
    x = jax.ShapeDtypeStruct((8 * devices, 4), jnp.float32, sharding=NamedSharding(mesh, CUT))
    return str(mapped.lower(x).compile().as_text())


def total(x: jax.Array) -> jax.Array:
    return jax.lax.psum(x, "data")


def test_a_sum_counts_its_bytes_and_what_a_ring_sends() -> None:
    assert count(program(total, 8)) == {"all-reduce": Count(1, 128, 2 * 7 / 8 * 128)}
    assert count(program(total, 2)) == {"all-reduce": Count(1, 128, 128)}


def test_one_device_sends_nothing() -> None:
    assert count(program(total, 1)) == {} and sent({}) == 0


def test_other_kinds_count_what_is_left_on_a_device() -> None:
    gather = program(lambda x: jax.lax.all_gather(x, "data"), 8, CUT)
    assert count(gather) == {"all-gather": Count(1, 1024, 7 / 8 * 1024)}
    swap = program(lambda x: jax.lax.all_to_all(x, "data", 0, 0), 8, CUT)
    assert count(swap) == {"all-to-all": Count(1, 128, 7 / 8 * 128)}
    shift = program(lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), 8, CUT)
    assert count(shift) == {"collective-permute": Count(1, 128, 128)}
    (scatter,) = count(program(lambda x: jax.lax.psum_scatter(x, "data", tiled=True), 8, CUT)).items()
    assert scatter == ("reduce-scatter", Count(1, 16, 7 * 16))


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def five(x: jax.Array) -> jax.Array:
        def twice(x: jax.Array, _: Any) -> Any:
            return jax.lax.scan(lambda x, _: (total(x) / 8, None), x, None, length=2)[0], None

        return jax.lax.scan(twice, total(x), None, length=5)[0]

    assert count(program(five, 8)) == {"all-reduce": Count(11, 11 * 128, 11 * 2 * 7 / 8 * 128)}


def test_a_loop_that_does_not_say_how_often_it_runs_is_not_guessed() -> None:
    def until(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: total(x) + 1, total(x))

    text = program(until, 8)
    with pytest.raises(ValueError, match="how often its loop"):
        count(text)
    assert count(text, trips=3)["all-reduce"].operations == 4


def test_operations_that_are_begun_and_awaited_apart_count_once() -> None:
    text = """HloModule jit_step, num_partitions=8

%inside (p: bf16[4]) -> bf16[2] {
  ROOT %s = bf16[2]{0} reduce-scatter(%p), replica_groups=[4,2]<=[8], dimensions={0}, to_apply=%add
}

ENTRY %main (p: f32[16]) -> f32[16] {
  %g = (f32[4]{0:T(128)}, f32[16]{0:T(128)}) all-gather-start(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}
  %h = f32[16]{0} all-gather-done(%g)
  %r = (f32[16]{0}, pred[]) all-reduce-start(%h, %q), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %d = (f32[16]{0}, pred[]) all-reduce-done(%r)
  %c = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  %w = ((bf16[4]{0}), bf16[2]{0}) async-start(%b), calls=%inside
  ROOT %a = f32[16]{0} all-reduce(%h), replica_groups={}, to_apply=%add
}
"""
    assert count(text) == {
        "all-gather": Count(1, 64, 48),
        "all-reduce": Count(2, 65 + 64, 65 + 2 * 7 / 8 * 64),
        "collective-permute": Count(1, 16, 16),
        "reduce-scatter": Count(1, 4, 4),
    }


@functools.cache
def step(data: int, fsdp: int, **fields: Any) -> tuple[Counts, Any, Any]:
    """(counts, parameters, configuration) of a training step of a small DiT."""
    known = {"data.num_classes": 10, "model.hidden_size": 64, "model.depth": 3, "model.num_heads": 2, "batch_size": 32}
    given = {name.replace("__", "."): value for name, value in fields.items()}
    config = changed(dit_rf.get_config("digits"), known | {"model.scan": True} | given)
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
    made, state = footprint.compiled(make_task(config), {}, mesh, config.batch_size)
    return count(made.as_text()), state.networks["model"].params, config


@pytest.mark.parametrize(
    ("data", "fsdp", "fields"),
    [
        (8, 1, {}),
        (1, 8, {}),
        pytest.param(
            *(2, 4, {"model__remat": True, "accumulation": 2, "model__dtype": "float16"}), marks=pytest.mark.slow
        ),
    ],
)
def test_a_plan_is_what_the_compiled_step_sends(data: int, fsdp: int, fields: dict[str, Any]) -> None:
    counts, params, config = step(data, fsdp, **fields)
    way = MemoryPlan(config.model.remat, config.accumulation, fsdp)
    found = planned(params, way, data * fsdp, H100, jnp.dtype(config.model.dtype).itemsize)
    gathered = counts.get("all-gather", Count()).sent
    assert gathered == pytest.approx(found.parameters, rel=0.1)
    assert sent(counts) - gathered == pytest.approx(found.gradients, rel=0.1)


def test_links_within_a_machine_and_between_machines_set_the_time() -> None:
    params = {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    plain, cut = MemoryPlan(False, 1, 1), MemoryPlan(False, 1, 8)
    alone = planned(params, plain, 1, H100, 4)
    assert alone == Traffic(0, 0, 0)
    inside, between = (planned(params, plain, n, H100, 2) for n in (8, 1024))
    assert inside == Traffic(3.5e6, 0, pytest.approx(3.5e6 / 450e9))
    assert between.seconds == pytest.approx(2 * 1023 / 1024 * 2e6 / 400e9)
    both = planned(params, cut, 64, H100, 2)
    assert both.parameters == pytest.approx(3.5e6)
    assert both.seconds == pytest.approx(2 * 63 / 64 * 2e6 / 400e9 + 3.5e6 / 450e9)
    assert planned(params, plain, 9, devices.find("rtx4090"), 2).seconds is None


def size(params: Any, fsdp: int = 1) -> int:
    """Bytes of the leaves, of those alone that are cut if fsdp > 1."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(4 * leaf.size for path, leaf in leaves if fsdp == 1 or any(sharding.spec(path, leaf.shape, fsdp)))


def test_devices_that_hold_everything_add_up_each_gradient_once() -> None:
    counts, params, _ = step(8, 1)
    assert set(counts) <= {"all-reduce", "collective-permute"}
    assert 0 <= counts["all-reduce"].result - size(params) < SCALARS


@pytest.mark.parametrize("scan", [True, False])
def test_devices_that_hold_a_part_gather_each_parameter_once_and_add_up_each_gradient(scan: bool) -> None:
    """Those alone: activations, which a compiler may prefer to move, stay where they are."""
    counts, params, _ = step(1, 8, **{} if scan else {"model__scan": False, "model__depth": 1})
    assert set(counts) <= {"all-gather", "all-reduce", "collective-permute"}
    assert counts["all-gather"].result == size(params, 8) > 0.7 * size(params)
    assert 0 <= counts["all-reduce"].result - size(params) < SCALARS
