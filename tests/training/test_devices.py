"""The table of devices: by name, by what jax calls them, and numbers that their makers print."""

from __future__ import annotations

import pathlib
import types

import jax
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import devices
from archirf_jax.training.devices import DEVICES, GIB

# As jax calls real devices.
KINDS = {
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA A100-SXM4-40GB": "a100-40",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA L4": "l4",
    "Tesla T4": "t4",
    "TPU v5 lite": "tpu-v5e",
    "TPU v4": "tpu-v4",
}


@pytest.mark.parametrize(("kind", "name"), KINDS.items())
def test_devices_are_known_by_what_jax_calls_them(kind: str, name: str) -> None:
    assert devices.of(types.SimpleNamespace(device_kind=kind)) is devices.find(name)


@pytest.mark.parametrize(
    "kind", ["NVIDIA L40S", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", ""]
)
def test_devices_with_similar_names_are_other_devices(kind: str) -> None:
    assert devices.of(types.SimpleNamespace(device_kind=kind)) is None


def test_this_cpu_is_none_of_them() -> None:
    assert devices.of(jax.devices()[0]) is None


def test_names_are_found_in_any_case_and_others_answered_with_all_and_the_nearest() -> None:
    assert devices.find("H200").memory == 141 * GIB
    with pytest.raises(UserError) as caught:
        devices.find("h20")
    assert caught.value.field == "device" and "'h200'" in str(caught.value)


def test_no_two_have_a_name_or_kind_in_common() -> None:
    names, kinds = [device.name for device in DEVICES], [kind for device in DEVICES for kind in device.kinds]
    assert len(set(names)) == len(names) and len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_peaks_are_dense_and_in_order(device: devices.Device) -> None:
    half, single = device.peak("bfloat16"), device.peak("float32")
    assert 1e12 < single <= half <= 2.25e15
    assert 16 * GIB <= device.memory <= 180 * GIB
    assert 0 < device.network <= 3 * device.link or not device.network
    assert 15e9 < device.link <= 900e9 and device.joined >= 8
    if device.platform == "gpu":
        assert half <= device.peak("float16")


def test_peaks_are_those_of_the_sheets() -> None:
    sheets = {"a100-80": 312, "h100": 989.4, "h100-pcie": 756.5, "h200": 989.4, "v100-16": 125, "tpu-v5p": 459}
    assert {name: devices.find(name).peaks.get("float16", 459e12) / 1e12 for name in sheets} == sheets
    assert devices.find("a100-40").peak("float32") == 156e12  # TF32, which jax takes there
    assert devices.find("v100-16").peak("float32") == 15.7e12


def test_arithmetic_that_a_device_has_not_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        devices.find("tpu-v4").peak("float16")
    assert caught.value.field == "model.dtype"


class Accelerator:
    """As jax describes one."""

    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"


def test_what_a_training_runs_on_is_named_with_its_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "devices", lambda: [Accelerator()])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert devices.describe("bfloat16") == "training on 2 x NVIDIA H100 80GB HBM3 (bfloat16)"


def test_a_gpu_that_jax_cannot_use_is_named_with_the_remedy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "CUDA_PLUGINS", ("no_such_plugin",))
    tool = tmp_path / "nvidia-smi"
    for cards, remedy in (("GPU 0: NVIDIA H100", True), ("No devices", False)):
        tool.write_text(f"#!/bin/sh\necho '{cards}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        said = devices.describe("float32")
        assert said.startswith("training on the CPU (") and ("requirements-cuda.txt" in said) == remedy
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H100'\n")
    monkeypatch.setattr(devices, "CUDA_PLUGINS", ("jax",))  # the CPU was chosen on purpose
    assert "requirements" not in devices.describe("float32")
