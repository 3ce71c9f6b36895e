"""python -m benchmarks.networks [--torch=PYTHON] [--rounds=9] [--out=FILE]: each network and its reference.

The largest relative error against the stored outputs of the published code, trainable parameters, multiply-adds of an
image, and seconds of a forward pass and of a training step (loss, gradient, AdamW) in float32. PYTHON is an interpreter
that has torch and diffusers; its network of the same size is timed in turns with ours, call by call, and the median of
all rounds counts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from archirf_jax.contracts import Condition
from archirf_jax.launch import host
from archirf_jax.models import binding
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.dit import DiT
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.mmdit import MMDiT
from benchmarks.flops import gflops, parameters, shapes_of
from benchmarks.machine import say, write
from tests.golden.cases import compare, load

GOLDEN = pathlib.Path(__file__).parents[1] / "tests/golden"
SMALL: dict[str, Any] = dict(num_classes=10, model_channels=64, channel_mult=(1, 2, 2))
KINDS = ("forward", "step")
# Of numpy: an array of JAX's would start its threads before the process is set up.
LABEL: Any = {"label": np.zeros(1, np.int32)}
TEXT: Any = {"tokens": np.zeros((1, 77, 768), np.float32), "pooled": np.zeros((1, 768), np.float32)}


class Row(NamedTuple):
    """A network that is timed.

    Attributes:
        model: the network.
        size: what it is called.
        image_shape: of one image.
        batch: images a step.
        cases: the files of its golden cases.
        condition: an example of what it takes, with a leading axis.
    """

    model: Any
    size: str
    image_shape: tuple[int, int, int]
    batch: int
    cases: str
    condition: Condition = LABEL


ROWS = {
    "dit": Row(DiT(num_classes=10, null_label=True), "S/2, 32x32x4", (32, 32, 4), 8, "dit_*.npz"),
    "mmdit": Row(
        MMDiT(context="text", context_width=768, pooled_width=768, position_size=32),
        *("6 blocks of width 384, 32x32x16 and 77 tokens", (32, 32, 16), 8, "mmdit_*.npz", TEXT),
    ),
    "adm_unet": Row(
        ADMUNet(**SMALL, num_res_blocks=2, attention_downsamples=(2, 4), num_head_channels=64, resblock_updown=False),
        *("64 channels, (1, 2, 2), 32x32x3", (32, 32, 3), 8, "adm_*.npz"),
    ),
    "edm2_unet": Row(
        EDM2UNet(**SMALL, num_blocks=2, attention_levels=(1, 2)),
        *("64 channels, (1, 2, 2), 32x32x3", (32, 32, 3), 8, "edm2_*.npz"),
    ),
}


class Ours:
    """A network of ours whose compiled forward pass and training step can be timed."""

    def __init__(self, row: Row) -> None:
        """Compile nothing yet."""
        model, keys = row.model, jax.random.split(jax.random.key(0), 3)
        shapes = shapes_of(model, row.image_shape, row.condition, row.batch)[1:]
        x, t, condition = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        x, target = jax.random.normal(keys[0], x.shape), jax.random.normal(keys[1], x.shape)
        params = jax.jit(lambda *each: binding.init(model, *each))(keys[2], x, t, condition)
        optimizer = optax.adamw(1e-4)
        project = getattr(model, "normalize_weights", lambda params: params)

        # All inputs are arguments: constants would be folded by the compiler.
        def forward(params: Any, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
            return binding.bind(model, params)(x, t, condition)[0]

        def step(carry: Any, *inputs: Any) -> Any:
            params, state = project(carry[0]), carry[1]
            gradients = jax.grad(lambda params: jnp.mean((forward(params, *inputs) - target) ** 2))(params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self._forward, self._step = jax.jit(forward), jax.jit(step, donate_argnums=0)
        self._carry, self._inputs = (params, optimizer.init(params)), (x, t, condition)

    @property
    def params(self) -> Any:
        """The parameters now."""
        return self._carry[0]

    def seconds(self, kind: str) -> float:
        """Seconds of one call of 'forward' or 'step'."""
        begun = time.perf_counter()
        if kind == "forward":
            jax.block_until_ready(self._forward(self.params, *self._inputs))
        else:
            self._carry = jax.block_until_ready(self._step(self._carry, *self._inputs))
        return time.perf_counter() - begun


class Theirs:
    """The interpreter that has PyTorch."""

    def __init__(self, python: str) -> None:
        """Start it."""
        command = [python, "-m", "benchmarks.networks_torch"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> Any:
        """Its answer to a line."""
        assert self._process.stdin and self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("error: --torch: this interpreter ended; it needs torch and diffusers")
        return json.loads(answer)


def measure(name: str, row: Row, theirs: Theirs | None, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    errors = [compare(load(path))[0] for path in sorted(GOLDEN.glob(row.cases))]
    ours = Ours(row)
    about = theirs.ask(f"{name} {row.batch}") if theirs else None
    seconds: dict[str, list[float]] = {}
    for _ in range(rounds + 1):  # the first compiles
        for kind in KINDS:
            seconds.setdefault(kind, []).append(ours.seconds(kind))
            if theirs:
                seconds.setdefault(f"torch_{kind}", []).append(theirs.ask(kind))
    return {
        "size": row.size,
        "batch": row.batch,
        "golden_cases": len(errors),
        "largest_relative_error": max(errors),
        "parameters": parameters(ours.params),
        "gflops": gflops(row.model, row.image_shape, row.condition),
        **{f"{kind}_seconds": statistics.median(times[1:]) for kind, times in seconds.items()},
        **({"reference": about} if about else {}),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| network | size | largest relative error | parameters | Gflops | forward, ours / PyTorch | step, the same |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        pairs = [(row[f"{kind}_seconds"], row.get(f"torch_{kind}_seconds")) for kind in KINDS]
        times = [f"{a:.3f} s / {f'{b:.3f} s' if b else 'none'}" for a, b in pairs]
        counts = f"{row['parameters'] / 1e6:.2f} M | {row['gflops']:.2f}"
        error = f"{row['largest_relative_error']:.1e} in {row['golden_cases']} cases"
        lines.append(f"| `{name}` | {row['size']} | {error} | {counts} | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, say, and with --out write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", help="Python interpreter with torch and diffusers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--networks", default=",".join(ROWS), help="some of them")
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args()
    host.set_up()  # as the commands do
    found = {}
    for name in given.networks.split(","):
        referenced = given.torch and name != "edm2_unet"  # of which the package index has none
        found[name] = measure(name, ROWS[name], Theirs(given.torch) if referenced else None, given.rounds)
    say(table(found))
    write({"networks": found}, given.out)


if __name__ == "__main__":
    main()
