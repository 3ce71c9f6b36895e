"""python -m benchmarks.gpu.offline --network="DiT-XL/2" [--depth=4] [--scan] [--batch=32] [--text=FILE].

A training step as XLA compiles it for an H200, on a machine that has none: what it takes of the memory, and the bytes
that its kernels read and write, which is what all but its matrix products wait for. It needs jax's CUDA packages
(requirements-cuda.txt), but neither a GPU nor its driver. Kernels are not tried out, so that their choice may differ.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import time
from typing import Any
from unittest import mock

# Before jax loads its plugin, which looks for a driver.
os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "JAX_PLATFORMS": ""}

import jax
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.lib import xla_client
from jax.experimental import topologies

from archirf_jax.data.fields import shapes
from archirf_jax.launch import host
from archirf_jax.tasks.building import make_task
from benchmarks.gpu.networks import NETWORKS

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H200"
"""


def compiled(config: Any, batch_size: int) -> Any:
    """The step of a configuration, compiled for an H200."""
    config.batch_size = batch_size
    found = topologies.get_topology_desc("one", "cuda", target_config=H200, topology="1x1x1")
    place = jax.sharding.SingleDeviceSharding(found.devices[0])

    def on_device(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)

    task: Any = make_task(config)
    key = jax.eval_shape(jax.random.key, 0)
    state = jax.eval_shape(lambda key: task.init(key, {}), key)
    inputs: Any = on_device(state), {}, on_device(shapes(task.fields, batch_size)), on_device(key)
    with (
        mock.patch.object(jax, "default_backend", lambda: "gpu"),
        mock.patch.object(cudnn, "check_cudnn_version", lambda: 91000),
        mock.patch.object(cudnn, "check_compute_capability", lambda _: True),
        mock.patch.object(cudnn, "is_cuda_compute_capability_equal", lambda _: False),
    ):
        return jax.jit(task.step, donate_argnums=0).lower(*inputs).compile()


def main() -> None:
    """Print the figures of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--depth", type=int, help="blocks, where it has them")
    parser.add_argument("--scan", action="store_true", help="blocks in a loop")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--text", type=pathlib.Path, help="where to write the program")
    args = parser.parse_args()
    host.set_gpu_flags()  # as the commands do
    network = NETWORKS[args.network]
    config = network.config(False)
    with config.unlocked():
        config.model.update(({"depth": args.depth} if args.depth else {}) | ({"scan": True} if args.scan else {}))
    begun = time.perf_counter()
    step = compiled(config, args.batch or network.batch)
    memory = step.memory_analysis()
    (module,) = step.runtime_executable().hlo_modules()
    cost = xla_client._xla.hlo_module_cost_analysis(jax.devices("cpu")[0].client, module)
    taken = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(f"compiled in {time.perf_counter() - begun:.0f} s")
    print(f"memory {taken / 2**30:.2f} GiB, {memory.argument_size_in_bytes / 2**30:.2f} of it the state")
    print(f"read and written {cost['bytes accessed'] / 1e9:.1f} GB, what is in a loop once")
    if args.text:
        args.text.write_text(step.as_text())


if __name__ == "__main__":
    main()
