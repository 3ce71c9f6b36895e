"""Tensors in files: .safetensors, read one tensor at a time, and PyTorch's .pt and .pth where PyTorch is installed."""

from __future__ import annotations

import argparse
import functools
import pathlib
import pickle
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes  # numpy knows bfloat16 by it
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from archirf_jax import untrusted
from archirf_jax.errors import UserError

INDEX = ".safetensors.index.json"
SHARDS = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")  # a variant of precision may be in the name
EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
TORCH = (".pt", ".pth", ".bin", ".ckpt")
PICKLE = (
    "a pickle runs code when it is read; where its own package is installed, write its tensors by: "
    "python -c \"import pickle, safetensors.torch as s; n = pickle.load(open('FILE.pkl', 'rb'))['ema']; "
    "s.save_file({k: v.contiguous() for k, v in n.state_dict().items()}, 'FILE.safetensors')\""
)
NESTED = ("ema", "model", "state_dict")  # where training scripts put the tensors, the best first
# What PyTorch says of files that are damaged or hold more than it reads safely.
UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError, struct.error),
)


class Tensor:
    """A tensor that is read when its values are asked for."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[], Any]) -> None:
        self.shape = shape
        self._read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its values; float32 unless another dtype is given."""
        return np.asarray(self._read(), dtype or np.float32)

    def in_half(self) -> np.ndarray:
        """Its values: those in float16 or bfloat16 as they are, others in float32."""
        values = np.asarray(self._read())
        return values if values.dtype in HALVES else values.astype(np.float32)


def read(path: pathlib.Path, field: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors by name of a file, or of several: given by their index, NAME.index.json, or by their folder.

    Raises:
        UserError: no such file, a format that is not read, a damaged file, or PyTorch is needed and not installed.
    """
    if path.is_dir():
        return read(_index(path, field), field)
    if not path.is_file():
        raise UserError(field, str(path), "is not a file")
    if SHARDS.search(path.name):
        return _sharded(path, field)
    if path.suffix == ".safetensors":
        return _safetensors(path, field)
    if path.suffix in TORCH:
        return _torch(path, field)
    why = PICKLE if path.suffix == ".pkl" else f"give a file that ends in .safetensors, {', '.join(TORCH)}"
    raise UserError(field, str(path), f"is not read: {why}")


def write(tensors: Mapping[str, Any], path: pathlib.Path, field: str = "out") -> None:
    """Write tensors as .safetensors, whole or not at all.

    Raises:
        UserError: no such file can be written, for example because the disk is full.
    """
    part = path.with_name(f"{path.name}.part")
    arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # left by a process that was killed, or a link to another file
        save_file(arrays, part, {"format": "pt"})  # some versions of transformers read no file without this note
        part.replace(path)
    except (SafetensorError, OSError) as e:
        raise UserError(field, str(path), f"cannot be written: {e}") from e


def _index(folder: pathlib.Path, field: str) -> pathlib.Path:
    """The only index in a folder, or else its only .safetensors file."""
    for pattern in (f"*{INDEX}", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
    what = f"is a folder without one file that ends in {INDEX} or .safetensors; give the file"
    raise UserError(field, str(folder), what)


def _sharded(path: pathlib.Path, field: str) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    try:
        places = untrusted.read_json(path)["weight_map"]
        names = sorted(set(places.values()))
        if not all(name == pathlib.PurePath(name).name and name.endswith(".safetensors") for name in names):
            raise ValueError("it names files that are not .safetensors files of its own folder")
    except (ValueError, TypeError, LookupError, AttributeError) as e:
        raise UserError(field, str(path), f"is not an index of .safetensors files: {e}") from e
    found: dict[str, Tensor] = {}
    for name in names:
        found |= read(path.with_name(name), field)
    if lacking := sorted(places.keys() - found.keys()):
        raise UserError(field, str(path), f"names {len(lacking)} tensors that its files lack, such as {lacking[0]}")
    return found


def _safetensors(path: pathlib.Path, field: str) -> dict[str, Tensor]:
    try:
        file = safe_open(path, "np")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as e:
        raise UserError(field, str(path), f"is damaged: {e}") from e

    def tensor(name: str) -> np.ndarray:
        kind = file.get_slice(name).get_dtype()
        try:
            return _eight_bits(path, name, EIGHT_BITS[kind]) if kind in EIGHT_BITS else file.get_tensor(name)
        except (SafetensorError, AttributeError, TypeError) as e:  # the numbers of some types are not numpy's
            message = f"holds {kind} numbers in {name}, which are not read; write float32"
            raise UserError(field, str(path), message) from e

    return {name: Tensor(shape, functools.partial(tensor, name)) for name, shape in shapes.items()}


def _eight_bits(path: pathlib.Path, name: str, dtype: Any) -> np.ndarray:
    """A tensor of 8-bit floats, which the library does not give to numpy; it has checked the header before."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        about = untrusted.parse_json(file.read(length))[name]
        file.seek(8 + length + about["data_offsets"][0])
        content = file.read(about["data_offsets"][1] - about["data_offsets"][0])
    return np.frombuffer(content, dtype).reshape(about["shape"])


def _torch(path: pathlib.Path, field: str) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            field,
            str(path),
            "is read by PyTorch, which is not installed; pip install torch, or give the tensors as .safetensors",
        ) from e

    try:
        # Nothing that runs code is read; the arguments of the script that saved the tensors are plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as e:
        found = re.search(r"GLOBAL ([\w.]+)", str(e))
        what = f"holds more than tensors ({found[1]}), which might run code" if found else "is damaged"
        raise UserError(
            field, str(path), f"{what} and is not read; save tensors alone, as torch.save(model.state_dict())"
        ) from e
    nested = next((name for name in NESTED if isinstance(found, dict) and isinstance(found.get(name), dict)), None)
    state = found[nested] if nested else found
    tensors = state if isinstance(state, dict) else {}
    kept = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor) and isinstance(name, str)}
    if not kept:
        raise UserError(field, str(path), "does not hold tensors by name")
    return {name: Tensor(tuple(value.shape), functools.partial(_numbers, value)) for name, value in kept.items()}


def _numbers(tensor: Any) -> np.ndarray:
    # numpy has no bfloat16.
    return tensor.detach().float().numpy()
