"""A plan: arithmetic and time by closed forms, and the first of the ways that fits."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import jax
import pytest

from archirf_jax.errors import UserError
from archirf_jax.tasks import footprint, planning
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.footprint import Memory, MemoryPlan, changed, measure
from archirf_jax.training import devices
from archirf_jax.training.devices import GIB, Device
from configs import adm_classifier, dit_rf, edm2_edm, mmdit_rf
from tests.tasks import settings

H200 = devices.find("h200")
PLAIN = MemoryPlan(remat=False, accumulation=1, fsdp=1)


def configuration(**fields: Any) -> Any:
    known = {"data.num_classes": 10} | {name.replace("__", "."): value for name, value in fields.items()}
    return changed(dit_rf.get_config("digits"), known)


def memory(gib: float) -> Memory:
    return Memory(parameters=0, averages=0, optimizer=0, frozen=0, gradients=0, activations=int(gib * GIB))


def plan(*tried: tuple[MemoryPlan, Memory], device: Device = H200, number: int = 8, **fields: Any) -> planning.Plan:
    known = dict(dtype="bfloat16", parameters=10**8, forward=1e9, batch_size=64, steps=1000, scan=True)
    return planning.Plan(device=device, devices=number, tried=tried, **known | fields)


@pytest.fixture
def floor() -> list[float]:
    """GiB of a step that no smaller parts save."""
    return [0.0]


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch, floor: list[float]) -> list[MemoryPlan]:
    """Memory by a formula in place of a compiler; the ways that it was asked of."""
    asked: list[MemoryPlan] = []

    def of_formula(config: Any, way: MemoryPlan, *others: Any) -> Memory:
        asked.append(way)
        state, kept = 8 / way.fsdp, (4 if way.remat else 64) / way.accumulation
        return memory(max(state + kept, floor[0] / way.fsdp))

    monkeypatch.setattr(planning, "measure", of_formula)
    monkeypatch.setattr(
        planning, "_lasting", lambda state, frozen, device, fsdp: 8 / fsdp * GIB > planning.USABLE * device.memory
    )
    return asked


def toy(gib: float) -> Device:
    return Device("toy", "gpu", int(gib * GIB), H200.peaks, (), H200.link)


def made(gib: float, number: int = 8, **fields: Any) -> list[tuple[int, int, int]]:
    found = planning.make(configuration(batch_size=64, **fields), toy(gib), number)
    return [(int(way.remat), way.accumulation, way.fsdp) for way, _ in found.tried]


def test_what_fits_as_it_is_stays_so(needs: list[MemoryPlan]) -> None:
    assert made(100) == [(0, 1, 1)]
    assert made(100, accumulation=2, mesh__fsdp=2, model__remat=True) == [(1, 2, 2)]


def test_remat_then_smaller_parts_then_more_cutting(needs: list[MemoryPlan]) -> None:
    assert made(15) == [(0, 1, 1), (1, 1, 1)]
    assert made(11.2) == [(0, 1, 1), (1, 1, 1), (1, 2, 1)]
    # The state alone is too much: smaller parts are not tried before it is cut.
    assert made(8.8) == [(0, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 2)]
    cut_in_4, cut_in_8 = [(1, parts, 4) for parts in (1, 2, 4, 8)], [(1, parts, 8) for parts in (1, 2, 4)]
    assert made(2.5) == [(0, 1, 1), (1, 1, 1), *cut_in_4, *cut_in_8]


def test_parts_are_no_smaller_than_an_image_a_device(needs: list[MemoryPlan]) -> None:
    tried = made(0.1)
    assert tried == [(0, 1, 1), (1, 1, 1)]
    assert made(9, number=1)[-1] == (1, 64, 1)


def test_smaller_parts_are_given_up_once_they_save_nothing(needs: list[MemoryPlan], floor: list[float]) -> None:
    floor[0] = 10.5
    assert made(11) == [(0, 1, 1), (1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2)]


def test_a_run_that_is_cut_already_is_cut_further(needs: list[MemoryPlan]) -> None:
    assert made(3.4, model__remat=True, accumulation=2, mesh__fsdp=4)[:2] == [(1, 2, 4), (1, 4, 4)]


@pytest.mark.parametrize("field", ["remat", "scan"])
def test_networks_whose_remat_cannot_be_seen_are_not_given_it(field: str) -> None:
    config = configuration()
    with config.unlocked():
        del config.model[field]
    assert {way.remat for way in planning.ways(config, 4)} == {False}
    said = list(planning.lines(plan((PLAIN, memory(200)), scan=None), 0.4))
    assert any("it was not tried" in line for line in said)


def test_time_is_arithmetic_over_what_devices_do() -> None:
    found = plan()
    assert found.training(PLAIN) == 3e9
    assert found.training(MemoryPlan(True, 1, 1)) == 4e9
    assert found.seconds(PLAIN, 0.5) == pytest.approx(3e9 * 64 / (8 * 989.4e12 * 0.5))


def test_arithmetic_and_parameters_are_those_of_the_network(needs: list[MemoryPlan]) -> None:
    fields = dict(hidden_size=384, depth=12, num_heads=6, registers=0, qk_norm=None, scan=True)
    latents = {"data__image_size": 32, "data__channels": 4, "data__num_classes": 1000}
    found = planning.make(configuration(**latents, **{f"model__{k}": v for k, v in fields.items()}), H200, 1)
    assert found.forward / 2e9 == pytest.approx(6.06, rel=0.005)  # Peebles & Xie 2022, table 4
    assert found.parameters / 1e6 == pytest.approx(32.96, rel=0.02)  # S/2 with its fixed positions, 0.1 M
    assert (found.dtype, found.steps, found.batch_size) == ("float32", 2000, 128)


@pytest.mark.parametrize("module", [mmdit_rf, edm2_edm, adm_classifier])
def test_every_task_and_network_is_counted(module: Any) -> None:
    config = changed(module.get_config("digits"), {"data.num_classes": 10})
    task: Any = make_task(config)
    state = jax.eval_shape(task.init, jax.random.key(0), {})
    params = [network.params for network in state.networks.values()]
    assert planning.forward(task, state) > 2 * sum(leaf.size for leaf in jax.tree.leaves(params))


def size(tree: Any) -> int:
    """Bytes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_frozen_runs_are_counted_in_arithmetic_and_memory() -> None:
    """The teacher answers each image once more and lies on the device; it has no gradients and no averages."""
    teacher: Any = make_task(settings.config())
    params = jax.eval_shape(teacher.init_params, jax.random.key(0), {})
    runs = {"teacher": types.SimpleNamespace(task=teacher, params=None, shapes=params)}
    objective = {"objective": {"name": "tests.extensions.distillation"}, "frozen.teacher": "runs/teacher"}
    alone, taught = settings.config(), settings.config(changes=objective)
    tasks: list[Any] = [make_task(alone), make_task(taught, runs)]
    states = [jax.eval_shape(each.init, jax.random.key(0), footprint.frozen_shapes(each)) for each in tasks]
    once, twice = map(planning.forward, tasks, states)
    assert twice == pytest.approx(2 * once, rel=0.05)
    network = states[0].networks["model"]
    found = measure(taught, PLAIN, 1, runs=runs)
    parts = found.parameters, found.averages, found.gradients, found.frozen
    assert parts == tuple(map(size, (network.params, network.averages, network.params, params)))
    assert found.optimizer == size(network.opt)


