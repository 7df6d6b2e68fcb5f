"""MERT v1 (arXiv 2306.00107): `mert:m-a-p/MERT-v1-95M`, `mert:m-a-p/MERT-v1-330M` or `mert:FOLDER`.

Its published code is transformers' HuBERT, tensor for tensor, with options that the released models do not use. HuBERT
itself therefore loads it, which runs no code from the hub and works with more releases of transformers. States are
those of `output_hidden_states`: the transformer's input, then each layer.

Legend: B slices, S samples.
"""

from importlib.metadata import version
from math import prod

from torch import Tensor

from distributed.marble.encoders.hidden_states import (
    Description,
    HiddenStates,
    need_package,
    transformer_layers,
    weights_digest,
)
from distributed.marble.encoders.pupujepa import HowToEncode
from pupujepa.errors import UserError

DEFAULT = "m-a-p/MERT-v1-95M"
SAMPLE_RATE_HZ = 24_000
_VARIANCE_FLOOR = 1e-7
# options that HuBERT lacks
_OPTIONS = ("feature_extractor_cqt", "deepnorm")


def open_encoder(argument: str, how: HowToEncode) -> HiddenStates:
    """Loads a folder or a hub id.

    Raises:
        UserError: transformers or the weights cannot be loaded, or HuBERT cannot run them.
    """
    need_package("transformers", encoder="mert")
    # Import this before `from_pretrained`: there the OSError of an unfit torchaudio would look like that of a
    # missing file.
    hubert = need_package("transformers.models.hubert.modeling_hubert", encoder="mert").HubertModel
    source = argument or DEFAULT
    try:
        model, loading = hubert.from_pretrained(source, output_loading_info=True)
    except OSError as error:
        raise UserError(
            f"mert: {source} cannot be loaded ({error}); give a folder with its files or a hub id"
        ) from error
    differences = sorted([*loading["missing_keys"], *loading["unexpected_keys"]])
    differences += [option for option in _OPTIONS if getattr(model.config, option, False)]
    if differences:
        raise UserError(
            f"mert: {source} is not HuBERT with MERT's weights ({', '.join(differences[:6])}), so features would be "
            "wrong; give a release of MERT v1"
        )
    model = model.float().eval().to(how.device)
    config = model.config

    def states_of(audio_BS: Tensor) -> tuple[Tensor, ...]:
        output = model(normalised(audio_BS), output_hidden_states=True)
        # releases of transformers differ in norming the last hidden state; this one is always normed
        return *output.hidden_states[:-1], output.last_hidden_state

    description = Description(
        name=source.rstrip("/").split("/")[-1],
        digest=lambda: weights_digest(model),
        front_end=f"zero mean, unit variance; transformers {version('transformers')}",
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_rate_hz=SAMPLE_RATE_HZ / prod(config.conv_stride),
        layer_names=transformer_layers(config.num_hidden_layers),
    )
    return HiddenStates(states_of, description, how)


def normalised(audio_BS: Tensor) -> Tensor:
    """Returns slices with zero mean and unit variance, padding included, as MERT's extractor does."""
    centred = audio_BS - audio_BS.mean(dim=1, keepdim=True)
    return centred / (audio_BS.var(dim=1, keepdim=True, correction=0) + _VARIANCE_FLOOR).sqrt()
