"""The launch files of docs/scaling.md start two processes that train as one, here without their schedulers."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import socket
import sys
from typing import Any

import pytest
import yaml

from archirf_jax.main import COMMAND
from tests import running

FILES = running.REPOSITORY / "docs" / "launch"
TRAIN = "--config=configs/dit_rf.py --workdir=runs/dit"
ONE_DEVICE = {"XLA_FLAGS": running.ONE_DEVICE}
# What srun does as far as a process can tell: its number, how many there are, and where.
SRUN = """#!/usr/bin/env bash
while [ "${1:0:2}" = "--" ]; do shift; done
export SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NODELIST=localhost
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids[$i]=$!; done
code=0
for i in 0 1; do wait "${pids[$i]}" || code=$?; done
exit $code
"""
# What main does until it has data: it joins the others.
JOIN = """
import sys, jax
from archirf_jax.launch import distributed
from archirf_jax.main import COMMAND
assert sys.argv[1:3] == ["-m", "archirf_jax.main"]
args = COMMAND.parse(sys.argv[3:])
distributed.start(args.coordinator, args.processes, args.process)
print(f"{jax.process_index()} of {jax.process_count()}: {args.workdir}")
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def container(document: dict[str, Any]) -> dict[str, Any]:
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 2
    return job["template"]["spec"]["containers"][0]


@pytest.mark.slow
def test_the_slurm_script_starts_two_tasks_that_join_and_requeues_a_run_that_was_asked_to_stop(
    tmp_path: pathlib.Path,
) -> None:
    """That processes that joined train as one is shown by `commands/test_processes.py`."""
    programs = {
        "srun": SRUN,
        "scontrol": f'#!/usr/bin/env bash\necho "$@" > {tmp_path}/requeued\n',
        "python": f"#!/usr/bin/env bash\nexec {sys.executable} -c '{JOIN}' \"$@\"\n",
    }
    for name, program in programs.items():
        (tmp_path / name).write_text(program)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    here = running.environment(PATH=path, PYTHON=str(tmp_path / "python"), SLURM_JOB_ID=str(free_port()), **ONE_DEVICE)
    script = ["bash", str(FILES / "slurm.sh"), *shlex.split(TRAIN)]
    done = running.process(script, env=here)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"\d of \d: runs/dit", done.stdout)  # what joins them may print, too
    assert sorted(found) == ["0 of 2: runs/dit", "1 of 2: runs/dit"], done.stdout
    assert not (tmp_path / "requeued").exists()
    (tmp_path / "srun").write_text("#!/usr/bin/env bash\nexit 75\n")
    assert running.process(script, env=here).returncode == 75
    assert (tmp_path / "requeued").read_text().split() == ["requeue", here["SLURM_JOB_ID"]]


def assert_joins(command: str, i: int, **given: str) -> None:
    """A shell's command, with `echo` for Python, starts main as process i of two of a training.

    That such flags train as one is shown by `commands/test_processes.py`.
    """
    shown = running.process(["bash", "-c", command], env=running.environment(**given))
    module, *arguments = shown.stdout.removeprefix("-m ").split()
    assert module == "archirf_jax.main" and arguments[:2] == TRAIN.split()
    parsed = COMMAND.parse(arguments)
    assert (parsed.coordinator, parsed.processes, parsed.process) == ("here:8476", 2, i)


def test_the_jobset_starts_two_pods_that_know_each_other() -> None:
    pod = container(yaml.safe_load((FILES / "jobset.yaml").read_text()))
    assert pod["command"] == ["bash", "-c"]
    given = {"TRAIN": TRAIN, "COORDINATOR": "here"}
    assert given.keys() == {variable["name"] for variable in pod["env"]}
    for i in range(2):
        assert_joins(pod["args"][0].replace("exec python ", "exec echo "), i, JOB_COMPLETION_INDEX=str(i), **given)


def test_the_skypilot_task_starts_two_nodes_that_know_each_other() -> None:
    task = yaml.safe_load((FILES / "skypilot.yaml").read_text())
    assert task["num_nodes"] == 2 and list(task["envs"]) == ["TRAIN"]
    given = {"TRAIN": TRAIN, "SKYPILOT_NODE_IPS": "here\nthere", "SKYPILOT_NUM_NODES": "2", "PYTHON": "echo"}
    for i in range(2):
        assert_joins(task["run"], i, SKYPILOT_NODE_RANK=str(i), **given)


def test_what_the_files_train_is_a_configuration_of_the_project() -> None:
    documents = [yaml.safe_load((FILES / name).read_text()) for name in ("jobset.yaml", "skypilot.yaml")]
    values = {variable["name"]: variable["value"] for variable in container(documents[0])["env"]}
    for train in (values["TRAIN"], documents[1]["envs"]["TRAIN"]):
        config = next(flag for flag in shlex.split(train) if flag.startswith("--config="))
        assert (running.REPOSITORY / config.removeprefix("--config=").partition(":")[0]).is_file()
