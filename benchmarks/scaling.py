"""python -m benchmarks.scaling [--out=FILE] [--devices=1,8,64] [--no_times] [--toy]: how a training step scales.

What a device holds and sends is read from programs that XLA compiles for 1, 8 and 64 simulated devices, each number
in a process of its own; nothing is run. They train DiT-S/2 and DiT-XL/2 on 32x32x4 latents, scanned, 8 images a device,
in float16 in the place of bfloat16, which a CPU would widen. `sent` is as in `archirf_jax.tasks.communication`.

Then the seconds of a step and the memory of small DiTs on one device against batch, depth and tokens, in turns, the
quickest of each. Exponents are slopes of least squares between logarithms, with their standard errors. In theory
a step is linear in batch and in depth, and its exponent in tokens between 1 (all but attention) and 2 (attention).
Times mean something on a quiet machine alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from archirf_jax import sharding
from archirf_jax.launch import host
from archirf_jax.models.dit import PRESETS
from archirf_jax.tasks import communication, footprint
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.footprint import changed
from benchmarks.machine import say, write
from configs import dit_rf

# Of a program that is never run nothing depends on how good its machine code is. The old emitters of fusions take a
# third of the new ones' time, and the programs hold and send the same.
EMITTERS = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
FLAGS = f"--xla_backend_optimization_level=0 {EMITTERS} --xla_force_host_platform_device_count="
ROOT = pathlib.Path(__file__).parents[1]
DEVICES = (1, 8, 64)
IMAGES = 8  # a device
NETWORKS = {f"DiT-{size}/2": PRESETS[f"{size}/2"] for size in ("S", "XL")}
TOY = {"hidden_size": 64, "depth": 2, "num_heads": 2, "patch_size": 2}
SMALL = {"hidden_size": 128, "depth": 4, "num_heads": 4, "patch_size": 2}
TIMED = {"small": SMALL, "toy": TOY}
BASE = {"batch": 16, "depth": 4, "tokens": 64}
SWEEPS = {"batch": (8, 16, 32, 64), "depth": (2, 4, 8, 16), "tokens": (16, 64, 256, 1024)}
THEORY = {"batch": (1, 1), "depth": (1, 1), "tokens": (1, 2)}  # exponents of a step's time, from, to


def configuration(network: dict[str, Any], side: int, batch_size: int, **model: Any) -> Any:
    """A rectified flow with a DiT, as published, on images (side, side, 4)."""
    fields = network | {"scan": True, "registers": 0, "qk_norm": None} | model
    data = {"num_classes": 1000, "image_size": side, "channels": 4}
    named = {f"model.{name}": value for name, value in fields.items()} | {f"data.{k}": v for k, v in data.items()}
    return changed(dit_rf.get_config("imagenet64"), named | {"batch_size": batch_size, "model.remat": False})


def meshes(devices: int) -> list[tuple[int, int]]:
    """(data, fsdp) of so many devices: neither cut, all cut, and cut within machines of eight."""
    return sorted({(devices, 1), (1, devices), (max(1, devices // 8), min(8, devices))})


def compiled(devices: int, networks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What a device holds and sends in a step, by network and mesh; this process must have so many."""
    rows = []
    for name, network in networks.items():
        for data, fsdp in meshes(devices):
            config = configuration(network, 32, IMAGES * devices, dtype="float16")
            mesh = sharding.make_mesh(data, fsdp)
            program, state = footprint.compiled(make_task(config), {}, mesh, config.batch_size)
            counts = communication.count(program.as_text())
            params = sum(leaf.size for leaf in jax.tree.leaves(state.networks["model"].params))
            row = {"network": name, "data": data, "fsdp": fsdp, "parameters": params}
            rows.append(
                row
                | {"state_bytes": footprint.held(state, fsdp), "memory_bytes": footprint.taken(program)}
                | {"sent_bytes": communication.sent(counts)}
                | {"by_kind": {kind: dataclasses.asdict(each) for kind, each in counts.items()}}
            )
    return rows


def in_a_process(devices: int, toy: bool) -> list[dict[str, Any]]:
    """`compiled`, in a process whose CPU stands for so many devices."""
    env = os.environ | {"XLA_FLAGS": f"{FLAGS}{devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.scaling", f"--compile={devices}", *["--toy"] * toy]
    done = subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


