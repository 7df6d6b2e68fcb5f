"""Every released size, by shape: folders of the released layout with sparse files as weights."""

import pytest
import torch

from pupujepa.cost.cost import model_size
from pupujepa.weights.weights import WeightsError, load
from tests.pupujepa.models import random_mel
from tests.pupujepa.released import NAMINGS, SIZES, release_of_size, released_shapes


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("size", SIZES)
def test_every_released_size_is_known_by_shape(tmp_path, naming, size):
    """A folder of each size, with its real length, names and shapes, loads as the preset of that name."""
    folder = tmp_path / f"{naming}_{size}"
    path = release_of_size(folder, size)
    width, depth, _ = SIZES[size]
    model = load(folder, device="meta")
    assert model.config == model_size(size)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == released_shapes(width, depth)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    if size == "large":
        assert path.stat().st_size / 2**30 == pytest.approx(3.13, abs=0.01)  # what the release's file weighs


@pytest.mark.parametrize("size", SIZES)
def test_one_wrong_tensor_is_found_at_every_size(tmp_path, size):
    """The check of names and shapes is equally strict on the meta device."""
    path = release_of_size(tmp_path, size)
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        wrong = header.replace(b'"teacher.blocks.7.mlp.fc2.bias"', b'"teacher.blocks.7.mlp.fc3.bias"')
        assert wrong != header
        file.seek(8)
        file.write(wrong)
    with pytest.raises(WeightsError) as caught:
        load(tmp_path, device="meta")
    assert "teacher.blocks.7.mlp.fc2.bias is missing; teacher.blocks.7.mlp.fc3.bias is not part" in str(caught.value)


def test_tiny_is_loaded_whole(tmp_path):
    """The released Tiny, with all its 48 million values, gives a model that encodes."""
    release_of_size(tmp_path, "tiny")
    model = load(tmp_path)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 2 * 7_117_440 + 12_864 + 33_822_912
    with torch.no_grad():
        (state,) = model.encode(random_mel(1, 1024, 128), layers=[-1])
    assert state.shape == (1, 2048, 192)
    assert not state.any()  # all weights are zero
