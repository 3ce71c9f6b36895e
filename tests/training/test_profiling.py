"""Recordings: of exactly the steps that were asked for, ended whatever happens, and none unless asked."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import profiling
from archirf_jax.training.profiling import Profile, parse

END, DISPATCH, LOGGED = 40, 8, 10


@pytest.mark.parametrize(("text", "steps"), [("100..110", (100, 110)), ("1..1", (1, 1)), ("007..9", (7, 9))])
def test_a_range_of_steps_is_read(text: str, steps: tuple[int, int]) -> None:
    assert parse(text) == steps


@pytest.mark.parametrize("text", ["", "5", "5..", "..5", "0..3", "9..8", "1...3", "1..2..3", "-1..2", "a..b", "1.5..2"])
def test_what_is_not_a_range_of_steps_is_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert (caught.value.field, caught.value.value) == ("profile", text)


class Recorder:
    """In place of jax's profiler: which steps ran while it did, and whether they were waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded: list[int] = []
        self.folders: list[str] = []
        self.waited = self.running = self.whole = False
        monkeypatch.setattr(jax.profiler, "start_trace", self.start)
        monkeypatch.setattr(jax.profiler, "stop_trace", self.stop)
        monkeypatch.setattr(jax, "block_until_ready", self.wait)

    def wait(self, state: Any) -> Any:
        self.waited = True
        return state

    def start(self, folder: str) -> None:
        assert not self.running and self.waited  # else earlier steps would be on it
        self.folders.append(folder)
        self.running = True

    def stop(self) -> None:
        assert self.running
        self.running, self.whole = False, self.waited  # else its last steps would be missing

    def paused(self, profile: Profile, step: int) -> None:
        """Images are drawn and checkpoints written now: none of that is for a recording whose last step is done."""
        assert not (self.running and not profile.after(step))

    def ran(self, first: int, n: int) -> None:
        self.waited = False
        self.recorded += range(first, first + n) if self.running else []


def loop(profile: Profile, recorder: Recorder, start: int = 0, end: int = END) -> int:
    """What the training loop does; how many dispatches it took."""
    step, dispatches = start, 0
    with profile:
        while step < end:
            n = min(end, step + DISPATCH, step - step % LOGGED + LOGGED, *profile.after(step)) - step
            assert n > 0
            profile.begin(step, "state")
            recorder.ran(step + 1, n)
            step, dispatches = step + n, dispatches + 1
            profile.end(step, "state")
            recorder.paused(profile, step)
    return dispatches


@pytest.mark.parametrize("steps", [(1, 1), (1, 3), (5, 5), (9, 12), (12, 31), (40, 40), (1, 40)])
def test_exactly_the_asked_steps_are_recorded_wherever_dispatches_end(
    steps: tuple[int, int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    loop(Profile(tmp_path, steps), recorder)
    assert recorder.recorded == list(range(steps[0], steps[1] + 1)) and not recorder.running
    assert recorder.whole and recorder.folders == [str(tmp_path / profiling.FOLDER)]


@pytest.mark.parametrize(
    ("steps", "start", "expected"),
    [((5, 9), 4, range(5, 10)), ((5, 9), 7, []), ((5, 9), 20, []), ((38, 50), 0, range(38, 41)), ((60, 70), 0, [])],
)
def test_a_run_that_begins_later_or_ends_earlier_records_what_it_runs_of_a_whole_beginning(
    steps: tuple[int, int], start: int, expected: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    loop(Profile(tmp_path, steps), recorder, start)
    assert recorder.recorded == list(expected) and not recorder.running


def test_without_steps_nothing_is_recorded_and_nothing_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(monkeypatch)
    assert loop(Profile(tmp_path), recorder) == 2 * END // LOGGED  # nor is a dispatch cut
    assert not recorder.folders and not recorder.waited


@pytest.mark.slow
def test_a_recording_is_on_disk_after_an_error_too_and_another_can_follow(tmp_path: pathlib.Path) -> None:
    compute = jax.jit(lambda x: x @ x)
    for name in ("first", "second"):
        with pytest.raises(KeyError), Profile(tmp_path / name, (2, 9)) as profile:
            profile.begin(1, compute(jnp.ones((8, 8))))
            compute(jnp.ones((8, 8)))
            raise KeyError
        files = list((tmp_path / name / profiling.FOLDER).rglob("*.xplane.pb"))
        assert len(files) == 1 and files[0].stat().st_size > 1000
