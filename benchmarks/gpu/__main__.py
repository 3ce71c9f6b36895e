"""python -m benchmarks.gpu [--parts=1-5] [--seconds=420] [--out=DIR] [--toy]: measure a machine with a GPU.

Parts, each a process of its own with a limit of time, whose results are written as they come to DIR/NAME.json:

    1 right     golden cases, flash attention, derivatives, a step of every network, kill and resume, planned memory
    2 steps     training steps of networks of published sizes; then `peers`, the same by PyTorch, where it is installed
    3 sampling  images a second with guidance, all the way and within an interval
    4 loop      time outside the step, saves, start-up
    5 picture   minutes of training on openmoji, samples, Frechet distance

--toy takes small sizes, for a CPU. The machine needs what requirements.txt names; torch and diffusers are the peers'.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import time

from benchmarks.gpu.results import of_file
from benchmarks.machine import say

# Number of a part -> its processes, each with its share of the time.
PARTS = {
    1: {"right": 0.34},
    2: {"steps": 0.24, "peers": 0.18},
    3: {"sampling": 0.12},
    4: {"loop": 0.12},
    5: {"picture": 1.0},
}
GRACE = 15  # seconds that a process may take to end by itself after its time


def numbers(text: str) -> list[int]:
    """ "1-3,5" -> [1, 2, 3, 5]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def run(name: str, seconds: float, out: pathlib.Path, toy: bool) -> str:
    """Run the process of a part; how it ended."""
    path = out / f"{name}.json"
    command = [sys.executable, "-m", f"benchmarks.gpu.{name}", f"--seconds={seconds:.0f}", f"--out={path}"]
    # Memory is taken as it is needed: parts start processes that use the same GPU.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ
    with open(out / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            [*command, *(["--toy"] if toy else [])],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds + GRACE)
            return "done" if code == 0 else f"failed with code {code}; see {log.name}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it and all that it started
            process.wait()
            return f"cut after {seconds + GRACE:.0f} s"


def main() -> int:
    """Run the parts in turn; 1 if one was not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=numbers, default="1-4")
    parser.add_argument("--seconds", type=float, default=420, help="for all parts together")
    parser.add_argument("--out", type=pathlib.Path, default=os.environ.get("OUT", "benchmarks/results/gpu"))
    parser.add_argument("--toy", action="store_true", help="small sizes, for a CPU")
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    begun, ends = time.monotonic(), []
    processes = [(name, share) for number in args.parts for name, share in PARTS[number].items()]
    for i, (name, share) in enumerate(processes):
        left = args.seconds - (time.monotonic() - begun)
        seconds = left * share / sum(share for _, share in processes[i:])  # what others did not need is shared
        end = run(name, max(seconds - GRACE, 10), out, args.toy)
        of_file(out / f"{name}.json").end(end)
        say(f"{name}: {end}")
        ends.append(end)
    return int(any(end != "done" for end in ends))


if __name__ == "__main__":
    sys.exit(main())