@functools.cache
def initialize(network: str, depth: int) -> Any:
    """The compiled key -> state, which neither the batch nor the number of tokens decides."""
    side = 2 * round(BASE["tokens"] ** 0.5)
    task: Any = make_task(configuration(TIMED[network] | {"depth": depth}, side, BASE["batch"], dtype="float32"))
    return jax.jit(lambda key: task.init(key, {}))


class Timed:
    """A small DiT's training step on one device.

    Attributes:
        memory: bytes that it takes besides its state.
    """

    def __init__(self, network: str, batch: int, depth: int, tokens: int) -> None:
        """Compile it, and make a state."""
        side = 2 * round(tokens**0.5)  # patches of 2
        config = configuration(TIMED[network] | {"depth": depth}, side, batch, dtype="float32")
        task: Any = make_task(config)
        mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
        self._program, shapes = footprint.compiled(task, {}, mesh, batch)
        self.memory = footprint.taken(self._program) - footprint.held(shapes, 1)
        place = sharding.whole(mesh)
        self._state = jax.device_put(initialize(network, depth)(jax.random.key(0)), place)
        images = {"image": np.zeros((batch, side, side, 4), np.float32), "label": np.zeros(batch, np.int32)}
        self._batch = jax.device_put(images, place)

    def seconds(self) -> float:
        """Of one step."""
        begun = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._program(self._state, {}, self._batch, jax.random.key(1)))
        return time.perf_counter() - begun


def exponent(x: Any, y: Any) -> dict[str, float]:
    """The slope of log y over log x and its standard error, by least squares."""
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    return {"exponent": slope, "error": float((rest @ rest / (len(x) - 2) / (x @ x)) ** 0.5)}


def timed(rounds: int, toy: bool) -> dict[str, Any]:
    """Seconds and bytes against batch, depth and tokens, and their exponents."""
    found, made = {}, functools.cache(Timed)  # BASE is a value of every sweep
    for name in ("tokens",) if toy else SWEEPS:
        values = SWEEPS[name][: 3 if toy else None]
        steps = [made("toy" if toy else "small", **BASE | {name: value}) for value in values]
        each = np.array([[step.seconds() for step in steps] for _ in range(rounds + 1)])[1:]  # the first is slower
        seconds, memory = each.min(axis=0).tolist(), [step.memory for step in steps]
        found[name] = {
            **{"values": values, "seconds": seconds, "bytes": memory, "theory": THEORY[name]},
            **{"time": exponent(values, seconds), "memory": exponent(values, memory)},
        }
    return found


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no_times", action="store_true", help="compile only")
    parser.add_argument("--toy", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--compile", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args()
    host.set_up()  # as the commands do
    if given.compile:
        say(json.dumps(compiled(given.compile, {"toy": TOY} if given.toy else NETWORKS)))
        return
    rows = [row for number in given.devices.split(",") for row in in_a_process(int(number), given.toy)]
    say("| network | data x fsdp | GiB a device | sent a step, GB | gathers | reductions |\n|---|---|---|---|---|---|")
    for row in rows:
        kinds = row["by_kind"]
        times = " | ".join(str(kinds.get(kind, {}).get("operations", 0)) for kind in ("all-gather", "all-reduce"))
        sizes = f"{row['memory_bytes'] / 2**30:.2f} | {row['sent_bytes'] / 1e9:.3f}"
        say(f"| {row['network']} | {row['data']} x {row['fsdp']} | {sizes} | {times} |")
    figures: dict[str, Any] = {"images_per_device": IMAGES, "compiled": rows}
    if not given.no_times:
        figures["timed"] = timed(given.rounds, given.toy)
        for name, found in figures["timed"].items():
            time_, memory = found["time"], found["memory"]
            say(
                f"{name}: time {time_['exponent']:.2f} +- {time_['error']:.2f} (theory {found['theory']}), "
                f"memory {memory['exponent']:.2f} +- {memory['error']:.2f}"
            )
    write(figures, given.out)


if __name__ == "__main__":
    main()
