"""Dasheng (arXiv 2406.06992): `dasheng:base`, `dasheng:06B`, `dasheng:12B`, or `dasheng:FILE.pt`.

FILE.pt is as its authors save it. It takes raw waveforms at 16 kHz and returns frames of 40 ms from the last layer,
normed, the only one that MARBLE uses. The package splits audio longer than its training length (about 10 s).
"""

from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from distributed.marble.encoders.hidden_states import Description, HiddenStates, need_package, weights_digest
from distributed.marble.encoders.pupujepa import HowToEncode
from pupujepa.errors import UserError

SAMPLE_RATE_HZ = 16_000
SIZES = ("base", "06B", "12B")


def open_encoder(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads released weights (downloads them) or a file.

    Raises:
        UserError: the package is missing, or the argument is neither a size nor a file.
    """
    dasheng = need_package("dasheng", encoder="dasheng")
    which = argument or SIZES[0]
    if which in SIZES:
        model, name = getattr(dasheng, f"dasheng_{which}")(), f"dasheng_{which}"
    elif Path(which).is_file():
        pretrained = need_package("dasheng.pretrained.pretrained", encoder="dasheng")
        model, name = pretrained.Dasheng.from_pretrained(which), Path(which).stem
    else:
        raise UserError(f"dasheng:{which} is neither a file nor one of the sizes {', '.join(SIZES)}; give one of them")
    model = model.float().eval().to(how.device)

    def states_of(audio_BS: Tensor) -> tuple[Tensor, ...]:
        return (model(audio_BS),)

    description = Description(
        name=name,
        digest=lambda: weights_digest(model),
        front_end=f"raw waveform; dasheng {version('dasheng')}",
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_rate_hz=SAMPLE_RATE_HZ / model.hop_size / model.patch_stride[-1],
        layer_names=("last layer, normed",),
    )
    return HiddenStates(states_of, description, how)
