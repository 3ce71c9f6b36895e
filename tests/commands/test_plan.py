"""`plan` as a person runs it: no data, no device, one answer."""

from __future__ import annotations

import json

import pytest

from tests import running

TINY = (running.CONFIG, "--config.model.hidden_size=32", "--config.model.depth=2", "--config.model.scan=True")


@pytest.mark.slow
def test_a_plan_in_a_process_of_its_own() -> None:
    given = (*TINY, "--device=h100", "--devices=4", "--config.mesh.fsdp=4", "--utilisation=0.5", "--json")
    done = running.run("plan", *given, env=running.environment(JAX_PLATFORMS="none"))
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()
    assert "1000 classes" in said[0] and said[1].startswith("4 x h100: 80 GiB")
    parts = {line.split()[0]: float(line.split()[1]) for line in said[7:14]}
    assert list(parts) == ["parameters", "averages", "optimizer", "frozen", "gradients", "activations", "together"]
    assert sum(list(parts.values())[:-1]) == pytest.approx(parts["together"], abs=0.03)
    plan = json.loads(done.stdout)  # one object and nothing else
    assert plan["fits"] is True and plan["devices"] == 4 and plan["device"]["name"] == "h100"


@pytest.mark.slow
def test_classes_are_those_of_the_configuration_or_of_the_flag() -> None:
    said = []
    for classes in (("--num_classes=7",), ("--num_classes=9", "--config.data.num_classes=7")):
        with running.messages() as lines:
            running.call("plan", *TINY, "--device=TPU-v4", *classes)
        said.append(lines)
    assert said[0][1].startswith("1 x tpu-v4: 32 GiB") and said[1] == said[0][1:]


# Arguments -> the flag or field that the answer names.
BAD = {
    "--device=h10": "--device",
    "--devices=1": "--device",
    "--device=h100 --devices=3": "config.batch_size",
    "--device=h100 --devices=4 --config.mesh.fsdp=3": "config.mesh.fsdp",
    "--device=h100 --utilisation=1.5": "--utilisation",
    "--device=h100 --utilisation=nan": "--utilisation",
    "--device=h100 --config.steps=0": "config.steps",
    "--device=h100 --config.model.num_heads=5": "config.model.num_heads",
}


@pytest.mark.parametrize("arguments", BAD)
def test_a_mistake_is_answered_with_its_flag_or_field(arguments: str) -> None:
    refusal = running.refused("plan", *TINY, *arguments.split(" "))
    assert refusal.flag == BAD[arguments], refusal
