"""MMDiT cases unlike the stored ones, computed by an MMDiT written here in plain numpy.

It follows the paper (Esser et al. 2024, Fig. 2) and the reference's layouts: images NCHW, linear layers out x in. It
shares no line with the package.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.synthetic import synthetic

SOURCE = "Stability-AI/sd3.5 mmditx.py MMDiTX; by tests/golden/test_mmdit.py"
FIELDS: dict[str, Any] = dict(
    patch_size=2, in_channels=3, depth=2, adm_in_channels=5, pos_embed_max_size=5, num_patches=25,
    context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=6, out_features=128)),
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "layer norms of queries, without biases": dict(qk_norm="ln", qkv_bias=False, mlp_ratio=2.6),
    "twice within the image": dict(x_block_self_attn_layers=[0, 1, 7], qk_norm="rms", learn_sigma=True),
    "scales alone": dict(scale_mod_only=True, rmsnorm=True),
    "gated perceptrons and registers": dict(swiglu=True, register_length=3, out_channels=5),
    "registers are the context": dict(
        depth=1, register_length=2, context_embedder_config=None, adm_in_channels=None, attn_mode="math"
    ),
    "small patches": dict(depth=1, patch_size=1, context_embedder_config=None, rmsnorm=True, input_size=4),
}


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def layer(x: np.ndarray) -> np.ndarray:
    return rms(x - x.mean(-1, keepdims=True))


class NumpyMMDiT:
    """One image at a time, in float64; parameters are made when their shapes become known."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.h = dict(mlp_ratio=4.0, qkv_bias=True) | fields
        self.width = 64 * self.h["depth"]
        self.norm = rms if fields.get("rmsnorm") else layer
        self.shapes: dict[str, tuple[int, ...]] = {}

    def parameter(self, name: str, *shape: int) -> np.ndarray:
        assert self.shapes.setdefault(name, shape) == shape
        return synthetic(name, shape).astype(np.float64)

    def linear(self, name: str, x: np.ndarray, out: int, bias: bool = True) -> np.ndarray:
        y = np.einsum("oi,...i->...o", self.parameter(f"{name}.weight", out, x.shape[-1]), x)
        return y + self.parameter(f"{name}.bias", out) if bias else y

    def perceptron(self, name: str, x: np.ndarray) -> np.ndarray:
        hidden = int(self.width * self.h["mlp_ratio"])
        if not self.h.get("swiglu"):
            return self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", x, hidden)), self.width)
        hidden = math.ceil(int(2 * hidden / 3) / 256) * 256
        gate, value = (self.linear(f"{name}.{part}", x, hidden, bias=False) for part in ("w1", "w3"))
        return self.linear(f"{name}.w2", silu(gate) * value, self.width, bias=False)

    def queries(self, name: str, x: np.ndarray) -> list[np.ndarray]:
        """Queries, keys and values, (tokens, heads, 64) each."""
        qkv = self.linear(f"{name}.qkv", x, 3 * self.width, self.h["qkv_bias"])
        q, k, v = (part.reshape(len(x), -1, 64) for part in np.split(qkv, 3, axis=1))
        kind = self.h.get("qk_norm")
        if kind:
            q, k = ((rms if kind == "rms" else layer)(part) for part in (q, k))
            q, k = (part * self.parameter(f"{name}.ln_{i}.weight", 64) for part, i in ((q, "q"), (k, "k")))
        if kind == "ln":
            q, k = (part + self.parameter(f"{name}.ln_{i}.bias", 64) for part, i in ((q, "q"), (k, "k")))
        return [q, k, v]

    def attended(self, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        logits = np.einsum("nhd,mhd->hnm", q, k) / 8
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return np.einsum("hnm,mhd->nhd", weights / weights.sum(-1, keepdims=True), v).reshape(len(q), -1)

    def vectors(self, name: str, c: np.ndarray, groups: list[str]) -> dict[str, np.ndarray]:
        """What the modulation says, by group and kind; a group is shift, scale and gate, as far as it has them."""
        kinds = ["scale", "gate"] if self.h.get("scale_mod_only") else ["shift", "scale", "gate"]
        names = [f"{group} {kind}" for group in groups for kind in kinds if group != "end" or kind != "gate"]
        given = self.linear(f"{name}.adaLN_modulation.1", silu(c), len(names) * self.width)
        return dict(zip(names, np.split(given, len(names)), strict=True))

    def modulated(self, x: np.ndarray, vectors: dict[str, np.ndarray], group: str) -> np.ndarray:
        return self.norm(x) * (1 + vectors[f"{group} scale"]) + vectors.get(f"{group} shift", 0)

    def block(self, i: int, context: np.ndarray, x: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        name, last = f"joint_blocks.{i}", i == self.h["depth"] - 1
        dual = i in self.h.get("x_block_self_attn_layers", ())
        of_x = self.vectors(f"{name}.x_block", c, ["first", "mlp", "second"] if dual else ["first", "mlp"])
        of_context = self.vectors(f"{name}.context_block", c, ["end"] if last else ["first", "mlp"])
        before = self.modulated(context, of_context, "end" if last else "first")
        pairs = zip(
            self.queries(f"{name}.context_block.attn", before),
            self.queries(f"{name}.x_block.attn", self.modulated(x, of_x, "first")),
            strict=True,
        )
        h = self.attended(*(np.concatenate(pair) for pair in pairs))
        if not last:
            context = self.after(f"{name}.context_block", context, h[: len(context)], of_context, 0.0)
        extra = np.zeros(())
        if dual:
            again = self.attended(*self.queries(f"{name}.x_block.attn2", self.modulated(x, of_x, "second")))
            extra = of_x["second gate"] * self.linear(f"{name}.x_block.attn2.proj", again, self.width)
        return context, self.after(f"{name}.x_block", x, h[-len(x) :], of_x, extra)

    def after(self, name: str, x: np.ndarray, h: np.ndarray, vectors: dict[str, np.ndarray], extra: Any) -> np.ndarray:
        x = x + vectors["first gate"] * self.linear(f"{name}.attn.proj", h, self.width) + extra
        return x + vectors["mlp gate"] * self.perceptron(f"{name}.mlp", self.modulated(x, vectors, "mlp"))

    def condition(self, t: float, pooled: np.ndarray | None) -> np.ndarray:
        angles = t * 10_000.0 ** (-np.arange(128) / 128)
        vectors = [("t_embedder", np.concatenate([np.cos(angles), np.sin(angles)]))]
        vectors += [] if pooled is None else [("y_embedder", pooled)]
        hidden = [(name, silu(self.linear(f"{name}.mlp.0", vector, self.width))) for name, vector in vectors]
        return np.sum([self.linear(f"{name}.mlp.2", h, self.width) for name, h in hidden], axis=0)

    def __call__(
        self, image: np.ndarray, t: float, pooled: np.ndarray | None, context: np.ndarray | None
    ) -> np.ndarray:
        """(C, H, W) -> (C', H, W)."""
        p, d, side = self.h["patch_size"], self.width, self.h["pos_embed_max_size"]
        rows, columns = image.shape[1] // p, image.shape[2] // p
        kernel = self.parameter("x_embedder.proj.weight", d, len(image), p, p)
        patches = image.reshape(len(image), rows, p, columns, p)
        x = np.einsum("crpsq,dcpq->rsd", patches, kernel) + self.parameter("x_embedder.proj.bias", d)
        table = self.parameter("pos_embed", 1, side**2, d).reshape(side, side, d)
        top, left = (side - rows) // 2, (side - columns) // 2
        x = (x + table[top : top + rows, left : left + columns]).reshape(-1, d)
        c = self.condition(t, pooled)
        if context is None:
            context = np.zeros((0, d))
        elif self.h["context_embedder_config"]:
            context = self.linear("context_embedder", context, d)
        if self.h.get("register_length"):
            context = np.concatenate([self.parameter("register", 1, self.h["register_length"], d)[0], context])
        for i in range(self.h["depth"]):
            context, x = self.block(i, context, x, c)
        shift, scale = np.split(self.linear("final_layer.adaLN_modulation.1", silu(c), 2 * d), 2)
        channels = self.h.get("out_channels") or len(image) * (2 if self.h.get("learn_sigma") else 1)
        out = self.linear("final_layer.linear", layer(x) * (1 + scale) + shift, p * p * channels)
        return np.einsum("rspqc->crpsq", out.reshape(rows, columns, p, p, channels)).reshape(channels, *image.shape[1:])


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_a_case_with_other_hyperparameters_agrees_with_the_numpy_network(
    fields: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    h = FIELDS | fields
    network, random = NumpyMMDiT(h), np.random.default_rng(0)
    x = random.normal(size=(2, h["in_channels"], 3 * h["patch_size"], 4 * h["patch_size"])).astype(np.float32)
    inputs: dict[str, np.ndarray] = {"x": x, "t": np.asarray([0.0, 613.0], np.float32)}
    if h["adm_in_channels"]:
        inputs["pooled"] = random.normal(size=(2, h["adm_in_channels"])).astype(np.float32)
    if h["context_embedder_config"] or not h.get("register_length"):
        width = 6 if h["context_embedder_config"] else network.width
        inputs["context"] = random.normal(size=(2, 4, width)).astype(np.float32)
    exact = {name: value.astype(np.float64) for name, value in inputs.items()}
    out = np.stack(
        [
            network(
                exact["x"][i],
                exact["t"][i],
                *(exact[name][i] if name in exact else None for name in ("pooled", "context")),
            )
            for i in range(2)
        ]
    )
    meta = dict(case="case", source=SOURCE, hyperparameters=h, synthetic=network.shapes, note="")
    arrays: dict[str, Any] = {f"in/{name}": value for name, value in inputs.items()}
    arrays["out/y"] = out.astype(np.float32)
    np.savez(tmp_path / "case.npz", meta=json.dumps(meta), **arrays)
    assert main([str(tmp_path / "case.npz")]) == 0
