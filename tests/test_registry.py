"""Laws of finding things by name: a new file is a new choice; a wrong word is answered with the nearest right one."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import jax
import numpy as np
import pytest

from archirf_jax import models, processes, registry
from archirf_jax.errors import UserError, nearest
from archirf_jax.processes.rectified_flow import RectifiedFlow
from archirf_jax.samplers import grids, solvers
from archirf_jax.samplers.denoisers import Network
from archirf_jax.samplers.sample import sample

KETTLE = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Kettle:
    litres: float = 1.0
    colour: str = "red"

build = Kettle
"""
STAY = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Stay:
    offset: float = 0.0

    def init(self, denoise, grid, x):
        return ()

    def step(self, z, denoise, x, t, t_next, y, memory):
        return x * 0 + self.offset, memory

build = Stay
"""


@pytest.fixture
def room(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with two things to build, a helper module and a folder."""
    folder = tmp_path / "temporary_room"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "inner" / "__init__.py").write_text("build = dict")
    (folder / "kettle.py").write_text(KETTLE)
    (folder / "teapot.py").write_text("def build(*, cups=2):\n    return ['tea'] * cups\n")
    (folder / "helper.py").write_text("USEFUL = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("temporary_room")
    for name in [name for name in sys.modules if name.partition(".")[0] == "temporary_room"]:
        del sys.modules[name]


def test_the_names_of_a_room_are_its_files_that_can_be_built(room: ModuleType) -> None:
    assert registry.names(room) == ["kettle", "teapot"]


def test_a_thing_is_built_from_its_fields(room: ModuleType) -> None:
    kettle = registry.build(room, "kitchen.name", "kettle", {"litres": 1.7})
    assert (type(kettle).__name__, kettle.litres, kettle.colour) == ("Kettle", 1.7, "red")
    assert registry.build(room, "kitchen.name", "teapot") == ["tea", "tea"]


def test_an_unknown_name_brings_the_nearest_and_all_the_others(room: ModuleType) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "ketle")
    message = str(caught.value)
    assert message.startswith("kitchen.name: 'ketle'") and message.endswith("(did you mean 'kettle'?)")
    assert "teapot" in message and "\n" not in message


@pytest.mark.parametrize("name", ["helper", "inner", "", "os"])
def test_what_cannot_be_built_is_no_choice(room: ModuleType, name: str) -> None:
    with pytest.raises(UserError, match="kitchen.name"):
        registry.build(room, "kitchen.name", name)


def test_an_unknown_field_brings_the_nearest_and_all_the_others(room: ModuleType) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "kettle", {"color": "blue"})
    message = str(caught.value)
    assert message.startswith("kitchen.color: kettle") and message.endswith("(did you mean 'colour'?)")
    assert "litres" in message and "\n" not in message


def write(room: ModuleType, name: str, source: str) -> None:
    (pathlib.Path(room.__path__[0]) / f"{name}.py").write_text(source)
    importlib.invalidate_caches()


def test_a_thing_whose_package_is_missing_is_a_choice_that_says_how_to_get_it(
    room: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the file that lists the package, where there is one."""
    monkeypatch.setattr(registry, "REPOSITORY", tmp_path)
    write(room, "samovar", "from no_such_package.inner import coal\nbuild = coal\n")
    assert registry.names(room) == ["kettle", "samovar", "teapot"]
    needs = "kitchen.name: samovar needs the package no_such_package, which is not installed; pip install "
    for listed, what in ((False, "no_such_package"), (True, "-r requirements-no_such_package.txt")):
        if listed:
            (tmp_path / "requirements-no_such_package.txt").write_text("")
        with pytest.raises(UserError) as caught:
            registry.build(room, "kitchen.name", "samovar")
        assert str(caught.value) == needs + what
    assert registry.build(room, "kitchen.name", "teapot") == ["tea", "tea"]


def test_a_thing_that_does_not_run_with_an_installed_package_names_it(room: ModuleType) -> None:
    write(room, "samovar", "from numpy import coal\nbuild = coal\n")
    assert "samovar" in registry.names(room)
    with pytest.raises(UserError, match="kitchen.name: samovar does not run with this version of numpy: .*'coal'"):
        registry.build(room, "kitchen.name", "samovar")


def test_a_file_of_our_own_that_is_not_there_is_no_missing_package(room: ModuleType) -> None:
    write(room, "samovar", "import temporary_room.coal\nbuild = dict\n")
    for ask in (lambda: registry.names(room), lambda: registry.build(room, "kitchen.name", "samovar")):
        with pytest.raises(ModuleNotFoundError, match="temporary_room.coal"):
            ask()


def test_every_package_that_a_choice_may_miss_is_listed_in_a_file() -> None:
    requirements = (registry.REPOSITORY / "requirements-diffrax.txt").read_text()
    assert "diffrax>=" in requirements
    assert "-r requirements-diffrax.txt" in (registry.REPOSITORY / "requirements-dev.txt").read_text()


def test_a_field_that_is_needed_and_missing_is_named() -> None:
    with pytest.raises(UserError, match="model.num_classes: dit needs this field"):
        registry.build(models, "model.name", "dit", {"depth": 2})


def test_the_fields_of_a_network_are_those_of_its_file_and_not_of_linen() -> None:
    with pytest.raises(UserError, match="model.hiden_size: .*did you mean 'hidden_size'") as caught:
        registry.build(models, "model.name", "dit", {"num_classes": 3, "hiden_size": 8})
    assert "parent" not in str(caught.value)


@pytest.mark.parametrize(
    ("room", "name"), [(models, "dit"), (processes, "rectified_flow"), (solvers, "euler"), (solvers, "dopri5")]
)
def test_the_rooms_of_the_house_hold_choices_and_hide_helpers(room: ModuleType, name: str) -> None:
    found = registry.names(room)
    assert name in found and not {"base", "layers", "times", "conversions", "oracles"} & set(found)


def test_a_new_solver_is_a_new_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stay.py").write_text(STAY)
    monkeypatch.setattr(solvers, "__path__", [*solvers.__path__, str(tmp_path)])
    try:
        assert {"stay", "euler"} <= set(registry.names(solvers))
        solver = registry.build(solvers, "sample.solver", "stay", {"offset": 0.5})
        keys, y = jax.random.split(jax.random.key(0), 2), np.zeros(2, np.int32)
        denoise = Network(RectifiedFlow(), lambda x, t, y: x)
        grid = grids.make("uniform", denoise.process, 3)
        pictures = sample(keys, denoise, y, (2, 2, 1), grid=grid, solver=solver)
        np.testing.assert_array_equal(pictures, np.full((2, 2, 2, 1), 0.5))
    finally:
        sys.modules.pop(f"{solvers.__name__}.stay", None)
        vars(solvers).pop("stay", None)


def test_a_far_name_brings_no_guess() -> None:
    assert nearest("zzzz", ["euler", "heun"]) == ""
    assert nearest("eular", ["euler", "heun"]) == " (did you mean 'euler'?)"
