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

    def init(self, x):
        return ()

    def step(self, keys, process, model_fn, x, t, t_next, y, memory):
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


def test_a_field_that_is_needed_and_missing_is_named() -> None:
    with pytest.raises(UserError, match="model.num_classes: dit needs this field"):
        registry.build(models, "model.name", "dit", {"depth": 2})


def test_the_fields_of_a_network_are_those_of_its_file_and_not_of_linen() -> None:
    with pytest.raises(UserError, match="model.hiden_size: .*did you mean 'hidden_size'") as caught:
        registry.build(models, "model.name", "dit", {"num_classes": 3, "hiden_size": 8})
    assert "parent" not in str(caught.value)


@pytest.mark.parametrize(("room", "name"), [(models, "dit"), (processes, "rectified_flow"), (solvers, "euler")])
def test_the_rooms_of_the_house_hold_choices_and_hide_helpers(room: ModuleType, name: str) -> None:
    found = registry.names(room)
    assert name in found and not {"base", "layers"} & set(found)


def test_a_new_solver_is_a_new_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stay.py").write_text(STAY)
    monkeypatch.setattr(solvers, "__path__", [*solvers.__path__, str(tmp_path)])
    try:
        assert {"stay", "euler"} <= set(registry.names(solvers))
        solver = registry.build(solvers, "sample.solver", "stay", {"offset": 0.5})
        keys, y = jax.random.split(jax.random.key(0), 2), np.zeros(2, np.int32)
        pictures = sample(keys, RectifiedFlow(), lambda x, t, y: x, y, (2, 2, 1), grid=grids.linspace(3), solver=solver)
        np.testing.assert_array_equal(pictures, np.full((2, 2, 2, 1), 0.5))
    finally:
        sys.modules.pop(f"{solvers.__name__}.stay", None)
        vars(solvers).pop("stay", None)


def test_a_far_name_brings_no_guess() -> None:
    assert nearest("zzzz", ["euler", "heun"]) == ""
    assert nearest("eular", ["euler", "heun"]) == " (did you mean 'euler'?)"
