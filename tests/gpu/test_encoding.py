"""Features and probes on a device are those of the CPU: front end, rotary angles, embeddings, probes.

On the CPU another number of windows or slices at a time makes the two sides differ.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distributed.marble.features.reading import Features
from distributed.marble.probes.bank import Labelled, Training, train_bank
from distributed.marble.tasks.tasks import ProbeFit
from pupujepa.audio.log_mel import log_mel
from pupujepa.embedding.encoder import Encoder
from pupujepa.model.rope import grid_rotation, rotate
from tests.pupujepa.models import SMALL, random_model

CPU = torch.device("cpu")
RATE_HZ = 24_000
LAYERS, SLICES, WIDTH, CLASSES = 3, 120, 16, 3


@pytest.fixture(scope="module")
def audio():
    """Noise that fades between two tones, longer than several crops."""
    time_s = np.arange(3 * RATE_HZ) / RATE_HZ
    noise = 0.1 * np.random.default_rng(0).standard_normal(len(time_s))
    return (noise + 0.4 * np.sin(2 * np.pi * 220 * (1 + time_s) * time_s)).astype(np.float32)


def test_the_front_end_is_the_cpus(device, audio):
    """Log-mel spectrograms agree to 1e-5 in the mean and to 2e-3 everywhere, in nepers; each clip is as it is alone."""
    clips = torch.from_numpy(audio).view(3, -1)
    found = log_mel(clips.to(device)).cpu()
    expected = torch.cat([log_mel(clip[None]) for clip in clips])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert (found - expected).abs().mean() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotations_are_those_of_complex_numbers(device, dtype):
    """Whatever way a device takes: angles in float64, products in float32, in the input's dtype at the end."""
    x_BHND = torch.randn(2, 3, 64, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    angles = {"head_dim": 16, "reference_steps": 8, "mode": "length_exact"}
    cos, sin = grid_rotation(8, 8, device=CPU, **angles)
    pairs = torch.view_as_complex(x_BHND.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    found = rotate(x_BHND.to(device), grid_rotation(8, 8, device=device, **angles))
    assert (found.device.type, found.dtype) == (device.type, dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_embeddings_are_the_cpus(device, audio, which):
    """All layers of three seconds in float32, within 1e-3 of features of unit scale: no product is rounded to TF32."""
    on_device, on_cpu = (
        Encoder(random_model(), device=where, batch_size=windows).encode(
            audio, RATE_HZ, layers=range(SMALL.depth + 1), which=which
        )
        for where, windows in ((device, 3), (CPU, 8))
    )
    assert on_cpu.values.std() > 0.5
    np.testing.assert_allclose(on_device.values, on_cpu.values, rtol=1e-3, atol=1e-3)


def test_embeddings_in_bf16_point_where_those_in_float32_do(device, audio):
    """The cosine of every frame of the last layer is above 0.999."""
    model = random_model()
    half = Encoder(model, device=device, autocast_dtype=torch.bfloat16).encode(audio, RATE_HZ).values
    full = Encoder(model, device=CPU).encode(audio, RATE_HZ).values
    cosines = (half * full).sum(1) / np.linalg.norm(half, axis=1) / np.linalg.norm(full, axis=1)
    assert 0.999 < cosines.min() < 1


def labelled(seed, where):
    """Slices whose class shows in the second layer alone."""
    rng = torch.Generator().manual_seed(seed)
    x_LNTD = torch.randn(LAYERS, SLICES, 1, WIDTH, generator=rng)
    direction = torch.randn(WIDTH, CLASSES, generator=torch.Generator().manual_seed(99))
    targets = (x_LNTD[1, :, 0] @ direction).argmax(-1)
    items = torch.arange(SLICES)
    return Labelled(Features(x_LNTD.to(where)), targets.to(where), items.to(where), targets.to(where))


def test_probes_are_the_cpus(device):
    """Probes of a bank are kept from the same epoch, and then say the same of every slice.

    Of two epochs that are as good, rounding decides. The reference trains each learning rate by itself.
    """
    fit = ProbeFit(learning_rates=(3e-3, 1e-2), seeds=(0, 7), max_epochs=12, batch_size=32, patience=3)

    def trained(where, rates):
        training = Training(replace(fit, learning_rates=rates), "multiclass", CLASSES, "clean", "t")
        return train_bank(training, labelled(0, where), labelled(1, where), on_epoch=lambda epoch: None)

    bank = trained(device, fit.learning_rates)
    valid = labelled(1, device)
    found = torch.cat(list(bank.logits(valid.features))).cpu()
    for place, rate in enumerate(fit.learning_rates):
        alone = trained(CPU, (rate,))
        expected = torch.cat(list(alone.logits(labelled(1, CPU).features)))
        same = torch.from_numpy(bank.kept_epoch[:, :, place] == alone.kept_epoch[:, :, 0])
        assert same.float().mean() > 0.6
        torch.testing.assert_close(found[:, :, place][same], expected[:, :, 0][same], rtol=1e-3, atol=1e-3)
    right = (found.argmax(-1).squeeze(-1) == valid.targets.cpu()).float().mean(-1)[:, :, 1]
    assert right[1].min() > 0.75 > right[0].max()
