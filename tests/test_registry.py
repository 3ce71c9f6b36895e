"""Laws of finding things by name: a new file is a new choice, and nobody else's code runs."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from archirf_jax import models, processes, registry
from archirf_jax.errors import UserError, nearest
from archirf_jax.samplers import solvers

KETTLE = '''"""A kettle.

It boils water.
"""

import dataclasses

@dataclasses.dataclass(frozen=True)
class Kettle:
    litres: float = 1.0
    colour: str = "red"

build = Kettle
'''


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
    assert (caught.value.field, caught.value.value) == ("kitchen.name", "ketle")
    assert nearest("ketle", ["kettle"]) in str(caught.value) and "teapot" in str(caught.value)


@pytest.mark.parametrize("name", ["helper", "inner", "", "os"])
def test_what_cannot_be_built_is_not_a_choice(room: ModuleType, name: str) -> None:
    """Nor is a module outside the room, such as Python's own."""
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", name)
    assert caught.value.field == "kitchen.name"


def test_an_unknown_field_brings_the_nearest_and_all_the_others(room: ModuleType) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "kettle", {"color": "blue"})
    assert (caught.value.field, caught.value.value) == ("kitchen.color", "blue")
    assert nearest("color", ["colour"]) in str(caught.value) and "litres" in str(caught.value)


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
    for listed, what in ((False, "no_such_package"), (True, "-r requirements-no_such_package.txt")):
        if listed:
            (tmp_path / "requirements-no_such_package.txt").write_text("")
        with pytest.raises(UserError) as caught:
            registry.build(room, "kitchen.name", "samovar")
        assert caught.value.field == "kitchen.name" and str(caught.value).endswith(f"pip install {what}")
    assert registry.build(room, "kitchen.name", "teapot") == ["tea", "tea"]


def test_a_thing_that_does_not_run_with_an_installed_package_names_it(room: ModuleType) -> None:
    write(room, "samovar", "from numpy import coal\nbuild = coal\n")
    assert "samovar" in registry.names(room)
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "samovar")
    assert caught.value.field == "kitchen.name" and "numpy" in str(caught.value)


def test_a_file_of_our_own_that_is_not_there_is_not_a_missing_package(room: ModuleType) -> None:
    write(room, "samovar", "import temporary_room.coal\nbuild = dict\n")
    for ask in (lambda: registry.names(room), lambda: registry.build(room, "kitchen.name", "samovar")):
        with pytest.raises(ModuleNotFoundError, match="temporary_room.coal"):
            ask()


def test_a_field_that_is_needed_and_missing_is_named() -> None:
    with pytest.raises(UserError) as caught:
        registry.build(models, "model.name", "adm_classifier", {"image_size": 8})
    assert caught.value.field == "model.num_classes"


TYPES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "whole": ((3, -1), (1.5, "3", True, None, [3], {})),
    "number": ((3, 1.5), ("3", False, None, (1.5,), {})),
    "word": (("", "two"), (3, None, ["two"], {})),
    "switch": ((True, False), (1, 0, "true", None)),
    "perhaps": ((None, 4), (1.5, "4", [])),
    "pair": (((1, 2.5), [1, 2]), (1, (1,), (1, 2, 3), (1, "2"), None)),
    "several": (((), [1, 2, 3]), (1, "12", ("1",), {})),
    "chosen": (("a", "b"), ("c", 1, None)),
    "table": (({}, {"a": 1}), ([], "a", 1)),
    "anything": ((None, 3, "x", [], {}), ()),
    "undeclared": ((None, 3, "x", [], {}), ()),
    "unknown": ((None, 3, "x", [], {}), ()),
}


@pytest.mark.parametrize("key", TYPES)
@pytest.mark.parametrize("kind", ["function", "class"])
def test_a_value_has_the_type_that_its_field_is_declared_with(
    kind: str, key: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = {
        **{"whole": "int", "number": "float", "word": "str", "switch": "bool", "perhaps": "int | None"},
        **{"pair": "tuple[float, float]", "several": "tuple[int, ...]", "chosen": "Literal['a', 'b']"},
        **{"table": "Mapping[str, int]", "anything": "Any", "unknown": "Nowhere"},
    }
    fields = [f"{name}: {declared[name]} = None" if name in declared else f"{name}=None" for name in TYPES]
    start = "from __future__ import annotations\nfrom collections.abc import Mapping\nfrom typing import *\n\n"
    if kind == "function":
        text = f"def build({', '.join(fields)}):\n    return 3\n"
    else:
        text = f"class build:\n    def __init__(self, {', '.join(fields)}):\n        pass\n"
    (tmp_path / f"typed_{kind}.py").write_text(start + text)
    (tmp_path / "typed").mkdir()
    (tmp_path / f"typed_{kind}.py").rename(tmp_path / "typed" / f"of_{kind}_{key}.py")
    monkeypatch.syspath_prepend(tmp_path)
    right, wrong = TYPES[key]
    for value in right:
        registry.build(models, "kitchen.name", f"typed.of_{kind}_{key}", {key: value})
    for value in wrong:
        with pytest.raises(UserError) as caught:
            registry.build(models, "kitchen.name", f"typed.of_{kind}_{key}", {key: value})
        assert caught.value.field == f"kitchen.{key}"


@pytest.mark.parametrize("name", [None, 3, 1.5, True, ["dit"], {}])
def test_a_name_is_text(name: Any) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(models, "model.name", name)
    assert caught.value.field == "model.name"


def test_the_fields_of_a_network_are_those_of_its_file_and_not_of_linen() -> None:
    for field in ("hiden_size", "parent"):
        with pytest.raises(UserError) as caught:
            registry.build(models, "model.name", "dit", {"num_classes": 3, field: 8})
        assert caught.value.field == f"model.{field}" and "parent," not in str(caught.value)


def test_choices_are_described_by_the_first_lines_of_their_files(room: ModuleType) -> None:
    write(room, "samovar", '"""A samovar."""\nimport no_such_package\nbuild = dict\n')
    assert registry.describe(room) == {"kettle": "A kettle.", "samovar": "A samovar.", "teapot": ""}


def test_offered_objects_are_given_to_those_that_take_them_and_are_not_fields(room: ModuleType) -> None:
    write(room, "stove", "def build(*, heat=1, runs): return heat, runs\n")
    assert registry.build(room, "kitchen.name", "stove", {"heat": 2}, offered={"runs": 7, "more": 8}) == (2, 7)
    assert registry.build(room, "kitchen.name", "teapot", {"cups": 1}, offered={"runs": 7}) == ["tea"]
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "stove", {"runs": 9}, offered={"runs": 7})
    assert caught.value.field == "kitchen.runs"


