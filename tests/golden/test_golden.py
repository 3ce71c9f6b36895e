"""The golden cases pass, broken ones do not, and one more case comes from a DiT written here in plain numpy.

The numpy network follows the paper (Peebles & Xie 2022: Fig. 3 and Sec. 3.2, adaLN-Zero) and the reference's layouts:
images NCHW, linear layers out x in. It shares no line with the package.
"""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest

from tests.golden.__main__ import main
from tests.golden.cases import load, relative_error
from tests.golden.synthetic import synthetic
from tests.tasks.test_published import HINTS

CASES = sorted(pathlib.Path(__file__).parent.glob("*.npz"))
DIT = [path for path in CASES if path.stem.startswith("dit_")]
MMDIT = [path for path in CASES if path.stem.startswith("mmdit_")]
# Those of which `tasks/test_published.py` compares all that they hold, as imported runs'.
IMPORTED = ("dit_learn_sigma", "mmdit_sd3", "adm_class_cond", "adm_uncond_simple", "adm_classifier")
# Not quickly: those whose networks are imported there, large ones that have others' parts, and systems.
OTHERS = (
    *("edm2_class_cond", "edm2_uncond", "unet_sd15", "unet_sd21", "unet_sdxl", "inception_fid", "lpips_vgg"),
    # Each is a system that is imported and compiled.
    *("pipeline_sd2", "pipeline_sdxl", "pipeline_sd_upscaler", "pipeline_sd3", "pipeline_sd35"),
)
SOURCE = "facebookresearch/DiT models.py DiT; by tests/golden/test_golden.py"
Arrays = dict[str, np.ndarray]

# Wholly unlike the stored cases: patch 3, 2 channels, 5 heads, 4 blocks, a thin MLP, with and without a null row.
FIELDS: dict[str, Any] = dict(
    input_size=9, patch_size=3, in_channels=2, hidden_size=40, depth=4, num_heads=5, mlp_ratio=2.6, num_classes=7
)
VARIANTS: list[dict[str, Any]] = [
    FIELDS | dict(class_dropout_prob=0.0, learn_sigma=False),
    FIELDS | dict(class_dropout_prob=0.1, learn_sigma=True, depth=1, patch_size=1, input_size=4, mlp_ratio=1.0),
]


