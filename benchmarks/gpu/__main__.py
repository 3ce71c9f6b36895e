"""python -m benchmarks.gpu [--parts=1-3] [--seconds=420] [--rows=REGEX] [--out=DIR] [--commit=HASH]: measure a GPU.

Parts are processes with a limit of time, whose results are written as they come to DIR/NAME.json:

    1 right    golden cases, flash attention, derivatives, a step of every network, kill and resume, planned memory
    2 ours     training steps and guided samplers of networks of published sizes
      peers_*  the same by PyTorch, where it is installed
    3 loop     time outside the step, saves, start-up
    4 picture  minutes of training on openmoji, samples, Frechet distance

Peers compile some at a time, and measure one after the other when all of these have compiled. --rows measures those
whose names the regular expression finds, such as "XL/2|attention". `python -m benchmarks.gpu.report` makes tables of
the results. --toy takes small sizes, for a CPU. The machine needs what requirements.txt names; torch and diffusers are
the peers'.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from benchmarks.gpu.ours import STEPS
from benchmarks.gpu.results import Results, of_file, ready
from benchmarks.machine import COMMIT, say

PEERS = {f"peers_{re.sub(r'[^a-z0-9]+', '_', name.lower())}": name for name in STEPS}
# (number of a part, share of the time, processes at once); more peers at once than this take longer than one by one.
STAGES = (
    (1, 0.25, ["right"]),
    (2, 0.3, ["ours"]),
    *((2, 0.125, list(PEERS)[i : i + 4]) for i in range(0, len(PEERS), 4)),
    (3, 0.2, ["loop"]),
    (4, 1.0, ["picture"]),
)
GRACE = 15  # seconds that a process may take to end by itself after its time
OTHERS = 6  # seconds that each process which waits for the first needs
COMPILING = 0.65  # share of the time of processes that wait for each other


def numbers(text: str) -> list[int]:
    """ "1-3,5" -> [1, 2, 3, 5]."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def start(name: str, seconds: float, out: pathlib.Path, flags: list[str]) -> subprocess.Popen[bytes]:
    """The process `name`, which waits on its input for its turn."""
    module, of_network = ("peers", [f"--network={PEERS[name]}"]) if name in PEERS else (name, [])
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", f"--seconds={seconds:.0f}", f"--out={out / name}.json"]
    # Memory is taken as it is needed: parts start processes that use the same GPU.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TORCHINDUCTOR_COMPILE_THREADS": "2"} | os.environ
    ready(out / f"{name}.json").unlink(missing_ok=True)
    with open(out / f"{name}.log", "w") as log:
        return subprocess.Popen(
            [*command, *of_network, *flags],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def without_torch(names: list[str], out: pathlib.Path) -> list[str]:
    """The processes but for the peers, of which the results say why; none of them is started to find out."""
    for name in filter(PEERS.__contains__, names):
        results = Results(out / f"{name}.json")
        results.add(f"step, {PEERS[name]}", {"error": "ModuleNotFoundError: No module named 'torch'"})
        results.end("done")
    return [name for name in names if name not in PEERS]


def finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Let a process measure; how it ended."""
    try:
        process.communicate(b"\n", timeout=max(seconds, 1.0))
        return "done" if process.returncode == 0 else f"failed with code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it and all that it started
        process.wait()
        return "cut: its time was over"


def run(names: list[str], seconds: float, out: pathlib.Path, flags: list[str]) -> list[str]:
    """Run processes that prepare at once and measure in turn; how each ended."""
    begun = time.monotonic()
    names = names if importlib.util.find_spec("torch") else without_torch(names, out)
    reserved = OTHERS * (len(names) - 1)  # of what the first might take
    processes = {name: start(name, seconds - reserved * (i == 0), out, flags) for i, name in enumerate(names)}
    if len(names) > 1:
        while time.monotonic() - begun < COMPILING * seconds and any(
            process.poll() is None and not ready(out / f"{name}.json").exists() for name, process in processes.items()
        ):
            time.sleep(0.2)
        say(f"compiled after {time.monotonic() - begun:.0f} s")
    ends = []
    for i, (name, process) in enumerate(processes.items()):
        ends.append(finish(process, seconds - reserved * (i == 0) + GRACE - (time.monotonic() - begun)))
        ready(out / f"{name}.json").unlink(missing_ok=True)
        of_file(out / f"{name}.json").end(ends[-1])
        say(f"{name}: {ends[-1]}")
    return ends


def main() -> int:
    """Run the parts in turn; 1 if one was not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=numbers, default="1-3")
    parser.add_argument("--seconds", type=float, default=420, help="for all parts together")
    parser.add_argument("--rows", default="", help="regular expression of names")
    parser.add_argument("--out", type=pathlib.Path, default=os.environ.get("OUT", "benchmarks/results/gpu"))
    parser.add_argument("--commit", help="what the results name, on a machine that has no repository")
    parser.add_argument("--toy", action="store_true", help="small sizes, for a CPU")
    args = parser.parse_args()
    if args.commit:
        os.environ[COMMIT] = args.commit  # the parts are processes
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    begun, ends = time.monotonic(), []
    flags = [f"--rows={args.rows}", *(["--toy"] if args.toy else [])]
    stages = [stage for number in args.parts for stage in STAGES if stage[0] == number]
    for i, (_, share, names) in enumerate(stages):
        wanted = [name for name in names if name not in PEERS or re.search(args.rows, f"step, {PEERS[name]}")]
        left = args.seconds - (time.monotonic() - begun)
        # What others did not need is shared.
        seconds = left * share / sum(other for _, other, _ in stages[i:])
        ends += run(wanted, max(seconds - GRACE, 10), out, flags) if wanted else []
    return int(any(end != "done" for end in ends))


if __name__ == "__main__":
    sys.exit(main())