@pytest.mark.parametrize(("kind", "fits"), [(list, True), ((dict, list), True), (dict, False), (("append",), True),
                                            (("append", "boil"), False)])  # fmt: skip
def test_what_is_made_must_be_of_its_kind(room: ModuleType, kind: registry.Kind, fits: bool) -> None:
    if fits:
        assert registry.build(room, "kitchen.name", "teapot", kind=kind) == ["tea", "tea"]
        return
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "teapot", kind=kind)
    assert (caught.value.field, caught.value.value) == ("kitchen.name", "teapot")


@pytest.fixture
def lab(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """The folder of a user's package `temporary_lab`, whose own file says when it is run."""
    folder = tmp_path / "code" / "temporary_lab"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("import pathlib\npathlib.Path(__file__).with_name('run').touch()\n")
    (folder / "net.py").write_text("def build(*, cups=2):\n    return ['coffee'] * cups\n")
    (folder / "inner" / "net.py").write_text("def build(**fields): return fields\n")  # a folder without __init__.py
    (folder / "number.py").write_text("build = 3\n")
    (folder / "helper.py").write_text("import no_such_package\n")
    (folder / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "temporary_lab"]:
        del sys.modules[name]


def test_a_name_with_dots_is_a_module_of_the_users_own(room: ModuleType, lab: pathlib.Path) -> None:
    assert registry.build(room, "kitchen.name", "temporary_lab.net", {"cups": 1}, kind=list) == ["coffee"]
    assert registry.build(room, "kitchen.name", "temporary_lab.inner.net", {"a": 1}) == {"a": 1}
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "temporary_lab.net", {"cup": 1})
    assert caught.value.field == "kitchen.cup"


@pytest.mark.parametrize(
    "name",
    [
        *("temporary_lab.nowhere", "temporary_lab.empty", "temporary_lab.net.build", "temporary_lab.helper", "os.path"),
        *("subprocess.run", "no_such_lab.net", "temporary_lab.", ".net", "temporary_lab.number", "temporary_lab..net"),
        "temporary_lab.net.list",
    ],
)
def test_what_is_not_a_module_with_build_is_refused(room: ModuleType, lab: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", name)
    assert (caught.value.field, caught.value.value) == ("kitchen.name", name)


def test_a_users_module_of_another_kind_is_refused(room: ModuleType, lab: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", "temporary_lab.net", kind=dict)
    assert caught.value.field == "kitchen.name"


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("name", ["temporary_lab.net", "temporary_lab.inner.net"])
def test_code_below_a_refused_directory_is_not_run(
    room: ModuleType, lab: pathlib.Path, tmp_path: pathlib.Path, name: str, link: bool
) -> None:
    """Neither the module nor the files of the packages around it; whichever way leads there."""
    directory = lab.parent
    if link:
        directory = tmp_path / "link"
        directory.symlink_to(lab.parent)
    with registry.refuse_below(tmp_path / "elsewhere", directory), pytest.raises(UserError) as caught:
        registry.build(room, "kitchen.name", name)
    assert caught.value.field == "kitchen.name"
    assert not (lab / "run").exists()
    registry.build(room, "kitchen.name", name)
    assert (lab / "run").exists()


def test_refusing_lasts_until_it_is_closed(room: ModuleType, lab: pathlib.Path) -> None:
    refused = registry.refuse_below(lab)
    with pytest.raises(UserError):
        registry.build(room, "kitchen.name", "temporary_lab.net")
    refused.close()
    assert registry.build(room, "kitchen.name", "temporary_lab.net") == ["coffee", "coffee"]


@pytest.mark.parametrize(
    ("room", "name"), [(models, "dit"), (processes, "rectified_flow"), (solvers, "euler"), (solvers, "dopri5")]
)
def test_the_rooms_hold_choices_and_hide_helpers(room: ModuleType, name: str) -> None:
    found = registry.names(room)
    assert name in found and not {"base", "layers", "times", "conversions", "oracles"} & set(found)


def test_a_far_name_brings_no_guess() -> None:
    assert nearest("zzzz", ["euler", "heun"]) == ""
    assert nearest("eular", ["euler", "heun"]) == " (did you mean 'euler'?)"
