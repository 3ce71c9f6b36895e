"""Commands as a person meets them: exit codes, one line for what is wrong, signals, answers for programs."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests import running

COMMAND = '''"""A command."""
import sys, time, numpy
from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command, write_json
from archirf_jax.launch.flags import JSON, Flag

COMMAND = Command(__doc__, JSON, Flag("end", "how", str, "well"), resumable=RESUMABLE)

def main(args):
    if args.end == "wrong":
        raise UserError("model.depth", 3, "is\\nwrong")
    if args.end == "missing":
        open("/nowhere/at/all")
    if args.end == "large":
        raise MemoryError
    if args.end == "late":
        sys.stdout.write("begun\\n")
        sys.stdout.flush()
        for _ in range(6000):  # a signal just before a sleep begins does not end it
            time.sleep(0.1)
    if args.end == "code":
        return 75
    if args.end == "numbers":
        import jax
        from archirf_jax.training.state import purpose_key
        drawn = jax.random.normal(jax.random.fold_in(purpose_key(3, "step"), 1), (4, 3))
        sys.stdout.write(f"{drawn.dtype} {numpy.asarray(drawn).tobytes().hex()}")
    if args.json:
        write_json({"a": numpy.float32(1.5), "b": {"c": float("nan")}, "d": numpy.arange(2)})

COMMAND.run(main)
'''


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("command") / "command.py"
    path.write_text(COMMAND.replace("RESUMABLE", "True"))
    (path.parent / "short.py").write_text(COMMAND.replace("RESUMABLE", "False"))
    return path


def environment(**more: str) -> dict[str, str]:
    return running.environment(PYTHONPATH=str(running.REPOSITORY), **more)


def run(command: pathlib.Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return running.process([sys.executable, str(command), *arguments], env=environment(**more))


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        ([], 0, 0),
        (["--end=code"], 75, 0),
        (["--end=missing"], 2, 1),
        (["--end=large"], 2, 1),
        (["--nonsense"], 2, 1),
        (["--flagfile=/nowhere"], 2, 1),
    ],
)
def test_an_end_has_its_code_and_at_most_one_line(
    arguments: list[str], code: int, lines: int, command: pathlib.Path
) -> None:
    done = run(command, *arguments)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (code, lines, ""), done.stderr


def test_an_error_names_its_field(command: pathlib.Path) -> None:
    done = run(command, "--end=wrong")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: config.model.depth: 3 is wrong\n")


def test_help_lists_the_flags(command: pathlib.Path) -> None:
    done = run(command, "--help")
    assert done.returncode == 0 and "--end" in done.stdout and "--json" in done.stdout


def test_answers_are_json_whatever_the_numbers_are(command: pathlib.Path) -> None:
    assert json.loads(run(command, "--json").stdout) == {"a": 1.5, "b": {"c": None}, "d": [0, 1]}


def test_a_device_that_is_not_there_is_one_line(command: pathlib.Path) -> None:
    done = run(command, JAX_PLATFORMS="nonsense")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nonsense" in done.stderr


def test_no_setting_of_jax_changes_the_numbers_of_a_run(command: pathlib.Path) -> None:
    settings = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg", "JAX_THREEFRY_PARTITIONABLE": "0"}
    numbers = run(command, "--end=numbers").stdout
    assert numbers.startswith("float32 ") and run(command, "--end=numbers", **settings).stdout == numbers


def test_closed_streams_do_no_harm(command: pathlib.Path) -> None:
    start = f"exec {sys.executable} {command}"
    for flags, streams, code in (("--end=wrong", "2>&-", 2), ("--json", ">&- 2>&-", 0)):
        assert running.process(["bash", "-c", f"{start} {flags} {streams}"], env=environment()).returncode == code


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_ends_a_run_with_the_code_of_what_goes_on_later(name: str, command: pathlib.Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(command), "--end=late"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.Signals[name])
    assert process.wait(120) == 75
    assert process.stderr is not None and process.stderr.read().count("\n") == 1


def test_signals_are_taken_before_jax_is_imported(command: pathlib.Path) -> None:
    """A module in jax's place sends the signal while it is imported."""
    fake = command.parent / "fake"
    fake.mkdir()
    (fake / "jax.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nimport time\ntime.sleep(600)\n"
    )
    path = os.pathsep.join([str(fake), str(running.REPOSITORY)])
    done = running.process([sys.executable, str(command)], env=running.environment(PYTHONPATH=path))
    assert done.returncode == 75, done.stderr


def test_a_training_takes_signals_before_its_other_imports(tmp_path: pathlib.Path) -> None:
    """A package that every command imports sends the signal."""
    (tmp_path / "absl.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    path = os.pathsep.join([str(tmp_path), str(running.REPOSITORY)])
    done = running.process([sys.executable, "-m", "archirf_jax.main"], env=running.environment(PYTHONPATH=path))
    assert done.returncode == 75, done.stderr


def test_ctrl_c_ends_other_commands_as_a_persons_choice(command: pathlib.Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(command.parent / "short.py"), "--end=late"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 2
