"""Encoders of other projects: mert:FOLDER, muq:FOLDER, musicfm:CHECKOUT, dasheng:SIZE.

`NAME:ARGUMENT` calls the function of NAME in ADAPTERS. docs/encoders.md lists what each needs and returns.

Legend: B slices, S samples.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from distributed.marble.encoders.hidden_states import (
    Description,
    HiddenStates,
    HowToEncode,
    need_package,
    need_transformers_4,
    transformer_layers,
    weights_digest,
)
from pupujepa.errors import UserError

MERT_DEFAULT, MUQ_DEFAULT = "m-a-p/MERT-v1-95M", "OpenMuQ/MuQ-large-msd-iter"
MERT_RATE_HZ = MUQ_RATE_HZ = MUSICFM_RATE_HZ = 24_000
DASHENG_RATE_HZ = 16_000
DASHENG_SIZES = ("base", "06B", "12B")
# of MERT's options, those that HuBERT lacks
_NOT_IN_HUBERT = ("feature_extractor_cqt", "deepnorm")
_MUSICFM = "musicfm"
_CODE, _STATISTICS, _WEIGHTS = "model/musicfm_25hz.py", "data/msd_stats.json", "data/pretrained_msd.pt"
_MUSICFM_SUBSAMPLING = 4  # of the convolutions between spectrogram and conformer


def open_mert(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads MERT v1 (arXiv 2306.00107) from a folder or a hub id.

    Its published code is transformers' HuBERT, tensor for tensor, with options that the released models do not use.
    HuBERT itself therefore loads it, which runs no code from the hub and works with more releases of transformers.

    Raises:
        UserError: transformers or the weights cannot be loaded, or HuBERT cannot run them.
    """
    need_package("transformers", encoder="mert")
    # before `from_pretrained`: there the OSError of an unfit torchaudio would look like that of a missing file
    hubert = need_package("transformers.models.hubert.modeling_hubert", encoder="mert").HubertModel
    source = argument or MERT_DEFAULT
    try:
        model, loading = hubert.from_pretrained(source, output_loading_info=True)
    except OSError as error:
        raise UserError(
            f"mert: {source} cannot be loaded ({error}); give a folder with its files or a hub id"
        ) from error
    differences = sorted([*loading["missing_keys"], *loading["unexpected_keys"]])
    differences += [option for option in _NOT_IN_HUBERT if getattr(model.config, option, False)]
    if differences:
        raise UserError(
            f"mert: {source} is not HuBERT with MERT's weights ({', '.join(differences[:6])}), so features would be "
            "wrong; give a release of MERT v1"
        )
    model = model.float().eval().to(how.device)

    def states_of(audio_BS: Tensor) -> tuple[Tensor, ...]:
        output = model(normalised(audio_BS), output_hidden_states=True)
        # releases of transformers differ in norming the last hidden state; this one is always normed
        return *output.hidden_states[:-1], output.last_hidden_state

    description = Description(
        name=Path(source).name,
        digest=lambda: weights_digest(model),
        front_end=f"zero mean, unit variance; transformers {version('transformers')}",
        sample_rate_hz=MERT_RATE_HZ,
        frame_rate_hz=MERT_RATE_HZ / prod(model.config.conv_stride),
        layer_names=transformer_layers(model.config.num_hidden_layers),
    )
    return HiddenStates(states_of, description, how)


def normalised(audio_BS: Tensor) -> Tensor:
    """Returns slices with zero mean and unit variance, padding included, as MERT's extractor does."""
    centred = audio_BS - audio_BS.mean(dim=1, keepdim=True)
    return centred / (audio_BS.var(dim=1, keepdim=True, correction=0) + 1e-7).sqrt()


