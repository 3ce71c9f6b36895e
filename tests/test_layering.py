"""Upper rooms import lower ones only: proved from the imports of every module, without running any."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = "archirf_jax"

# From the top down. A room imports rooms of the lines below its own; the rooms of one line do not know each other.
LEVELS = (
    ("tasks",),
    ("training", "data", "evaluation", "visuals", "interop"),
    ("samplers",),
    ("models", "processes"),
    ("errors", "registry", "sharding"),
)
RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
SIDEWAYS = {("training", "visuals"), ("registry", "errors"), ("sharding", "errors")}
USED_BY_LAUNCH = {"errors", "registry", "samplers", "tasks", "training"}
OUTSIDE = {"configs", "experiments", "tests", "benchmarks"}
BY_TENSORFLOW = ("clu.metric_writers", "clu.periodic_actions")  # they import it themselves


def modules(folder: str) -> dict[str, pathlib.Path]:
    """Dotted name -> file of every module below a folder of the repository."""
    found = {}
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules(PACKAGE)
CONFIGS = modules("configs")
COMMANDS = {path.stem for path in (REPOSITORY / PACKAGE).glob("*.py")} - set(RANK) - {"__init__"}


def imports(source: str, module: str) -> Iterator[str]:
    """Absolute dotted names that a module's source imports, at its top or inside functions.

    `from a import b` gives a.b: b may be a module, and a name inside one has the same room.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import, line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            # Only a literal can be judged; the registry's own rooms come in as arguments.
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def room_of(name: str) -> str:
    """The part of the house that a dotted name of the package belongs to; '' is the package itself."""
    return name.split(".")[1] if "." in name else ""


def forbidden(importer: str, imported: str) -> str | None:
    """Why a module of the package may not import a dotted name, or None."""
    top = imported.partition(".")[0]
    if top == "tensorflow" or imported.startswith(BY_TENSORFLOW):
        return "nothing imports TensorFlow"
    if top in OUTSIDE:
        return f"the package does not know {top}"
    if top != PACKAGE:
        return None
    ours, theirs = room_of(importer), room_of(imported)
    if ours == theirs:
        return None
    if theirs not in RANK and theirs != "launch":
        return f"{theirs} is a command or no room of the house"
    if ours in COMMANDS:
        return None
    if theirs == "launch":
        return "only commands use launch"
    if ours == "launch":
        return None if theirs in USED_BY_LAUNCH else "launch meets models and data in tasks alone"
    if ours not in RANK:
        return f"{ours} has no place in the house: give it one in LEVELS"
    if RANK[ours] < RANK[theirs] or (ours, theirs) in SIDEWAYS:
        return None
    return f"{ours} is not above {theirs}"


def test_upper_rooms_import_lower_ones_only() -> None:
    wrong = [
        f"{module} imports {imported}: {reason}"
        for module, path in MODULES.items()
        for imported in imports(path.read_text(), module)
        if (reason := forbidden(module, imported))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_module_of_the_package_has_a_place() -> None:
    rooms = {room_of(module) for module in MODULES} - {""}
    assert {"main", "sample", "prepare_data"} <= COMMANDS
    assert rooms <= set(RANK) | COMMANDS | {"launch"}
    assert len(MODULES) > 20


def test_configurations_import_nothing_of_the_package_but_constants() -> None:
    for module, path in CONFIGS.items():
        for imported in imports(path.read_text(), module):
            top, _, name = imported.rpartition(".")
            assert imported.partition(".")[0] not in OUTSIDE - {"configs"}, f"{module} imports {imported}"
            if imported.partition(".")[0] == PACKAGE:
                assert name.isupper() and top in MODULES, f"{module} imports {imported}, which is no constant"


def test_no_file_of_the_project_imports_tensorflow() -> None:
    for folder in ("configs", "benchmarks"):
        for module, path in modules(folder).items():
            tops = {name.partition(".")[0] for name in imports(path.read_text(), module)}
            assert "tensorflow" not in tops, module


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("archirf_jax.models.dit", "archirf_jax.processes.base.expand"),
        ("archirf_jax.processes.base", "archirf_jax.models.layers"),
        ("archirf_jax.models.dit", "archirf_jax.samplers.grids"),
        ("archirf_jax.samplers.grids", "archirf_jax.training.ema"),
        ("archirf_jax.training.loop", "archirf_jax.tasks.diffusion"),
        ("archirf_jax.training.loop", "archirf_jax.data.pipeline"),
        ("archirf_jax.visuals.plots", "archirf_jax.training.loop"),
        ("archirf_jax.tasks.diffusion", "archirf_jax.main"),
        ("archirf_jax.main", "archirf_jax.sample"),
        ("archirf_jax.tasks.diffusion", "archirf_jax.launch.cli"),
        ("archirf_jax.launch.cli", "archirf_jax.models.dit"),
        ("archirf_jax.errors", "archirf_jax.registry"),
        ("archirf_jax.main", "configs.default"),
        ("archirf_jax.main", "tensorflow"),
        ("archirf_jax.training.writers", "clu.metric_writers.create_default_writer"),
        ("archirf_jax.attic.junk", "archirf_jax.errors"),
    ],
)
def test_the_rule_refuses_what_it_should(importer: str, imported: str) -> None:
    assert forbidden(importer, imported)


def test_the_rule_sees_imports_of_every_form() -> None:
    source = """
import os, archirf_jax.models.dit as network
from archirf_jax import processes
def later():
    from archirf_jax.launch.cli import run
    import importlib
    importlib.import_module("archirf_jax.tasks")
"""
    assert set(imports(source, "x")) == {
        "os",
        "archirf_jax.models.dit",
        "archirf_jax.processes",
        "archirf_jax.launch.cli.run",
        "importlib",
        "archirf_jax.tasks",
    }
    with pytest.raises(AssertionError, match="relative"):
        list(imports("from . import y", "x"))