def test_a_mesh_that_is_not_the_devices_is_refused(needs: list[MemoryPlan]) -> None:
    config = configuration()
    config.mesh.data = 3
    with pytest.raises(UserError) as caught:
        planning.make(config, devices.find("h100"), 4)
    assert caught.value.field == "mesh.data" and not needs


def test_arithmetic_that_a_device_has_not_is_refused_before_anything_is_compiled(needs: list[MemoryPlan]) -> None:
    with pytest.raises(UserError) as caught:
        planning.make(configuration(model__dtype="float16"), devices.find("tpu-v4"), 1)
    assert caught.value.field == "model.dtype" and not needs


def test_a_person_reads_what_fits() -> None:
    parts = Memory(parameters=GIB, averages=GIB, optimizer=2 * GIB, frozen=0, gradients=GIB, activations=5 * GIB)
    said = list(planning.lines(plan((PLAIN, parts)), 0.4))
    assert said[0] == "8 x h200: 141 GiB and 989.4 Tflops/s in bfloat16 each"
    assert said[2].split() == "an image 1.00 Gflops forward (0.50 G multiply-adds), 3.00 in training".split()
    assert "  activations      5.00" in said and "  together        10.00  7% of the device: fits" in said
    assert not any(line.startswith(("|", "set:", "jax takes")) for line in said)


def test_a_person_reads_what_devices_send_and_how_long_it_takes(needs: list[MemoryPlan]) -> None:
    found = planning.make(configuration(batch_size=64, mesh__fsdp=2), toy(100), 8)
    (line,) = [line for line in planning.lines(found, 0.4) if "a device sends" in line]
    assert "GiB of gradients and" in line and "GiB of parameters" in line and found.traffic is not None
    assert found.traffic.gradients == 2 * 7 / 8 * 4 * found.parameters
    unknown = dataclasses.replace(found, traffic=dataclasses.replace(found.traffic, seconds=None))
    assert any("unknown speed" in line for line in planning.lines(unknown, 0.4))
    alone = planning.lines(planning.make(configuration(batch_size=64), toy(100), 1), 0.4)
    assert not any("a device sends" in line for line in alone)


def test_a_person_reads_what_to_set() -> None:
    tried = (PLAIN, memory(200)), (MemoryPlan(True, 1, 1), memory(150)), (MemoryPlan(True, 2, 1), memory(120))
    said = list(planning.lines(plan(*tried), 0.4))
    assert said[-1] == "set: --config.model.remat=True --config.accumulation=2"
    assert [line.split(" | ")[-1] for line in said[-4:-1]] == ["too much |", "too much |", "fits |"]
    assert any("XLA_PYTHON_CLIENT_MEM_FRACTION" in line for line in said)
    tpu = list(planning.lines(plan(*tried, device=dataclasses.replace(H200, platform="tpu")), 0.4))
    assert not any("XLA_PYTHON" in line for line in tpu)


def test_a_person_reads_that_nothing_helps_and_what_was_not_seen() -> None:
    said = list(planning.lines(plan((PLAIN, memory(200)), number=1, scan=False), 0.4))
    assert said[-1].startswith("nothing makes it fit: take more devices")
    assert any("does not fit: 90% can be used" in line for line in said)
    assert any("model.scan=True" in line for line in said) and not any("a device sends" in line for line in said)
