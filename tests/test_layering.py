"""Upper rooms import lower ones only: proved from the imports of every module, without running any."""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
PACKAGE = "archirf_jax"

# From the top down. A room imports rooms of the lines below its own; those of one line do not know each other, apart
# from SIDEWAYS and the ground.
LEVELS = (
    ("commands",),
    ("launch",),
    ("tasks",),
    ("training", "data", "evaluation", "visuals", "interop"),
    ("samplers", "objectives", "conditioners", "first_stages"),
    ("models", "processes"),
    ("contracts", "errors", "files", "lazy", "registry", "sharding", "untrusted"),
)
RANK = {room: rank for rank, rooms in enumerate(LEVELS) for room in rooms}
GROUND = set(LEVELS[-1])
SIDEWAYS = {("training", "visuals")}
OUTSIDE = {"configs", "experiments", "tests", "benchmarks"}
TENSORFLOW = ("tensorflow.", "clu.metric_writers.", "clu.periodic_actions.")  # the last two import it themselves


def modules(folder: str) -> dict[str, pathlib.Path]:
    """Dotted name -> file of every module below a folder of the repository."""
    found = {}
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES, CONFIGS = modules(PACKAGE), modules("configs")


def imports(source: str) -> Iterator[str]:
    """Absolute dotted names that a source imports, at its top or inside functions; a relative one begins with a dot.

    `from a import b` gives a.b: b may be a module, and a name inside one has the same room.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def room_of(name: str) -> str:
    """The room of a dotted name of the package: its folder, or its file on the ground; others are commands."""
    room = name.split(".")[1] if "." in name else ""
    return room if room in RANK or room and (REPOSITORY / PACKAGE / room).is_dir() else "commands"


def forbidden(importer: str, imported: str) -> str | None:
    """Why a module of the package may not import a dotted name, or None."""
    top = imported.partition(".")[0]
    if not top:
        return "imports are absolute"
    if f"{imported}.".startswith(TENSORFLOW):
        return "nothing imports TensorFlow"
    if top in OUTSIDE:
        return f"the package does not know {top}"
    if top != PACKAGE:
        return None
    ours, theirs = room_of(importer), room_of(imported)
    if not {ours, theirs} <= RANK.keys():
        return "a room that is not in LEVELS"
    allowed = RANK[ours] < RANK[theirs] or {ours, theirs} <= GROUND or (ours, theirs) in SIDEWAYS
    same = ours == theirs != "commands"
    return None if allowed or same else f"{ours} is not above {theirs}"


def test_upper_rooms_import_lower_ones_only() -> None:
    wrong = [
        f"{module} imports {imported}: {reason}"
        for module, path in MODULES.items()
        for imported in imports(path.read_text())
        if (reason := forbidden(module, imported))
    ]
    assert not wrong, "\n".join(wrong)


def test_configurations_import_constants_of_the_package_alone_and_the_defaults() -> None:
    others = ("configs.default", "ml_collections.ConfigDict", "collections.abc.Iterable", "typing.Any")
    for module, path in CONFIGS.items():
        for imported in imports(path.read_text()):
            room, _, name = imported.rpartition(".")
            constant = room.partition(".")[0] == PACKAGE and name.isupper() and room in MODULES
            assert constant or imported in others, f"{module} imports {imported}"


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("archirf_jax.models.dit", "archirf_jax.processes.base.expand"),
        ("archirf_jax.processes.base", "archirf_jax.models.layers"),
        ("archirf_jax.models.dit", "archirf_jax.samplers.grids"),
        ("archirf_jax.objectives.regression", "archirf_jax.samplers.sample"),
        ("archirf_jax.conditioners.label", "archirf_jax.data.fields"),
        ("archirf_jax.samplers.grids", "archirf_jax.training.ema"),
        ("archirf_jax.training.loop", "archirf_jax.tasks.diffusion"),
        ("archirf_jax.training.loop", "archirf_jax.data.pipeline"),
        ("archirf_jax.visuals.plots", "archirf_jax.training.loop"),
        ("archirf_jax.tasks.diffusion", "archirf_jax.main"),
        ("archirf_jax.main", "archirf_jax.sample"),
        ("archirf_jax.tasks.diffusion", "archirf_jax.launch.cli"),
        ("archirf_jax.contracts", "archirf_jax.models.dit"),
        ("archirf_jax.main", "configs.default"),
        ("archirf_jax.main", "tensorflow"),
        ("archirf_jax.training.writers", "clu.metric_writers.create_default_writer"),
        ("archirf_jax.models.dit", ".layers"),
    ],
)
def test_the_rule_refuses_what_it_should(importer: str, imported: str) -> None:
    assert forbidden(importer, imported)


def test_imports_of_every_form_are_seen() -> None:
    source = """
import os, archirf_jax.models.dit as network
from archirf_jax import processes
def later():
    from archirf_jax.launch.cli import run
    from . import near
"""
    expected = {"os", "archirf_jax.models.dit", "archirf_jax.processes", "archirf_jax.launch.cli.run", "..near"}
    assert set(imports(source)) == expected
