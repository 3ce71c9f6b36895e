"""EDM2 cases unlike the stored ones, computed by an EDM2 network written here in plain numpy.

It follows the paper (Karras et al. 2024, Fig. 21, App. B) and the reference's layouts: images NCHW, weights out x in.
It shares no line with the package.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.cases import RULES

SOURCE = "NVlabs/edm2 networks_edm2.py Precond; by tests/golden/test_edm2.py"
Arrays = dict[str, np.ndarray]

FIELDS: dict[str, Any] = dict(
    img_resolution=8, img_channels=2, label_dim=5, model_channels=6, channel_mult=[1, 2], num_blocks=1,
    attn_resolutions=[], channels_per_head=6, logvar_channels=8,
)  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "filters": dict(resample_filter=[1, 3, 2, 0.5], channel_mult=[2, 1], clip_act=1.5, attn_resolutions=[8]),
    "widths, and no room for heads": dict(
        channel_mult_noise=3, channel_mult_emb=2, num_blocks=2, label_dim=0, clip_act=None, img_channels=1,
        attn_resolutions=[4, 8], channels_per_head=64,
    ),
    "three levels and balances": dict(
        img_resolution=12, channel_mult=[1, 1, 2], attn_resolutions=[12, 3], channels_per_head=4, use_fp16=True,
        label_balance=0.3, concat_balance=0.7, res_balance=0.6, attn_balance=0.2, sigma_data=0.9, label_dim=3,
    ),
    "heads wider than the levels": dict(attn_resolutions=[4, 8], channels_per_head=7, channel_mult=[1, 3]),
    "one level without blocks": dict(channel_mult=[2], num_blocks=0, label_dim=1, channels_per_head=3),
}  # fmt: skip


def unit(x: np.ndarray, axis: Any) -> np.ndarray:
    return x / (1e-4 + np.sqrt(np.mean(x**2, axis=axis, keepdims=True)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x)) / 0.596


def blend(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    return (a + t * (b - a)) / math.sqrt((1 - t) ** 2 + t**2)


def shrunk(x: np.ndarray, taps: list[float]) -> np.ndarray:
    """(C, H, W) -> (C, H/2, W/2): each pixel gathers its neighbours."""
    f, margin = np.asarray(taps) / sum(taps), len(taps) // 2 - 1
    out = np.zeros((len(x), x.shape[1] // 2, x.shape[2] // 2))
    for row, column in np.ndindex(*out.shape[1:]):
        for i, j in np.ndindex(len(f), len(f)):
            y, z = 2 * row + i - margin, 2 * column + j - margin
            if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                out[:, row, column] += f[i] * f[j] * x[:, y, z]
    return out


def grown(x: np.ndarray, taps: list[float]) -> np.ndarray:
    """(C, H, W) -> (C, 2H, 2W): each pixel scatters to its neighbours."""
    f, margin = np.asarray(taps) / sum(taps), len(taps) // 2 - 1
    out = np.zeros((len(x), x.shape[1] * 2, x.shape[2] * 2))
    for row, column in np.ndindex(*x.shape[1:]):
        for i, j in np.ndindex(len(f), len(f)):
            y, z = 2 * row + i - margin, 2 * column + j - margin
            if 0 <= y < out.shape[1] and 0 <= z < out.shape[2]:
                out[:, y, z] += 4 * f[i] * f[j] * x[:, row, column]
    return out


class NumpyEDM2:
    """One image at a time, in float64; parameters are made when their shapes become known."""

    def __init__(self, fields: dict[str, Any]) -> None:
        given: dict[str, Any] = dict(
            channel_mult_noise=None, channel_mult_emb=None, label_balance=0.5, concat_balance=0.5
        )
        self.h = given | dict(res_balance=0.3, attn_balance=0.3, clip_act=256, resample_filter=[1, 1]) | fields
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.forced = False

    def parameter(self, name: str, *shape: int) -> np.ndarray:
        assert self.shapes.setdefault(name, shape) == shape
        return RULES["NVlabs/edm2"](name, shape).astype(np.float64)

    def weight(self, name: str, *shape: int) -> np.ndarray:
        w, axes = self.parameter(f"{name}.weight", *shape), tuple(range(1, len(shape)))
        return unit(unit(w, axes) if self.forced else w, axes) / math.sqrt(np.prod(shape[1:]))

    def conv(self, name: str, x: np.ndarray, out: int, size: int = 3) -> np.ndarray:
        w, (rows, columns) = self.weight(name, out, len(x), size, size), x.shape[1:]
        padded = np.pad(x, [(0, 0)] + [(size // 2, size // 2)] * 2)
        total = np.zeros((out, rows, columns))
        for i, j in np.ndindex(size, size):
            total += np.einsum("oc,cyx->oyx", w[:, :, i, j], padded[:, i : i + rows, j : j + columns])
        return total

    def linear(self, name: str, x: np.ndarray, out: int) -> np.ndarray:
        return self.weight(name, out, len(x)) @ x

    def waves(self, name: str, t: float, count: int) -> np.ndarray:
        frequencies, phases = self.parameter(f"{name}.freqs", count), self.parameter(f"{name}.phases", count)
        return math.sqrt(2) * np.cos(frequencies * t + phases)

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        channels, heads = len(x), len(x) // self.h["channels_per_head"]
        qkv = self.conv(f"{name}.attn_qkv", x, 3 * channels, 1).reshape(heads, channels // heads, 3, -1)
        outs = []
        for q, k, v in np.moveaxis(unit(qkv, 1), 2, 1):  # each (width, pixels)
            weights = np.exp(q.T @ k / math.sqrt(len(q)))
            outs.append(v @ (weights / weights.sum(1, keepdims=True)).T)
        return self.conv(f"{name}.attn_proj", np.reshape(outs, x.shape), channels, 1)

    def block(self, name: str, x: np.ndarray, emb: np.ndarray, out: int, attends: bool, taps: Any = None) -> np.ndarray:
        if taps:
            x = (shrunk if name.endswith("down") else grown)(x, taps)
        skip = self.conv(f"{name}.conv_skip", x, out, 1) if len(x) != out else x
        if ".enc." in name:
            x = skip = unit(skip, 0)
        y = self.conv(f"{name}.conv_res0", silu(x), out)
        scale = 1 + self.parameter(f"{name}.emb_gain") * self.linear(f"{name}.emb_linear", emb, out)
        y = self.conv(f"{name}.conv_res1", silu(y * scale[:, None, None]), out)
        x = blend(skip, y, self.h["res_balance"])
        if attends and out >= self.h["channels_per_head"]:
            x = blend(x, self.attention(name, x), self.h["attn_balance"])
        limit = self.h["clip_act"]
        return x if limit is None else np.clip(x, -limit, limit)

    def joined(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        t, total = self.h["concat_balance"], len(a) + len(b)
        parts = [part * share * math.sqrt(total / len(part)) for part, share in ((a, 1 - t), (b, t))]
        return np.concatenate(parts) / math.sqrt((1 - t) ** 2 + t**2)

    def embedding(self, t: float, label: np.ndarray) -> np.ndarray:
        h, widths = self.h, [self.h["model_channels"] * times for times in self.h["channel_mult"]]
        noise = h["model_channels"] * h["channel_mult_noise"] if h["channel_mult_noise"] else widths[0]
        width = h["model_channels"] * h["channel_mult_emb"] if h["channel_mult_emb"] else max(widths)
        emb = self.linear("unet.emb_noise", self.waves("unet.emb_fourier", t, noise), width)
        if h["label_dim"]:
            row = self.linear("unet.emb_label", label * math.sqrt(len(label)), width)
            emb = blend(emb, row, h["label_balance"])
        return silu(emb)

    def network(self, x: np.ndarray, t: float, label: np.ndarray) -> np.ndarray:
        """(C, H, W) -> (C, H, W)."""
        h, emb, channels = self.h, self.embedding(t, label), len(x)
        levels = [
            (f"{h['img_resolution'] >> level}x{h['img_resolution'] >> level}", h["model_channels"] * times)
            for level, times in enumerate(h["channel_mult"])
        ]
        attends = [h["img_resolution"] >> level in h["attn_resolutions"] for level in range(len(levels))]
        x = self.conv(f"unet.enc.{levels[0][0]}_conv", np.concatenate([x, np.ones_like(x[:1])]), levels[0][1])
        skips = [x]
        for level, (name, width) in enumerate(levels):
            if level:
                x = self.block(f"unet.enc.{name}_down", x, emb, len(x), False, h["resample_filter"])
                skips.append(x)
            for i in range(h["num_blocks"]):
                x = self.block(f"unet.enc.{name}_block{i}", x, emb, width, attends[level])
                skips.append(x)
        for level, (name, width) in reversed(list(enumerate(levels))):
            if level == len(levels) - 1:
                x = self.block(f"unet.dec.{name}_in0", x, emb, len(x), True)
                x = self.block(f"unet.dec.{name}_in1", x, emb, len(x), False)
            else:
                x = self.block(f"unet.dec.{name}_up", x, emb, len(x), False, h["resample_filter"])
            for i in range(h["num_blocks"] + 1):
                x = self.block(f"unet.dec.{name}_block{i}", self.joined(x, skips.pop()), emb, width, attends[level])
        return self.parameter("unet.out_gain") * self.conv("unet.out_conv", x, channels)

    def logvar(self, t: float) -> np.ndarray:
        return self.linear("logvar_linear", self.waves("logvar_fourier", t, self.h["logvar_channels"]), 1)

    def denoised(self, x: np.ndarray, sigma: float, label: np.ndarray) -> np.ndarray:
        data = self.h.get("sigma_data", 0.5)
        total = sigma**2 + data**2
        answer = self.network(x / math.sqrt(total), math.log(sigma) / 4, label)
        return data**2 / total * x + sigma * data / math.sqrt(total) * answer


def outputs(network: NumpyEDM2, x: np.ndarray, noise: np.ndarray, sigma: float, label: np.ndarray) -> Arrays:
    """What a case holds of one image."""
    data, t, noisy = network.h.get("sigma_data", 0.5), math.log(sigma) / 4, x + sigma * noise
    found = dict(denoised=network.denoised(noisy, sigma, label), unet_raw_at_x=network.network(x, t, label))
    u = network.logvar(t)
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    found |= dict(logvar=u.reshape(1, 1, 1), loss=weight / np.exp(u) * (found["denoised"] - x) ** 2 + u)
    network.forced = True
    found["denoised_train_mode"] = network.denoised(noisy, sigma, label)
    network.forced = False
    return found


def write_case(path: pathlib.Path, fields: dict[str, Any]) -> None:
    random, network, classes = np.random.default_rng(0), NumpyEDM2(fields), fields["label_dim"]
    x, noise = random.normal(size=(2, 3, fields["img_channels"], *[fields["img_resolution"]] * 2)).astype(np.float32)
    sigma = np.asarray([0.03, 1.1, 70.0], np.float32)
    labels = np.eye(max(classes, 1), dtype=np.float32)[[0, classes - 1, 0]] * [[1], [1], [0]]  # the last is null
    rows = zip(x.astype(np.float64), noise.astype(np.float64), sigma.astype(np.float64), labels, strict=True)
    found = [outputs(network, *row) for row in rows]
    arrays: dict[str, Any] = {
        f"out/{name}": np.stack([out[name] for out in found]).astype(np.float32) for name in found[0]
    }
    weight = network.parameter("unet.out_conv.weight", *network.shapes["unet.out_conv.weight"])
    arrays["out/out_conv_weight_after_forced_normalization"] = unit(weight, (1, 2, 3)).astype(np.float32)
    arrays |= {"in/x": x, "in/noise": noise, "in/sigma": sigma} | ({"in/labels": labels} if classes else {})
    meta = dict(case=path.stem, source=SOURCE, hyperparameters=fields, synthetic=network.shapes, note="")
    np.savez(path, meta=json.dumps(meta), **arrays)


SLOW = ("filters", "heads wider than the levels")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in VARIANTS])
def test_a_case_with_other_hyperparameters_agrees_with_the_numpy_network(name: str, tmp_path: pathlib.Path) -> None:
    write_case(tmp_path / "case.npz", FIELDS | VARIANTS[name])
    assert main([str(tmp_path / "case.npz")]) == 0


def test_an_unknown_setting_is_refused(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_case(tmp_path / "case.npz", FIELDS | VARIANTS["one level without blocks"] | dict(gate="open"))
    assert main([str(tmp_path / "case.npz")]) == 1
    assert "UnsupportedSource: unsupported setting 'gate'" in capsys.readouterr().out
