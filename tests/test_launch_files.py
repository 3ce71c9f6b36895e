"""The launch files of docs/scaling.md start two processes that train as one, here without their schedulers."""

from __future__ import annotations

import os
import pathlib
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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def flags(workdir: pathlib.Path, data_dir: pathlib.Path, *extra: str) -> list[str]:
    return running.small(workdir, data_dir, "--config.steps=15", "--config.mesh.data=None", *extra)


def container(document: dict[str, Any]) -> dict[str, Any]:
    job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == 2
    return job["template"]["spec"]["containers"][0]


@pytest.mark.slow
def test_the_slurm_script_trains_with_two_tasks_and_requeues_a_run_that_was_asked_to_stop(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" > {tmp_path}/requeued\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    here = running.environment(
        PATH=f"{programs}:{os.environ['PATH']}", PYTHON=sys.executable, SLURM_JOB_ID=str(free_port()), **ONE_DEVICE
    )
    script = ["bash", str(FILES / "slurm.sh")]
    done = running.process([*script, *flags(tmp_path / "run", data_dir)], env=here)
    assert done.returncode == 0, done.stderr
    assert "step 15/15" in done.stderr and "2 processes" in done.stderr and not (tmp_path / "requeued").exists()
    (programs / "srun").write_text("#!/usr/bin/env bash\nexit 75\n")
    stopped = running.process([*script, *flags(tmp_path / "run", data_dir)], env=here)
    assert stopped.returncode == 75
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
