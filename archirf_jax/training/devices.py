"""Memory, peak arithmetic and links of accelerators, from their makers' data sheets."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pathlib
import shutil
import subprocess
from typing import Any

import jax

from archirf_jax.errors import UserError, nearest

GIB = 2**30
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Device:
    """One kind of device, as jax counts devices.

    Attributes:
        name: a short one.
        platform: "gpu" or "tpu".
        memory: bytes.
        peaks: compute dtype -> floating-point operations a second (a multiply-add is 2) of dense matrix products.
        kinds: what jax calls it (`jax.Device.device_kind`).
        link: bytes a second that it can send to the others of its machine, of a TPU those of its slice.
        joined: how many a machine or a slice has.
        network: bytes a second that such a machine can send to others; 0 = not known.
    """

    name: str
    platform: str
    memory: int
    peaks: dict[str, float]
    kinds: tuple[str, ...]
    link: float
    joined: int = 8
    network: float = 0.0

    def peak(self, dtype: str) -> float:
        """Operations a second at this compute dtype; raises a UserError where there is no such arithmetic."""
        if dtype not in self.peaks:
            raise UserError("model.dtype", dtype, f"does not exist on {self.name}; it has {', '.join(self.peaks)}")
        return self.peaks[dtype]


def _gpu(
    name: str,
    gib: float,
    half: float,
    single: float,
    *kinds: str,
    link: float,
    network: float = 0.0,
    bfloat16: float = 0.0,
) -> Device:
    """`half` and `single` in Tflops/s, `link` and `network` in GB/s; `bfloat16` where it is not as fast as float16."""
    peaks = {"bfloat16": (bfloat16 or half) * 1e12, "float16": half * 1e12, "float32": single * 1e12}
    return Device(name, "gpu", int(gib * GIB), peaks, kinds, link * 1e9, network=network * 1e9)


def _tpu(name: str, gib: float, peak: float, *kinds: str, link: float, joined: int) -> Device:
    peaks = {"bfloat16": peak * 1e12, "float32": peak * 1e12}
    return Device(name, "tpu", int(gib * GIB), peaks, kinds, link * 1e9, joined)


# Dense peaks: where a sheet gives the double that holds for sparse matrices, half of it. float16 and bfloat16 add up in
# float32. float32 is what jax multiplies float32 matrices with by default: TF32 on the tensor cores of
# Ampere and later, plain float32 before it, bfloat16 on TPUs. Gigabytes of a sheet are GiB in the driver.
# Links one way, half of what a sheet says of both: NVLink where it joins all GPUs of a machine (a bridge joins pairs),
# else the PCI Express slot. Networks are those of the maker's own machine with eight of them: DGX-1 4 x 100 Gb/s,
# DGX A100 8 x 200, DGX H100, H200 and B200 8 x 400 for computation, Amazon's g5.48xlarge 100.
DEVICES = (
    # "NVIDIA Ampere GA102 GPU Architecture" (2021), table 2: RTX 3090.
    _gpu("rtx3090", 24, 71.0, 35.6, "NVIDIA GeForce RTX 3090", link=31.5),
    # "NVIDIA Ada GPU Architecture" (2022), table 2: RTX 4090.
    _gpu("rtx4090", 24, 165.2, 82.6, "NVIDIA GeForce RTX 4090", link=31.5),
    # "NVIDIA A10G" in Amazon's EC2 G5: Ampere, half the tensor rate of the A10.
    _gpu("a10g", 24, 70.0, 35.0, "NVIDIA A10G", link=31.5, network=12.5),
    # "NVIDIA L4 Tensor Core GPU" (2023): 242 and 120 with sparsity.
    _gpu("l4", 24, 121.0, 60.0, "NVIDIA L4", link=31.5),
    # "NVIDIA T4 Tensor Core GPU" (2019); bfloat16 has no units and is computed in float32.
    _gpu("t4", 16, 65.0, 8.1, "Tesla T4", link=15.75, bfloat16=8.1),
    # "NVIDIA V100 Tensor Core GPU" (2020), SXM2; bfloat16 as above.
    _gpu("v100-16", 16, 125.0, 15.7, "Tesla V100-SXM2-16GB", link=150.0, network=50.0, bfloat16=15.7),
    _gpu(
        "v100-32",
        32,
        125.0,
        15.7,
        "Tesla V100-SXM2-32GB",
        "Tesla V100-SXM3-32GB",
        link=150.0,
        network=50.0,
        bfloat16=15.7,
    ),
    # "NVIDIA A100 Tensor Core GPU" (2021): the peaks of all forms are the same.
    _gpu(
        "a100-40",
        40,
        312.0,
        156.0,
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100-PCIE-40GB",
        "A100-SXM4-40GB",
        link=300.0,
        network=200.0,
    ),
    _gpu("a100-80", 80, 312.0, 156.0, "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", link=300.0, network=200.0),
    # "NVIDIA H100 Tensor Core GPU" (2023): 1979 and 989 with sparsity; PCIe 1513 and 756.
    _gpu("h100", 80, 989.4, 494.7, "NVIDIA H100 80GB HBM3", link=450.0, network=400.0),
    _gpu("h100-pcie", 80, 756.5, 378.0, "NVIDIA H100 PCIe", link=63.0),
    # "NVIDIA H200 Tensor Core GPU" (2024), SXM: the arithmetic of the H100.
    _gpu("h200", 141, 989.4, 494.7, "NVIDIA H200", link=450.0, network=400.0),
    # "NVIDIA HGX B200" (2024), a GPU: 4.5 and 2.2 Pflops/s with sparsity.
    _gpu("b200", 180, 2250.0, 1100.0, "NVIDIA B200", link=900.0, network=400.0),
    # Google Cloud TPU documentation, "System architecture", a chip; links of v4: Jouppi et al. 2023, 6 of 50 GB/s.
    _tpu("tpu-v4", 32, 275.0, "TPU v4", link=300.0, joined=4096),
    _tpu("tpu-v5e", 16, 197.0, "TPU v5 lite", "TPU v5e", link=200.0, joined=256),
    _tpu("tpu-v5p", 95, 459.0, "TPU v5", "TPU v5p", link=600.0, joined=8960),
    _tpu("tpu-v6e", 32, 918.0, "TPU v6 lite", "TPU v6e", link=400.0, joined=256),
)


def find(name: str) -> Device:
    """The device of a name, in capitals or not.

    Raises:
        UserError: it is not in DEVICES.
    """
    known = {device.name: device for device in DEVICES}
    if name.lower() not in known:
        raise UserError("device", name, f"is not one of {', '.join(known)}{nearest(name.lower(), known)}")
    return known[name.lower()]


def of(device: Any) -> Device | None:
    """The entry of DEVICES for a `jax.Device`; None for others, such as a CPU."""
    return next((known for known in DEVICES if device.device_kind in known.kinds), None)


def describe(dtype: str) -> str:
    """A line about the devices of a training, and about a GPU that is present but cannot be used."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"training on {jax.device_count()} x {device.device_kind} ({dtype})"
    cores = f"training on the CPU ({len(os.sched_getaffinity(0))} cores)"
    if any(map(importlib.util.find_spec, CUDA_PLUGINS)) or not _has_nvidia_gpu():
        return cores
    missing = "an NVIDIA GPU is present but this jax has no CUDA support"
    return f"{cores}; {missing}: pip install -r requirements-cuda.txt"


def machine_memory() -> int:
    """Bytes of the machine's own memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory() -> int | None:
    """Bytes of a device of this process, on a CPU those of the machine; None where it is not known."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return machine_memory()
    known = of(device)
    limit: int | None = (device.memory_stats() or {}).get("bytes_limit")
    return limit or (known.memory if known else None)


def _has_nvidia_gpu() -> bool:
    if any(pathlib.Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return "GPU" in listed.stdout
