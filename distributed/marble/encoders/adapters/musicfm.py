"""MusicFM (arXiv 2311.03318), 25 Hz: `musicfm:CHECKOUT`.

CHECKOUT is a clone of github.com/minzwon/musicfm named `musicfm`. It is not a package: its modules import each other by
the name of the clone. Weights and statistics are those of the Million Song Dataset, in CHECKOUT/data/ as in its README.
Its code downloads the conformer's settings from the hub on first use.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
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
from pupujepa.errors import UserError

SAMPLE_RATE_HZ = 24_000
FOLDER = "musicfm"
CODE, STATISTICS, WEIGHTS = "model/musicfm_25hz.py", "data/msd_stats.json", "data/pretrained_msd.pt"
_SUBSAMPLING = 4
_PREFIX = "model."


def open_encoder(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads a checkout.

    Raises:
        UserError: a package or a file is missing, or the folder has another name.
    """
    checkout = Path(argument).expanduser().resolve() if argument else Path(FOLDER).resolve()
    missing = [name for name in (CODE, STATISTICS, WEIGHTS) if not (checkout / name).is_file()]
    if missing or checkout.name != FOLDER:
        raise UserError(
            f"musicfm: {checkout} must be a clone of github.com/minzwon/musicfm named {FOLDER}, with the files of its "
            f"README in data/; missing: {', '.join(missing) or 'nothing, but it has another name'}"
        )
    transformers = need_transformers_4(encoder="musicfm")
    with _importable(checkout.parent):
        module = need_package("musicfm.model.musicfm_25hz", encoder="musicfm")
    model = module.MusicFM25Hz(stat_path=str(checkout / STATISTICS), model_path=None)
    saved = torch.load(checkout / WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix(_PREFIX): tensor for name, tensor in saved.items()})
    model = model.float().eval().to(how.device)

    def states_of(audio_BS: Tensor) -> tuple[Tensor, ...]:
        _, states = model.get_predictions(audio_BS)
        return tuple(states)

    description = Description(
        name="musicfm-msd",
        # the statistics for normalising the input are not in the module's state
        digest=lambda: weights_digest(model) + (checkout / STATISTICS).read_text(),
        front_end=f"raw waveform; transformers {transformers.__version__}",
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_rate_hz=SAMPLE_RATE_HZ / model.hop_length / _SUBSAMPLING,
        layer_names=transformer_layers(len(model.conformer.layers)),
    )
    return HiddenStates(states_of, description, how)


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
