"""The table of devices: by name, by what jax calls them, and numbers that their makers print."""

from __future__ import annotations

import types

import jax
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import devices
from archirf_jax.training.devices import DEVICES, GIB

# As jax tells it of real devices.
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
    with pytest.raises(UserError, match=r"--device: 'h20' is not one of rtx3090, .*tpu-v6e \(did you mean 'h200'\?\)"):
        devices.find("h20")


def test_no_two_have_a_name_or_kind_in_common() -> None:
    names, kinds = [device.name for device in DEVICES], [kind for device in DEVICES for kind in device.kinds]
    assert len(set(names)) == len(names) and len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_peaks_are_dense_and_in_order(device: devices.Device) -> None:
    half, single = device.peak("bfloat16"), device.peak("float32")
    assert 1e12 < single <= half <= 2.25e15
    assert 16 * GIB <= device.memory <= 180 * GIB
    if device.platform == "gpu":
        assert half <= device.peak("float16")


def test_peaks_are_those_of_the_sheets() -> None:
    sheets = {"a100-80": 312, "h100": 989.4, "h100-pcie": 756.5, "h200": 989.4, "v100-16": 125, "tpu-v5p": 459}
    assert {name: devices.find(name).peaks.get("float16", 459e12) / 1e12 for name in sheets} == sheets
    assert devices.find("a100-40").peak("float32") == 156e12  # TF32, which jax takes there
    assert devices.find("v100-16").peak("float32") == 15.7e12


def test_arithmetic_that_a_device_has_not_is_refused() -> None:
    with pytest.raises(UserError, match="config.model.dtype: no float16 on tpu-v4; it has bfloat16, float32"):
        devices.find("tpu-v4").peak("float16")
