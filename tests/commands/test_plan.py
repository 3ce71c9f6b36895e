"""`plan` as a person runs it: no data, no device, one answer."""

from __future__ import annotations

import logging as std_logging
import re
import sys
from collections.abc import Callable

import pytest

from tests import running
from tests.commands.alone import Command

PLAN = Command("archirf_jax.plan")
TINY = (
    "--config=configs/dit_rf.py",
    *("--config.model.hidden_size=32", "--config.model.depth=2", "--config.model.scan=True"),
)


@pytest.fixture
def say(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What a plan of TINY says, or complains of."""

    def said(*arguments: str, wrong: bool = False) -> list[str]:
        everything = (*TINY, *arguments)
        monkeypatch.setattr(sys, "argv", ["plan", *everything])  # where overrides are looked for
        if wrong:
            return [PLAN.complaint(*everything)]
        caplog.clear()
        with caplog.at_level(std_logging.INFO):
            PLAN(*everything)
        return [record.getMessage() for record in caplog.records if record.name == "absl"]

    return said


def test_a_plan_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "archirf_jax.plan", *TINY, "--device=h100", "--devices=4"]
    done = running.run([*command, "--config.mesh.fsdp=4", "--utilisation=0.5"])
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert said[0] == "taking 1000 classes, as --num_classes says"
    assert said[1] == "4 x h100: 80 GiB and 494.7 Tflops/s in float32 each"
    assert [line.split()[0] for line in said[2:6]] == ["network", "an", "a", "the"]
    assert "for 128 images at 50% of the peak" in said[4] and said[5].endswith("days for 2,000 steps")
    assert said[6] == "GiB a device, 32 images at a time:"
    parts = {line.split()[0]: float(line.split()[1]) for line in said[7:13]}
    assert list(parts) == ["parameters", "averages", "optimizer", "gradients", "activations", "together"]
    assert sum(list(parts.values())[:5]) == pytest.approx(parts["together"], abs=0.03)
    assert said[12].endswith("of the device: fits")


def test_classes_are_those_of_the_configuration_or_of_the_flag(say: Callable[..., list[str]]) -> None:
    by_flag = say("--device=TPU-v4", "--num_classes=7")
    assert by_flag[0] == "taking 7 classes, as --num_classes says"
    assert by_flag[1].startswith("1 x tpu-v4: 32 GiB and 275 Tflops/s in float32")
    assert say("--device=tpu-v4", "--num_classes=9", "--config.data.num_classes=7") == by_flag[1:]


def test_mistakes_are_answered_in_one_line(say: Callable[..., list[str]]) -> None:
    for arguments, answer in {
        ("--device=h10",): "--device: 'h10' is not one of .*did you mean 'h100'",
        ("--device=h100", "--devices=3"): "--devices: 3 times accumulation=1 does not divide batch_size=128",
        ("--device=h100", "--devices=4", "--config.mesh.fsdp=3"): "config.mesh.fsdp: 3 does not divide --devices=4",
        ("--device=h100", "--utilisation=1.5"): ".*utilisation",
        ("--device=h100", "--config.steps=0"): "config.steps: 0 must be above 0",
        ("--device=h100", "--config.model.num_heads=5"): "config.model.num_heads: 5 does not divide",
    }.items():
        assert re.match(answer, say(*arguments, wrong=True)[0])
