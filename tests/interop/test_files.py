"""Laws of files of tensors: values by name whatever their type, and what cannot be read is answered in one line."""

from __future__ import annotations

import argparse
import builtins
import json
import pathlib
import pickle
import resource
import struct
import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import files
from tests.mutations import MUTATIONS, mutated

NUMBERS = np.asarray([[0.0, -1.5, 2.0**-9], [1e-3, 255.0, -65504.0]])
TYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "U8": np.uint8},
}


class Runs:
    """What makes a file when it is unpickled."""

    def __init__(self, made: pathlib.Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return builtins.open, (str(self.made), "w")


def header(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> bytes:
    """A .safetensors file, byte by byte."""
    entries, start = {}, 0
    for name, (kind, shape, data) in tensors.items():
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": (start, start + len(data))}
        start += len(data)
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values())


def put(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(content)
    return path


def complaint(path: pathlib.Path, field: str = "checkpoint") -> str:
    with pytest.raises(UserError) as refused:
        files.read(path, field)
    assert (refused.value.field, refused.value.value) == (field, str(path)) and "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_of_every_common_type_are_read_as_float32(kind: str, tmp_path: pathlib.Path) -> None:
    stored = np.abs(NUMBERS).astype(TYPES[kind]) if kind == "U8" else NUMBERS.astype(TYPES[kind])
    content = header({"w": (kind, (2, 3), stored.tobytes()), "gain": (kind, (), stored[:1, 1].tobytes())})
    found = files.read(put(tmp_path / "x.safetensors", content))
    assert {name: tensor.shape for name, tensor in found.items()} == {"w": (2, 3), "gain": ()}
    for name, expected in (("w", stored), ("gain", stored[0, 1])):
        array = np.asarray(found[name])
        assert array.dtype == np.float32 and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected.astype(np.float32))


def test_other_types_are_given_where_they_are_asked_for(tmp_path: pathlib.Path) -> None:
    files.write({"w": np.asarray([1.5, 2.5])}, tmp_path / "x.safetensors")
    assert np.asarray(files.read(tmp_path / "x.safetensors")["w"], np.float64).dtype == np.float64


def test_a_tensor_is_read_when_somebody_asks_for_it_and_no_sooner() -> None:
    asked = []
    tensor = files.Tensor((2,), lambda: asked.append(1) or np.ones(2))  # type: ignore[func-returns-value]
    assert np.shape(tensor) == (2,) and not asked
    assert np.asarray(tensor).tolist() == [1, 1] and asked


def test_a_tensor_of_a_type_that_numpy_lacks_is_named_when_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    content = header({"good": ("F32", (1,), bytes(4)), "small": ("F8_E8M0", (4,), bytes(4))})
    found = files.read(put(tmp_path / "x.safetensors", content))
    assert found["small"].shape == (4,) and np.asarray(found["good"]).tolist() == [0]
    with pytest.raises(UserError) as caught:
        np.asarray(found["small"])
    assert caught.value.field == "checkpoint" and "F8_E8M0 numbers in small" in str(caught.value)


@pytest.mark.parametrize(("kind", "dtype"), files.EIGHT_BITS.items())
def test_floats_of_eight_bits_are_read(kind: str, dtype: Any, tmp_path: pathlib.Path) -> None:
    values = np.asarray([[0.5, -1.5, 2.0**-6], [0, 16, -3]])
    before = ("F32", (1,), bytes(4))
    content = header({"before": before, "small": (kind, (2, 3), values.astype(dtype).tobytes()), "after": before})
    read = np.asarray(files.read(put(tmp_path / "x.safetensors", content))["small"])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)


