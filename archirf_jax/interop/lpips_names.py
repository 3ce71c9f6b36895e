"""Names and layouts of LPIPS: the backbone as torchvision names it, heads as the `lpips` package ships them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from archirf_jax.errors import UserError
from archirf_jax.interop.weights import CONV, SAME, Layout, Path, Shapes
from archirf_jax.models.lpips import NETS, SCALE, SHIFT

HEAD = Layout(lambda w: w.reshape(-1), lambda w: w.reshape(1, -1, 1, 1))  # (1, D, 1, 1) <-> (D,)


def rename_lpips(path: Path) -> tuple[str, Layout]:
    """Where a parameter lies in the published weights."""
    *layer, leaf = path
    if not layer:
        return f"lin{leaf.removeprefix('head_')}.model.1.weight", HEAD
    name = f"features.{layer[0].removeprefix('convs_')}"
    return (f"{name}.weight", CONV) if leaf == "kernel" else (f"{name}.bias", SAME)


def lpips_fields(shapes: Shapes, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model.

    Raises:
        UserError: they are not those of LPIPS with a backbone that is known.
    """
    del hints
    first, head = shapes.get("features.0.weight"), shapes.get("lin4.model.1.weight")
    if not first or not head:
        absent = "lin4.model.1.weight (the heads)" if first else "features.0.weight or net.slice1.0.weight"
        raise UserError("checkpoint", message=f"does not hold LPIPS with its backbone: there is no {absent}")
    nets = {(groups[0].layers[0].size, groups[-1].layers[-1].width): net for net, groups in NETS.items()}
    if (net := nets.get((first[-1], head[1]))) is None:
        message = f"holds LPIPS of another network; the backbones are {', '.join(NETS)}"
        raise UserError("checkpoint", message=message)
    return dict(net=net)


def lpips_tensor_name(name: str) -> str | None:
    """torchvision's name of a tensor that the package calls otherwise; None for those that LPIPS does not use."""
    if re.match(r"(classifier|lins)\.", name):  # the second are the heads once more
        return None
    return re.sub(r"^net\.slice\d+\.", "features.", name)


def lpips_constants() -> dict[str, np.ndarray]:
    """What the package's `state_dict` holds besides parameters."""
    return {
        f"scaling_layer.{name}": np.asarray(values, np.float32).reshape(1, 3, 1, 1)
        for name, values in (("shift", SHIFT), ("scale", SCALE))
    }
