"""Writing a bundle's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprune.errors import InputError
from edgeprune.exporter.placing import CONVERTED, Form, Placing, QuantisedTensor
from edgeprune.exporter.precision.blocks import BlockForm, Blocks, quantise
from edgeprune.exporter.weights import StoredTensor, read_header, read_tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INT4 = BlockForm("int4", 32)


class Place:
    """A checkpoint, and the folder of a bundle to be."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "in", folder / "out"
        self.source.mkdir()
        self.target.mkdir()
        self.advanced: list[int] = []

    def store(self, tensors: dict[str, torch.Tensor], file: str = "model.safetensors") -> Any:
        save_file(tensors, self.source / file)
        return read_header(self.source / file)

    def place(
        self,
        stored: Mapping[str, StoredTensor],
        forms: Form | Mapping[str, Form],
        link: bool = False,
        **more: Any,
    ) -> Any:
        if not isinstance(forms, dict):
            forms = dict.fromkeys(stored, forms)
        placing = Placing(stored, forms, self.source, self.target, torch.float32)
        if link:
            placing.check_links()
            assert not any(self.target.iterdir())
        copied = placing.copy(self.advanced.append)
        placed, converted = placing.convert(self.advanced.append, **more)
        assert sum(self.advanced) == placing.bytes
        if link:
            placing.link(copied, lambda _: None)
        found = placed, [*copied, *converted]
        for entry in found[1]:
            content = (self.target / entry.path).read_bytes()
            assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert {entry.path for entry in found[1]} == {path.name for path in self.target.iterdir()}
        return found


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_weights_of_the_wanted_dtype_stay_as_they_are(here: Place) -> None:
    stored = here.store({"a": torch.randn(3, 5), "b": torch.randn(7)})
    placed, entries = here.place(stored, torch.float32)
    assert placed == stored
    assert [entry.path for entry in entries] == ["model.safetensors"]
    name = "model.safetensors"
    assert (here.target / name).read_bytes() == (here.source / name).read_bytes()
    assert not (here.target / name).samefile(here.source / name)


def test_files_that_stay_as_they_are_can_be_linked(here: Place) -> None:
    tensors = {"stays": torch.randn(64, 64), "changes": torch.randn(5)}
    stored = here.store(tensors)
    placed, entries = here.place(stored, {"stays": torch.float32, "changes": torch.float16}, link=True)
    assert [entry.path for entry in entries] == ["model.safetensors", CONVERTED]
    assert (here.target / "model.safetensors").samefile(here.source / "model.safetensors")
    assert (here.target / CONVERTED).stat().st_nlink == 1
    assert torch.equal(read_tensor(here.target, placed["stays"]), tensors["stays"])


def test_a_file_that_was_altered_after_it_was_copied_is_not_linked(here: Place) -> None:
    stored = here.store({"a": torch.randn(8)})
    placing = Placing(stored, {"a": torch.float32}, here.source, here.target, torch.float32)
    copied = placing.copy(here.advanced.append)
    here.store({"a": torch.randn(8)})
    with pytest.raises(InputError, match=r"model\.safetensors was altered while .* export again"):
        placing.link(copied, here.advanced.append)


def test_that_nothing_can_be_linked_is_told(here: Place, caplog: pytest.LogCaptureFixture) -> None:
    here.place(here.store({"a": torch.randn(8)}), torch.float16, link=True)
    assert caplog.messages == [
        "no file of the model stays as it is, so none is linked: all weights are written anew"
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_dtypes_are_converted_into_one_new_file(dtype: torch.dtype, here: Place) -> None:
    tensors = {
        "matrix": torch.randn(6, 4),
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "scalar": torch.tensor(1.5),
    }
    one, two = dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])
    stored = {**here.store(one, "1.safetensors"), **here.store(two, "2.safetensors")}
    stored["tied"] = stored["matrix"]
    placed, _ = here.place(stored, dtype)
    for name, value in {**tensors, "tied": tensors["matrix"]}.items():
        assert placed[name].dtype == dtype
        assert torch.equal(read_tensor(here.target, placed[name]), value.to(dtype)), name
    assert placed["tied"] == placed["matrix"]