def shards(folder: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Two files and their index."""
    for number, name in enumerate("ab"):
        files.write({name: np.full((2,), number, np.float32)}, folder / f"part-{name}.safetensors")
    places = {name: f"part-{name}.safetensors" for name in "ab"} | changes
    return put(folder / "model.safetensors.index.json", json.dumps({"weight_map": places}).encode())


def test_several_files_are_read_by_their_index_or_their_folder(tmp_path: pathlib.Path) -> None:
    index = shards(tmp_path)
    for path in (index, tmp_path):
        found = {name: np.asarray(tensor).tolist() for name, tensor in files.read(path).items()}
        assert found == {"a": [0, 0], "b": [1, 1]}
    index.unlink()
    assert "index.json" in complaint(tmp_path)
    (tmp_path / "part-b.safetensors").unlink()
    assert list(files.read(tmp_path)) == ["a"]


@pytest.mark.parametrize(
    "place", ["../secret.safetensors", "/etc/passwd", "part-a.pkl", 3, None, ["part-a.safetensors"]]
)
def test_an_index_names_files_of_its_own_folder_alone(place: Any, tmp_path: pathlib.Path) -> None:
    complaint(shards(tmp_path, c=place))


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path: pathlib.Path) -> None:
    assert " c" in complaint(shards(tmp_path, c="part-a.safetensors"))
    for content in (b"", b"[]", b"{}", b'{"weight_map": 3}', b"[" * 100_000):
        complaint(put(tmp_path / "model.safetensors.index.json", content))


def test_what_is_written_comes_back_bit_for_bit_whatever_its_layout(tmp_path: pathlib.Path) -> None:
    random = np.random.default_rng(0)
    w = random.normal(size=(4, 3, 2)).astype(np.float32)
    tensors = {"plain": w, "turned": w.transpose(2, 0, 1), "cut": w[::2, :, 1], "one": w[0, 0, :1], "gain": w[0, 0, 0]}
    path = tmp_path / "new" / "folder" / "x.safetensors"
    files.write(tensors, path)
    found = files.read(path)
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        array = np.asarray(found[name])
        assert found[name].shape == array.shape == value.shape
        assert array.tobytes() == value.tobytes()
    assert [each.name for each in path.parent.iterdir()] == ["x.safetensors"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    files.write({"w": np.ones(3)}, path)
    with pytest.raises(UserError) as caught:
        files.write({"w": np.zeros(3), "v": np.asarray([None])}, path)
    assert (caught.value.field, caught.value.value) == ("out", str(path))
    assert np.asarray(files.read(path)["w"]).tolist() == [1, 1, 1]
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_place_that_cannot_be_written_and_a_full_disk_are_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.safetensors", pathlib.Path("/proc/x.safetensors")):
        with pytest.raises(UserError) as caught:
            files.write({"w": np.ones(3)}, path, "weights")
        assert (caught.value.field, caught.value.value) == ("weights", str(path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            files.write({"w": np.ones(10_000)}, tmp_path / "big.safetensors")
        assert caught.value.field == "out" and "File too large" in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "big.safetensors").exists()


WHOLE = header({"w": ("F32", (4,), bytes(16))})
DAMAGED = {
    "empty": b"",
    "cut in its numbers": WHOLE[:-1],
    "cut in its header": WHOLE[:20],
    "longer than it says": WHOLE + b"\0",
    "text": b"no tensors at all, but some words",
    "a header of another size": header({"w": ("F32", (5,), bytes(16))}),
    "an unknown type": header({"w": ("F7", (4,), bytes(16))}),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_answered_in_one_line(case: str, tmp_path: pathlib.Path) -> None:
    assert "is damaged: " in complaint(put(tmp_path / "x.safetensors", DAMAGED[case]))


def test_a_missing_file_and_an_empty_folder_are_named(tmp_path: pathlib.Path) -> None:
    assert "not a file" in complaint(tmp_path / "x.safetensors")
    complaint(tmp_path, "weights")
    assert "not a file" in complaint(tmp_path / "x.pkl")


@pytest.mark.parametrize("name", ["x.npz", "x", "x.onnx", "x.safetensors.zip"])
def test_a_file_of_unknown_format_is_answered_with_the_known_ones(name: str, tmp_path: pathlib.Path) -> None:
    said = complaint(put(tmp_path / name, WHOLE))
    assert all(suffix in said for suffix in (".safetensors", ".pt", ".pth", ".bin", ".ckpt"))


def test_a_pickle_is_not_run_and_the_safe_way_is_named(tmp_path: pathlib.Path) -> None:
    made = tmp_path / "made"
    said = complaint(put(tmp_path / "x.pkl", pickle.dumps({"ema": Runs(made)})))
    assert not made.exists()
    assert "a pickle runs code when it is read" in said and "safetensors.torch" in said and "save_file(" in said


@pytest.mark.parametrize("suffix", files.TORCH)
def test_without_pytorch_its_files_are_answered_with_two_ways_out(
    suffix: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed
    said = complaint(put(tmp_path / f"x{suffix}", b""))
    assert "is read by PyTorch, which is not installed" in said
    assert "pip install torch" in said and ".safetensors" in said


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def saved(torch: Any, path: pathlib.Path, what: Any, **options: Any) -> pathlib.Path:
    torch.save(what, path, **options)
    return path


@pytest.mark.parametrize("suffix", files.TORCH)
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_give_values_by_name(torch: Any, suffix: str, zipped: bool, tmp_path: pathlib.Path) -> None:
    values = torch.tensor(NUMBERS)
    state = {"a.float": values.float(), "a.bfloat": values.bfloat16(), "a.half": values.half(), "turned": values.T}
    state |= {"weight": torch.nn.Parameter(values.float()), "gain": values[0, 1]}
    path = saved(torch, tmp_path / f"x{suffix}", state, _use_new_zipfile_serialization=zipped)
    found = files.read(path)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: tuple(v.shape) for n, v in state.items()}
    for name, tensor in found.items():
        assert np.asarray(tensor).dtype == np.float32
        np.testing.assert_array_equal(np.asarray(tensor), state[name].detach().double().numpy().astype(np.float32))


@pytest.mark.parametrize(
    ("names", "best"),
    [(("opt", "model", "ema"), "ema"), (("state_dict", "model"), "model"), (("epoch", "state_dict"), "state_dict")],
)
def test_of_what_a_training_script_saved_the_average_is_taken_before_the_rest(
    torch: Any, names: tuple[str, ...], best: str, tmp_path: pathlib.Path
) -> None:
    whole: dict[str, Any] = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(names)}
    whole |= {"args": argparse.Namespace(lr=1e-4, model="DiT-S/2", steps=[1, 2]), "step": 7}
    found = files.read(saved(torch, tmp_path / "x.pt", whole))
    assert found.keys() == {"w"} and np.asarray(found["w"]).tolist() == [names.index(best)] * 2


def test_values_that_are_not_tensors_are_passed_over(torch: Any, tmp_path: pathlib.Path) -> None:
    state = {"w": torch.ones(2), "step": 3, 5: torch.ones(1), "ema": None, "model": torch.zeros(1)}
    assert set(files.read(saved(torch, tmp_path / "x.pt", state))) == {"w", "model"}


@pytest.mark.parametrize("what", [[1, 2], {"step": 3}, {"ema": {}}, 5])
def test_a_pytorch_file_without_tensors_by_name_is_refused(torch: Any, what: Any, tmp_path: pathlib.Path) -> None:
    assert "tensors by name" in complaint(saved(torch, tmp_path / "x.pt", what))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("with_tensors", [True, False])
def test_a_pytorch_file_that_would_run_code_is_refused_and_does_not_run(
    torch: Any, zipped: bool, with_tensors: bool, tmp_path: pathlib.Path
) -> None:
    made, evil = tmp_path / "made", Runs(tmp_path / "made")
    what: Any = {"w": torch.ones(2), "args": argparse.Namespace(x=evil)} if with_tensors else evil
    said = complaint(saved(torch, tmp_path / "x.pt", what, _use_new_zipfile_serialization=zipped))
    assert not made.exists()
    assert "holds more than tensors (" in said and "might run code" in said and "model.state_dict()" in said
    assert "open" in said


def test_a_bare_pickle_under_the_name_of_a_pytorch_file_does_not_run(torch: Any, tmp_path: pathlib.Path) -> None:
    made = tmp_path / "made"
    content = pickle.dumps(Runs(made))
    complaint(put(tmp_path / "x.pt", content))
    assert not made.exists()
    pickle.loads(content).close()
    assert made.exists()  # as it would have been


@pytest.mark.parametrize("content", [b"", b"words", b"PK\3\4 no archive", b"\x80\2."])
def test_a_damaged_pytorch_file_is_answered_in_one_line(torch: Any, content: bytes, tmp_path: pathlib.Path) -> None:
    assert "is damaged and is not read" in complaint(put(tmp_path / "x.pt", content))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_cut_short_is_answered_in_one_line(
    torch: Any, share: float, zipped: bool, tmp_path: pathlib.Path
) -> None:
    state = {"w": torch.arange(500.0)}
    path = saved(torch, tmp_path / "x.pt", state, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    assert "is not read" in complaint(put(path, whole[: int(share * len(whole))]))


def test_a_whole_saved_module_is_answered_with_what_to_save(torch: Any, tmp_path: pathlib.Path) -> None:
    said = complaint(saved(torch, tmp_path / "x.pt", torch.nn.Linear(2, 3)))
    assert "torch.nn.modules.linear.Linear" in said and "torch.save(model.state_dict())" in said


def test_reading_leaves_no_name_allowed_behind(torch: Any, tmp_path: pathlib.Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    files.read(saved(torch, tmp_path / "x.pt", {"w": torch.ones(1), "args": argparse.Namespace()}))
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved(torch, tmp_path / "y.pt", types.SimpleNamespace()), weights_only=True)


def test_a_changed_file_of_tensors_is_read_or_refused_in_one_line(tmp_path: pathlib.Path) -> None:
    refused, path = 0, tmp_path / "x.safetensors"
    whole = header({"a": ("F32", (2, 2), bytes(16)), "b": ("F8_E4M3", (4,), bytes(4)), "c": ("BF16", (3,), bytes(6))})
    for content in mutated(whole, seed=3):
        path.unlink(missing_ok=True)  # the library maps the file before into memory
        try:
            for tensor in files.read(put(path, content)).values():
                assert np.asarray(tensor).shape == tensor.shape
        except UserError as e:
            refused += 1
            assert e.field == "checkpoint" and "\n" not in str(e)
    assert MUTATIONS / 2 < refused <= MUTATIONS