def state_shapes(h: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The `state_dict` of the reference: parameter name -> shape."""
    d, p, channels = h["hidden_size"], h["patch_size"], h["in_channels"]
    hidden, rows = int(d * h["mlp_ratio"]), h["num_classes"] + (h["class_dropout_prob"] > 0)
    linears = {"t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d)}
    for i in range(h["depth"]):
        linears |= {f"blocks.{i}.attn.qkv": (3 * d, d), f"blocks.{i}.attn.proj": (d, d)}
        linears |= {f"blocks.{i}.mlp.fc1": (hidden, d), f"blocks.{i}.mlp.fc2": (d, hidden)}
        linears |= {f"blocks.{i}.adaLN_modulation.1": (6 * d, d)}
    linears["final_layer.adaLN_modulation.1"] = (2 * d, d)
    linears["final_layer.linear"] = (p * p * channels * (2 if h["learn_sigma"] else 1), d)
    shapes: dict[str, tuple[int, ...]] = {"x_embedder.proj.weight": (d, channels, p, p), "x_embedder.proj.bias": (d,)}
    shapes["y_embedder.embedding_table.weight"] = (rows, d)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def norm(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


class NumpyDiT:
    """One image at a time, in float64."""

    def __init__(self, state: Arrays, h: dict[str, Any]) -> None:
        self.state = {name: value.astype(np.float64) for name, value in state.items()}
        self.h = h

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.einsum("oi,...i->...o", self.state[f"{name}.weight"], x) + self.state[f"{name}.bias"]

    def position(self, row: int, column: int) -> np.ndarray:
        d = self.h["hidden_size"]
        omega = [10_000 ** (-4 * k / d) for k in range(d // 4)]
        return np.asarray([f(place * w) for place in (column, row) for f in (math.sin, math.cos) for w in omega])

    def condition(self, t: float, y: int) -> np.ndarray:
        omega = [10_000 ** (-k / 128) for k in range(128)]
        wave = np.asarray([math.cos(t * w) for w in omega] + [math.sin(t * w) for w in omega])
        time = self.linear("t_embedder.mlp.2", silu(self.linear("t_embedder.mlp.0", wave)))
        return time + self.state["y_embedder.embedding_table.weight"][y]

    def attention(self, name: str, x: np.ndarray) -> np.ndarray:
        heads = []
        size = x.shape[1] // self.h["num_heads"]
        q, k, v = np.split(self.linear(f"{name}.qkv", x), 3, axis=1)  # each (N, D)
        for i in range(self.h["num_heads"]):
            part = slice(i * size, (i + 1) * size)
            weights = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
        return self.linear(f"{name}.proj", np.concatenate(heads, axis=1))

    def block(self, name: str, x: np.ndarray, c: np.ndarray) -> np.ndarray:
        beta1, gamma1, alpha1, beta2, gamma2, alpha2 = np.split(self.linear(f"{name}.adaLN_modulation.1", silu(c)), 6)
        x = x + alpha1 * self.attention(f"{name}.attn", norm(x) * (1 + gamma1) + beta1)
        hidden = gelu(self.linear(f"{name}.mlp.fc1", norm(x) * (1 + gamma2) + beta2))
        return x + alpha2 * self.linear(f"{name}.mlp.fc2", hidden)

    def __call__(self, image: np.ndarray, t: float, y: int) -> np.ndarray:
        """(C, H, W) -> (C or 2C, H, W)."""
        p, side = self.h["patch_size"], image.shape[1] // self.h["patch_size"]
        places = [(row, column) for row in range(side) for column in range(side)]
        kernel, bias = self.state["x_embedder.proj.weight"], self.state["x_embedder.proj.bias"]
        tokens = []
        for row, column in places:
            patch = image[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            tokens.append(np.einsum("dcij,cij->d", kernel, patch) + bias + self.position(row, column))
        x, c = np.stack(tokens), self.condition(t, y)
        for i in range(self.h["depth"]):
            x = self.block(f"blocks.{i}", x, c)
        beta, gamma = np.split(self.linear("final_layer.adaLN_modulation.1", silu(c)), 2)
        patches = self.linear("final_layer.linear", norm(x) * (1 + gamma) + beta).reshape(len(x), p, p, -1)
        out = np.zeros((patches.shape[-1], *image.shape[1:]))
        for (row, column), patch in zip(places, patches, strict=True):
            out[:, row * p : (row + 1) * p, column * p : (column + 1) * p] = patch.transpose(2, 0, 1)
        return out


def write_case(path: pathlib.Path, h: dict[str, Any]) -> None:
    """A case of the numpy network, its parameters synthetic."""
    shapes = state_shapes(h)
    network = NumpyDiT({name: synthetic(name, shape) for name, shape in shapes.items()}, h)
    random = np.random.default_rng(0)
    x = random.normal(size=(3, h["in_channels"], h["input_size"], h["input_size"])).astype(np.float32)
    t = np.asarray([0.0, 321.0, 999.0], np.float32)
    last = h["num_classes"] - (h["class_dropout_prob"] == 0)  # the null label, if there is one
    y = np.asarray([0, 3, last])
    out = np.stack([network(*inputs) for inputs in zip(x.astype(np.float64), t, y, strict=True)])
    meta = dict(case=path.stem, source=SOURCE, hyperparameters=h, synthetic=shapes, note="")
    arrays: dict[str, Any] = {"in/x": x, "in/t": t, "in/y": y, "out/y": out.astype(np.float32)}
    np.savez(path, meta=json.dumps(meta), **arrays)


def change(source: pathlib.Path, target: pathlib.Path, **arrays: Any) -> str:
    """A copy of a case with some arrays replaced (None takes one out); its path."""
    with np.load(source) as archive:
        merged = {key: archive[key] for key in archive.files} | arrays
    np.savez(target, **{key: value for key, value in merged.items() if value is not None})
    return str(target)


def meta_of(path: pathlib.Path, **fields: Any) -> str:
    with np.load(path) as archive:
        return json.dumps(json.loads(str(archive["meta"])) | fields)


@pytest.mark.parametrize("others", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_stored_case_passes(others: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(CASES) >= 13 and len(DIT) >= 2 and len(MMDIT) >= 2
    cases = [path for path in CASES if (path.stem in OTHERS) == others and path.stem not in IMPORTED]
    assert set(IMPORTED) <= HINTS.keys()
    assert main([str(path) for path in cases]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(cases) and all(line.startswith("pass  ") for line in lines)


@pytest.mark.parametrize("fields", VARIANTS)
def test_a_case_with_other_hyperparameters_agrees_with_the_numpy_network(
    fields: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    write_case(tmp_path / "case.npz", fields)
    assert main([str(tmp_path / "case.npz")]) == 0


def test_parameters_may_be_stored_instead_of_synthetic(tmp_path: pathlib.Path) -> None:
    """A stored array wins over the synthetic one of its name, and it matters."""
    name, meta = "final_layer.linear.bias", json.loads(meta_of(DIT[0]))
    stored = {f"param/{name}": synthetic(name, meta["synthetic"].pop(name))}
    assert main([change(DIT[0], tmp_path / "a.npz", meta=json.dumps(meta), **stored)]) == 0
    stored = {key: value + 1 for key, value in stored.items()}
    assert main([change(DIT[0], tmp_path / "b.npz", **stored)]) == 1


@pytest.mark.parametrize(
    ("path", "what"),
    [(DIT[0], what) for what in ("out/y", "in/x", "in/t", "in/y")]
    + [(MMDIT[-1], what) for what in ("out/y", "in/x", "in/t", "in/context", "in/pooled")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_perturbed_case_fails(
    path: pathlib.Path, what: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = load(path)
    name = what.partition("/")[2]
    values = (case.outputs if what.startswith("out") else case.inputs)[name].copy()
    # Inputs by one unit (a label, a time step, a pixel); outputs by thrice the allowed error at one pixel.
    values.flat[0] += 3e-4 * np.abs(values).max() if what == "out/y" else 1
    assert main([change(path, tmp_path / "case.npz", **{what: values})]) == 1
    assert capsys.readouterr().out.startswith("FAIL  ")


def test_one_failure_among_passing_cases_is_a_failure(tmp_path: pathlib.Path) -> None:
    bad = change(DIT[0], tmp_path / "case.npz", **{"out/y": load(DIT[0]).outputs["y"] * 1.01})
    assert main([bad, str(DIT[0])]) == 1


def test_an_unsupported_source_fails_and_is_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = meta_of(DIT[0], source="example/Net models.py Net")
    assert main([change(DIT[0], tmp_path / "case.npz", meta=meta)]) == 1
    assert "example/Net models.py Net" in capsys.readouterr().out


@pytest.mark.parametrize("fields", [{"depth": 7}, {"hidden_size": 32}, {"num_classes": 2}])
def test_parameters_that_do_not_fit_the_network_fail(fields: dict[str, int], tmp_path: pathlib.Path) -> None:
    meta = meta_of(DIT[0], hyperparameters=json.loads(meta_of(DIT[0]))["hyperparameters"] | fields)
    assert main([change(DIT[0], tmp_path / "case.npz", meta=meta)]) == 1


def test_a_case_without_outputs_or_with_an_unknown_one_does_not_pass(tmp_path: pathlib.Path) -> None:
    assert main([change(DIT[0], tmp_path / "a.npz", **{"out/y": None})]) == 1
    assert main([change(DIT[0], tmp_path / "b.npz", **{"out/z": np.zeros(3)})]) == 1


def test_a_file_that_is_no_case_is_told_apart_and_the_others_still_run(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = DIT[0].read_bytes()
    for name, content in {"cut.npz": whole[: len(whole) // 2], "text.npz": b"no case", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", np.zeros(3))
    nothing = change(DIT[0], tmp_path / "nothing.npz", meta=None)
    files = [*(tmp_path / name for name in ("cut.npz", "text.npz", "empty.npz", "array.npy", "absent.npz")), nothing]
    assert main([*map(str, files), str(DIT[0])]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == ["FAIL"] * 6 + ["pass"]
    assert main([]) == 2


def test_the_error_is_relative_to_the_largest_value_and_infinite_for_what_cannot_agree() -> None:
    theirs = np.asarray([[1.0, -4.0]])
    assert relative_error(np.asarray([[1.5, -4.0]]), theirs) == 0.125
    assert relative_error(theirs, theirs) == 0
    for ours in (theirs.T, np.asarray([[1.0, np.nan]]), np.asarray([[np.inf, -4.0]])):
        assert relative_error(ours, theirs) == math.inf
    assert relative_error(theirs, np.asarray([[1.0, np.nan]])) == math.inf
    zeros = np.zeros(2)
    assert relative_error(zeros, zeros) == 0 and relative_error(zeros + 1e-9, zeros) == math.inf