def open_muq(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads MuQ (arXiv 2501.01108) from a hub id or a folder with config.json and weights.

    Raises:
        UserError: the package is missing, or transformers is too new for it.
    """
    muq = need_package("muq", encoder="muq")
    transformers = need_transformers_4(encoder="muq")
    source = argument or MUQ_DEFAULT
    model = muq.MuQ.from_pretrained(source).float().eval().to(how.device)
    description = Description(
        name=Path(source).name,
        digest=lambda: weights_digest(model),
        front_end=f"raw waveform; muq {version('muq')}, transformers {transformers.__version__}",
        sample_rate_hz=MUQ_RATE_HZ,
        frame_rate_hz=float(model.config.label_rate),
        layer_names=transformer_layers(model.config.encoder_depth),
    )
    return HiddenStates(lambda audio_BS: model(audio_BS, output_hidden_states=True).hidden_states, description, how)


def open_musicfm(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads MusicFM at 25 Hz (arXiv 2311.03318), with weights and statistics of the Million Song Dataset.

    It is not a package: `argument` is a clone named `musicfm`, with the files of its README in data/. Its code
    downloads the conformer's settings from the hub on first use.

    Raises:
        UserError: a package or a file is missing, or the folder has another name.
    """
    checkout = Path(argument or _MUSICFM).expanduser().resolve()
    missing = [name for name in (_CODE, _STATISTICS, _WEIGHTS) if not (checkout / name).is_file()]
    if missing or checkout.name != _MUSICFM:
        raise UserError(
            f"musicfm: {checkout} must be a clone of github.com/minzwon/musicfm named {_MUSICFM}, with the files of "
            f"its README in data/; missing: {', '.join(missing) or 'nothing, but it has another name'}"
        )
    transformers = need_transformers_4(encoder="musicfm")
    sys.path.insert(0, str(checkout.parent))  # its modules import each other by the name of the clone
    try:
        module = need_package("musicfm.model.musicfm_25hz", encoder="musicfm")
    finally:
        sys.path.remove(str(checkout.parent))
    model = module.MusicFM25Hz(stat_path=str(checkout / _STATISTICS), model_path=None)
    saved = torch.load(checkout / _WEIGHTS, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in saved.items()})
    model = model.float().eval().to(how.device)
    description = Description(
        name="musicfm-msd",
        # the statistics for normalising the input are not in the module's state
        digest=lambda: weights_digest(model) + (checkout / _STATISTICS).read_text(),
        front_end=f"raw waveform; transformers {transformers.__version__}",
        sample_rate_hz=MUSICFM_RATE_HZ,
        frame_rate_hz=MUSICFM_RATE_HZ / model.hop_length / _MUSICFM_SUBSAMPLING,
        layer_names=transformer_layers(len(model.conformer.layers)),
    )
    return HiddenStates(lambda audio_BS: model.get_predictions(audio_BS)[1], description, how)


def open_dasheng(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads Dasheng (arXiv 2406.06992): a released size, or FILE.pt as its authors save it.

    Its only state is the last layer, normed. The package splits audio longer than its training length (about 10 s).

    Raises:
        UserError: the package is missing, or the argument is neither a size nor a file.
    """
    dasheng = need_package("dasheng", encoder="dasheng")
    which = argument or DASHENG_SIZES[0]
    if which in DASHENG_SIZES:
        model, name = getattr(dasheng, f"dasheng_{which}")(), f"dasheng_{which}"
    elif Path(which).is_file():
        pretrained = need_package("dasheng.pretrained.pretrained", encoder="dasheng")
        model, name = pretrained.Dasheng.from_pretrained(which), Path(which).stem
    else:
        sizes = ", ".join(DASHENG_SIZES)
        raise UserError(f"dasheng:{which} is neither a file nor one of the sizes {sizes}; give one of them")
    model = model.float().eval().to(how.device)
    description = Description(
        name=name,
        digest=lambda: weights_digest(model),
        front_end=f"raw waveform; dasheng {version('dasheng')}",
        sample_rate_hz=DASHENG_RATE_HZ,
        frame_rate_hz=DASHENG_RATE_HZ / model.hop_size / model.patch_stride[-1],
        layer_names=("last layer, normed",),
    )
    return HiddenStates(lambda audio_BS: (model(audio_BS),), description, how)


ADAPTERS: dict[str, Callable[[str, HowToEncode], HiddenStates]] = {
    "dasheng": open_dasheng,
    "mert": open_mert,
    "muq": open_muq,
    "musicfm": open_musicfm,
}
