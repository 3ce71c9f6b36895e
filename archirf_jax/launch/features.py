"""Networks that give features of images: a classifier's run, or a Python file of the user's own."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.tasks.classifier import Classifier


def of_run(workdir: pathlib.Path) -> Run:
    """A classifier's run.

    Raises:
        UserError: no run, or of another task.
    """
    run = open_run(workdir, field="features")
    if not isinstance(run.task, Classifier):
        raise UserError(
            *("features", str(workdir)),
            f"is the run of the task {run.config.task}; give one of a classifier, trained by "
            "configs/adm_classifier.py, or a Python file",
        )
    return run


def of_file(path: pathlib.Path) -> Callable[[Any], np.ndarray]:
    """The function features(images) of a Python file, giving float64; its exceptions become UserErrors with the line.

    Raises:
        UserError: the file fails, or defines no such function.
    """
    path = path.absolute()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as for a script: files in its folder can be imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        raise _failed(path, e) from e
    if not callable(getattr(module, "features", None)):
        raise UserError("features", str(path), "does not define a function features(images)")

    def compute(images: Any) -> np.ndarray:
        try:
            found = module.features(images)
        except (Exception, SystemExit) as e:
            raise _failed(path, e) from e
        return _numbers(found)

    return compute


def _numbers(found: Any) -> np.ndarray:
    try:
        if np.iscomplexobj(found):
            raise TypeError("they are complex")
        return np.asarray(found, np.float64)
    except (TypeError, ValueError, RuntimeError) as e:
        raise UserError(
            "features", message=f"gave {type(found).__name__}, which is not an array of numbers: {e}"
        ) from e


def _failed(path: pathlib.Path, error: Exception | SystemExit) -> UserError:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f" in line {lines[-1]}" if lines else ""
    said = " ".join(str(error).split())[:300]
    return UserError("features", message=f"{path} fails{where}: {type(error).__name__}: {said}")