def test_a_file_that_would_be_mostly_idle_is_not_brought(here: Place) -> None:
    tensors = {"stays": torch.randn(64), "changes": torch.randn(64, 64)}
    stored = here.store(tensors)
    placed, entries = here.place(stored, {"stays": torch.float32, "changes": torch.float16})
    assert [entry.path for entry in entries] == [CONVERTED]
    assert torch.equal(read_tensor(here.target, placed["stays"]), tensors["stays"])
    assert len(load_file(here.target / CONVERTED)) == 2


def test_a_checkpoint_s_file_of_the_new_file_s_name_stays_as_it_is(here: Place) -> None:
    tensors = {"a": torch.randn(300, 5), "b": torch.randn(7).half()}
    stored = here.store(tensors, CONVERTED)
    placed, entries = here.place(stored, torch.float32)
    assert len({entry.path for entry in entries}) == 2
    for name, tensor in placed.items():
        assert torch.equal(read_tensor(here.target, tensor), tensors[name].float())


def test_files_that_nothing_is_taken_from_are_left_out(here: Place) -> None:
    stored = here.store({"a": torch.randn(100)}, "1.safetensors")
    here.store({"unused": torch.randn(3)}, "2.safetensors")
    here.place(stored, torch.float32)
    assert [path.name for path in here.target.iterdir()] == ["1.safetensors"]


def test_quantised_weights_are_refused(here: Place) -> None:
    stored = here.store({"packed": torch.ones(4, dtype=torch.int8)})
    with pytest.raises(InputError, match=r"model\.safetensors stores packed in a type .*export the original"):
        here.place(stored, torch.float16)


def test_a_value_that_the_new_type_cannot_hold_is_refused(here: Place) -> None:
    stored = here.store({"huge": torch.tensor([1.0, -1e6])})
    with pytest.raises(InputError, match=r"stores huge with values up to 1e\+06, beyond f16: choose a wider"):
        here.place(stored, torch.float16)


def test_infinity_stays_what_it_is(here: Place) -> None:
    stored = here.store({"open": torch.tensor([1.0, torch.inf])})
    placed, _ = here.place(stored, torch.float16)
    assert read_tensor(here.target, placed["open"]).tolist() == [1.0, torch.inf]


@pytest.mark.parametrize("shape", [(5, 64), (6, 32)])
@pytest.mark.parametrize("form", [INT4, BlockForm("nvfp4", 16)], ids=["int4", "nvfp4"])
def test_a_weight_in_blocks(here: Place, shape: tuple[int, int], form: BlockForm) -> None:
    weight = torch.randn(shape)
    stored = here.store({"w": weight, "plain": torch.randn(3)})
    placed, _ = here.place(stored, {"w": form, "plain": torch.float32})
    found, expected = placed["w"].blocks(here.target), quantise(weight, form, torch.float32)
    assert isinstance(placed["w"], QuantisedTensor)
    assert placed["w"].shape == (shape[1], shape[0])
    assert found.values.dtype == expected.values.dtype
    assert found.scale.dtype == expected.scale.dtype
    assert torch.equal(found.weight(), expected.weight())


def test_one_stored_weight_can_be_wanted_in_two_forms(here: Place) -> None:
    weight = torch.randn(4, 32)
    stored = here.store({"head": weight})
    stored["embedding"] = stored["head"]
    placed, _ = here.place(stored, {"head": INT4, "embedding": torch.float16})
    assert torch.equal(read_tensor(here.target, placed["embedding"]), weight.half())
    assert placed["head"].form == INT4


def test_somebody_else_may_make_the_blocks(here: Place) -> None:
    blocks = Blocks(torch.full((32, 4), 3, dtype=torch.int8), torch.full((1, 4), 0.5))
    asked: list[Any] = []

    def make(name: str, weight: torch.Tensor, form: BlockForm) -> Blocks:
        asked.append((name, weight.shape, form))
        return blocks

    placed, _ = here.place(here.store({"w": torch.randn(4, 32)}), INT4, into_blocks=make)
    assert asked == [("w", (4, 32), INT4)]
    assert torch.equal(placed["w"].blocks(here.target).weight(), torch.full((4, 32), 1.5))
