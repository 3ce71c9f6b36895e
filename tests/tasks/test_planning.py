"""What a plan says: arithmetic and time by closed forms, and the first of the ways that fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.tasks import planning
from archirf_jax.tasks.footprint import Memory, Way, changed
from archirf_jax.training import devices
from archirf_jax.training.devices import GIB, Device
from configs import adm_classifier, dit_rf, edm2_edm, mmdit_rf

H200 = devices.find("h200")
PLAIN = Way(remat=False, accumulation=1, fsdp=1)


def configuration(**fields: Any) -> Any:
    known = {"data.num_classes": 10} | {name.replace("__", "."): value for name, value in fields.items()}
    return changed(dit_rf.get_config("digits"), known)


def memory(gib: float) -> Memory:
    return Memory(parameters=0, averages=0, optimizer=0, gradients=0, activations=int(gib * GIB))


def plan(*tried: tuple[Way, Memory], device: Device = H200, number: int = 8, **fields: Any) -> planning.Plan:
    known = dict(dtype="bfloat16", parameters=10**8, forward=1e9, batch_size=64, steps=1000, scan=True)
    return planning.Plan(device=device, devices=number, tried=tried, **known | fields)


@pytest.fixture
def floor() -> list[float]:
    """GiB of a step that no smaller parts save."""
    return [0.0]


@pytest.fixture
def needs(monkeypatch: pytest.MonkeyPatch, floor: list[float]) -> list[Way]:
    """Memory by a formula in place of a compiler; the ways that it was asked of."""
    asked: list[Way] = []

    def measure(config: Any, way: Way, number: int, device: Device) -> Memory:
        asked.append(way)
        state, kept = 8 / way.fsdp, (4 if way.remat else 64) / way.accumulation
        return memory(max(state + kept, floor[0] / way.fsdp))

    monkeypatch.setattr(planning, "measure", measure)
    monkeypatch.setattr(
        planning, "_lasting", lambda task, device, fsdp: 8 / fsdp * GIB > planning.USABLE * device.memory
    )
    return asked


def toy(gib: float) -> Device:
    return Device("toy", "gpu", int(gib * GIB), H200.peaks, ())


def made(gib: float, number: int = 8, **fields: Any) -> list[tuple[int, int, int]]:
    found = planning.make(configuration(batch_size=64, **fields), toy(gib), number)
    return [(int(way.remat), way.accumulation, way.fsdp) for way, _ in found.tried]


def test_what_fits_as_it_is_stays_so(needs: list[Way]) -> None:
    assert made(100) == [(0, 1, 1)]
    assert made(100, accumulation=2, mesh__fsdp=2, model__remat=True) == [(1, 2, 2)]


def test_remat_then_smaller_parts_then_more_cutting(needs: list[Way]) -> None:
    assert made(15) == [(0, 1, 1), (1, 1, 1)]
    assert made(11.2) == [(0, 1, 1), (1, 1, 1), (1, 2, 1)]
    # The state alone is too much: smaller parts are not tried before it is cut.
    assert made(8.8) == [(0, 1, 1), (1, 1, 1), (1, 1, 2), (1, 2, 2)]
    cut_in_4, cut_in_8 = [(1, parts, 4) for parts in (1, 2, 4, 8)], [(1, parts, 8) for parts in (1, 2, 4)]
    assert made(2.5) == [(0, 1, 1), (1, 1, 1), *cut_in_4, *cut_in_8]


def test_parts_are_no_smaller_than_an_image_a_device(needs: list[Way]) -> None:
    tried = made(0.1)
    assert tried == [(0, 1, 1), (1, 1, 1)]
    assert made(9, number=1)[-1] == (1, 64, 1)


def test_smaller_parts_are_given_up_once_they_save_nothing(needs: list[Way], floor: list[float]) -> None:
    floor[0] = 10.5
    assert made(11) == [(0, 1, 1), (1, 1, 1), (1, 2, 1), (1, 4, 1), (1, 1, 2)]


def test_a_run_that_is_cut_already_is_cut_further(needs: list[Way]) -> None:
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
    assert found.training(Way(True, 1, 1)) == 4e9
    assert found.seconds(PLAIN, 0.5) == pytest.approx(3e9 * 64 / (8 * 989.4e12 * 0.5))


def test_arithmetic_and_parameters_are_those_of_the_network(needs: list[Way]) -> None:
    fields = dict(hidden_size=384, depth=12, num_heads=6, registers=0, qk_norm=None, scan=True)
    latents = {"data__image_size": 32, "data__channels": 4, "data__num_classes": 1000}
    found = planning.make(configuration(**latents, **{f"model__{k}": v for k, v in fields.items()}), H200, 1)
    assert found.forward / 2e9 == pytest.approx(6.06, rel=0.005)  # Peebles & Xie 2022, table 4
    assert found.parameters / 1e6 == pytest.approx(32.96, rel=0.02)  # S/2 with its fixed positions, 0.1 M
    assert (found.dtype, found.steps, found.batch_size) == ("float32", 2000, 128)


@pytest.mark.parametrize("module", [mmdit_rf, edm2_edm, adm_classifier])
def test_every_task_and_network_is_counted(module: Any) -> None:
    config = changed(module.get_config("digits"), {"data.num_classes": 10})
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    params = jax.eval_shape(task.init_params, jax.random.key(0))
    assert planning.forward(task, params) > 2 * sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_mesh_that_is_not_the_devices_is_refused(needs: list[Way]) -> None:
    config = configuration()
    config.mesh.data = 3
    with pytest.raises(UserError, match="^config.mesh.data: 3 x fsdp=1 are not --devices=4; take 0 for all of them"):
        planning.make(config, devices.find("h100"), 4)
    assert not needs


def test_arithmetic_that_a_device_has_not_is_refused_before_anything_is_compiled(needs: list[Way]) -> None:
    with pytest.raises(UserError, match="config.model.dtype: no float16 on tpu-v4"):
        planning.make(configuration(model__dtype="float16"), devices.find("tpu-v4"), 1)
    assert not needs


def test_a_person_reads_what_fits() -> None:
    parts = Memory(parameters=GIB, averages=GIB, optimizer=2 * GIB, gradients=GIB, activations=5 * GIB)
    said = list(planning.lines(plan((PLAIN, parts)), 0.4))
    assert said[0] == "8 x h200: 141 GiB and 989.4 Tflops/s in bfloat16 each"
    assert said[2].split() == "an image 1.00 Gflops forward (0.50 G multiply-adds), 3.00 in training".split()
    assert "  activations      5.00" in said and "  together        10.00  7% of the device: fits" in said
    assert not any(line.startswith(("|", "set:", "jax takes")) for line in said)


def test_a_person_reads_what_to_set() -> None:
    tried = (PLAIN, memory(200)), (Way(True, 1, 1), memory(150)), (Way(True, 2, 1), memory(120))
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
    assert any("model.scan=True" in line for line in said) and not any("gradients of" in line for line in said)
