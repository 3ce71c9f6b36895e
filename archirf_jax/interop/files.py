"""Tensors in files: .safetensors, read one tensor at a time, and PyTorch's .pt and .pth where PyTorch is installed."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from archirf_jax.errors import UserError

TORCH = (".pt", ".pth", ".bin", ".ckpt")
PICKLE = (
    "a pickle runs code when it is read; where its own package is installed, write its tensors by: "
    "python -c \"import pickle, safetensors.torch as s; n = pickle.load(open('FILE.pkl', 'rb'))['ema']; "
    "s.save_file({k: v.contiguous() for k, v in n.state_dict().items()}, 'FILE.safetensors')\""
)
NESTED = ("ema", "model", "state_dict")  # where training scripts put the tensors, the best first


class Tensor:
    """A tensor that is read when somebody asks for its values."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[], Any]) -> None:
        self.shape = shape
        self._read = read

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Its values; float32 unless told otherwise."""
        return np.asarray(self._read(), dtype or np.float32)


def read(path: pathlib.Path, flag: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UserError: no such file, a format that is not read, a damaged file, or PyTorch is needed and not installed.
    """
    if not path.is_file():
        raise UserError(f"--{flag}: no file {str(path)!r}")
    if path.suffix == ".safetensors":
        return _safetensors(path, flag)
    if path.suffix in TORCH:
        return _torch(path, flag)
    why = PICKLE if path.suffix == ".pkl" else f"give a file that ends in .safetensors, {', '.join(TORCH)}"
    raise UserError(f"--{flag}: {str(path)!r} is not read: {why}")


def write(tensors: Mapping[str, Any], path: pathlib.Path) -> None:
    """Write tensors as .safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    save_file({name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in tensors.items()}, part)
    part.replace(path)


def _safetensors(path: pathlib.Path, flag: str) -> dict[str, Tensor]:
    try:
        file = safe_open(path, "np")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as e:
        raise UserError(f"--{flag}: {str(path)!r} is damaged: {e}") from e
    return {name: Tensor(shape, functools.partial(file.get_tensor, name)) for name, shape in shapes.items()}


def _torch(path: pathlib.Path, flag: str) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError as e:
        raise UserError(
            f"--{flag}: {str(path)!r} is read by PyTorch, which is not installed; pip install torch, "
            "or give the tensors as .safetensors"
        ) from e
    import pickle

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"--{flag}: {str(path)!r} is damaged or holds more than tensors, and only tensors are read: {reason}"
        ) from e
    nested = next((name for name in NESTED if isinstance(found, dict) and isinstance(found.get(name), dict)), None)
    state = found[nested] if nested else found
    tensors = state if isinstance(state, dict) else {}
    kept = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    if not kept:
        raise UserError(f"--{flag}: {str(path)!r} holds no tensors by name")
    # numpy has no bfloat16.
    return {name: Tensor(tuple(value.shape), value.detach().float().numpy) for name, value in kept.items()}
