"""Devices by name: usable, or one sentence."""

import pytest
import torch

from pupujepa.devices import usable_device
from pupujepa.embedding.encoder import Encoder
from pupujepa.errors import UserError
from pupujepa.weights.weights import load
from tests.pupujepa.models import random_model


def test_the_cpu_can_be_used():
    """By name or as a device."""
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_one_sentence(name):
    """A wrong name and a GPU that no machine has are refused alike, whatever the build of torch."""
    with pytest.raises(UserError, match=rf"device '{name}' cannot be used here \(.+\); choose cpu, or cuda"):
        usable_device(name)


def test_loading_and_encoding_refuse_it(weights):
    """`load` and `Encoder` check what they are given."""
    with pytest.raises(UserError, match="device 'gpu' cannot be used here"):
        load(weights, device="gpu")
    with pytest.raises(UserError, match="device 'gpu' cannot be used here"):
        Encoder(random_model(), device="gpu")
