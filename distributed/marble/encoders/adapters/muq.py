"""MuQ (arXiv 2501.01108): `muq:OpenMuQ/MuQ-large-msd-iter`, or `muq:FOLDER`.

FOLDER has config.json and weights. It takes raw waveforms and returns 25 frames per second of the conformer's input and
of its layers. Its authors advise float32 (`--precision fp32`); MARBLE ran it under bf16 autocast.
"""

from importlib.metadata import version

from torch import Tensor

from distributed.marble.encoders.hidden_states import (
    Description,
    HiddenStates,
    need_package,
    need_transformers_4,
    transformer_layers,
    weights_digest,
)
from distributed.marble.encoders.pupujepa import HowToEncode

DEFAULT = "OpenMuQ/MuQ-large-msd-iter"
SAMPLE_RATE_HZ = 24_000


def open_encoder(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads a folder or a hub id.

    Raises:
        UserError: the package is missing, or transformers is too new for it.
    """
    muq = need_package("muq", encoder="muq")
    transformers = need_transformers_4(encoder="muq")
    source = argument or DEFAULT
    model = muq.MuQ.from_pretrained(source).float().eval().to(how.device)

    def states_of(audio_BS: Tensor) -> tuple[Tensor, ...]:
        return tuple(model(audio_BS, output_hidden_states=True).hidden_states)

    description = Description(
        name=source.rstrip("/").split("/")[-1],
        digest=lambda: weights_digest(model),
        front_end=f"raw waveform; muq {version('muq')}, transformers {transformers.__version__}",
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_rate_hz=float(model.config.label_rate),
        layer_names=transformer_layers(model.config.encoder_depth),
    )
    return HiddenStates(states_of, description, how)
