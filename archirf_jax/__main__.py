"""python -m archirf_jax

List the commands, the configurations in ./configs, and all that a configuration can choose, one line each.
"""

from __future__ import annotations

import ast
import pathlib
import re
import sys
import textwrap
from collections.abc import Callable, Iterator

PACKAGE = pathlib.Path(__file__).parent
CONFIGS = pathlib.Path("configs")
# Title -> folder; a file there that defines `build` is a choice.
ROOMS = {
    "networks (config.model.name)": "models",
    "processes (config.process.name)": "processes",
    "objectives (config.objective.name)": "objectives",
    "conditioners (config.conditioners.NAME.name)": "conditioners",
    "first stages (config.first_stage.name)": "first_stages",
    "tasks (config.task)": "tasks",
    "solvers (config.sample.solver.name)": "samplers/solvers",
    "grids (config.sample.grid.name)": "samplers/grids",
}
DATA_SETS = "data sets (config.data.name; also folder:PATH and the names of TFDS)"
WIDTH = 120


def lines() -> Iterator[str]:
    """Return the list. Files are read and not imported, so it is fast and needs no further packages."""
    yield from _section("commands (python -m archirf_jax.NAME --help)", _entries(PACKAGE, _is_command, paragraph=1))
    yield from _section("configurations (--config=configs/NAME.py)", _configurations())
    for title, folder in ROOMS.items():
        yield from _section(title, _entries(PACKAGE / folder, _is_choice))
    yield from _section(DATA_SETS, _entries(PACKAGE / "data/builders", lambda tree: True))


def _section(title: str, entries: dict[str, str]) -> Iterator[str]:
    if entries:
        width = max(map(len, entries))
        yield title
        for name, text in entries.items():
            yield f"  {name:<{width}}  {textwrap.shorten(text, WIDTH - width - 4, placeholder=' ...')}"
        yield ""


def _entries(folder: pathlib.Path, wanted: Callable[[ast.Module], bool], paragraph: int = 0) -> dict[str, str]:
    """Module -> the first sentence of a paragraph of its docstring, of the files that are wanted."""
    entries = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        if not path.stem.startswith("__") and wanted(tree):
            paragraphs = (ast.get_docstring(tree) or "").split("\n\n")
            entries[path.stem] = _sentence(paragraphs[min(paragraph, len(paragraphs) - 1)])
    return entries


def _configurations() -> dict[str, str]:
    """What the configurations that can be trained are, and what they cost."""
    entries = {}
    for path in sorted(CONFIGS.glob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text(), str(path))) or ""
        if cost := re.search(r"^Cost: (.*?)(?=^\w+: |\n\n|\Z)", doc, re.DOTALL | re.MULTILINE):
            what = textwrap.shorten(_sentence(doc), WIDTH // 3, placeholder=" ...")
            entries[path.stem] = f"{what}; cost: {_sentence(cost[1])}"
    return entries


def _sentence(text: str) -> str:
    """The first sentence, on one line, without its full stop and without citations."""
    line = re.sub(r"\s*\([^()]*\b(?:19|20)\d\d\b[^()]*\)", "", " ".join(text.split()))
    return re.split(r"(?<! al)\.(?:\s|$)", line, maxsplit=1)[0]


def _is_command(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in tree.body)


def _is_choice(tree: ast.Module) -> bool:
    def names(node: ast.stmt) -> list[str]:
        if isinstance(node, ast.Assign):
            return [target.id for target in node.targets if isinstance(target, ast.Name)]
        if isinstance(node, ast.ImportFrom):
            return [alias.asname or alias.name for alias in node.names]
        return [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []

    return any("build" in names(node) for node in tree.body)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stderr.write(f"error: unexpected argument {sys.argv[1]!r}; commands are python -m archirf_jax.NAME\n")
        sys.exit(2)
    sys.stdout.write("\n".join(lines()))
