"""Interface of encoders, and encoders from their names on the command line.

    runs/demo                      a PupuJEPA: run directory, export, release or step of one, model.safetensors, hub id
    runs/demo:student:region:4x2   its student, with another readout than frames; both are optional
    random_init, log_mel, chroma   baselines; random_init:mean has a readout too
    mert:m-a-p/MERT-v1-95M         an adapter for another project's encoder: adapters/mert.py
    my_encoder.py:ARGUMENT         your file with the same function, open_encoder

docs/encoders.md lists them and explains how to add one.

Legend: B slices, S samples, L layers, T frames, D width.
"""

import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Protocol

from torch import Tensor

from distributed.marble.encoders import adapters
from distributed.marble.encoders.baselines import Chroma, LogMel
from distributed.marble.encoders.pupujepa import FrozenPupuJEPA, HowToEncode, load_frozen, random_twin
from distributed.marble.encoders.readout import SliceFeatures
from distributed.marble.tasks.tasks import Task
from pupujepa.audio.log_mel import FrontendConfig
from pupujepa.errors import UserError

BASELINES = ("random_init", "log_mel", "chroma")


class FrozenEncoder(Protocol):
    """A frozen encoder: audio slices in, features of all its layers out.

    Attributes:
        name: name in results.
        digest: digest of everything that could change its features.
        front_end: description or digest of the processing from audio to its input.
        only_tasks: tasks that it supports; None for all.
        frame_rate_hz: frames per second; None for an encoder with clip-level features only.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def front_end(self) -> str: ...  # noqa: D102
    @property
    def sample_rate_hz(self) -> int: ...  # noqa: D102
    @property
    def layer_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def frame_rate_hz(self) -> float | None: ...  # noqa: D102
    @property
    def only_tasks(self) -> frozenset[str] | None: ...  # noqa: D102

    def embed(self, audio_BS: Tensor, *, frame_layers: Sequence[int]) -> SliceFeatures:
        """Returns the time mean of every layer, and the frames of `frame_layers`."""
        ...


def supports(encoder: FrozenEncoder, task: Task) -> bool:
    """Returns True if an encoder can be measured on a task."""
    if encoder.only_tasks is not None and task.name not in encoder.only_tasks:
        return False
    return task.frames is None or encoder.frame_rate_hz is not None


def resolve_encoders(specs: Sequence[str], how: HowToEncode) -> tuple[FrozenEncoder, ...]:
    """Loads the encoders named on the command line, in that order.

    Args:
        specs: as above. `random_init` copies the shape and the input normalisation of the first PupuJEPA in the list.
        how: which blocks and which readout of a PupuJEPA that does not say.

    Raises:
        UserError: no weights, an option or a file that cannot be understood, a package that is missing, `random_init`
            without an encoder to copy, or two encoders of one name.
    """
    first: FrozenPupuJEPA | None = None
    opened: dict[int, FrozenEncoder] = {}
    # random_init copies the first PupuJEPA, wherever both are in the list: open it last
    for place, spec in enumerate(specs):
        if _source(spec) != "random_init":
            encoder = opened[place] = _open(spec, how)
            first = encoder if first is None and isinstance(encoder, FrozenPupuJEPA) else first
    for place, spec in enumerate(specs):
        if place not in opened:
            opened[place] = _random_init(first, _options(spec, how)[1])
    encoders = tuple(opened[place] for place in range(len(specs)))
    names = [e.name for e in encoders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two encoders are called {name!r}, so their results would be mixed up; rename a folder")
    return encoders


def adapter_names() -> tuple[str, ...]:
    """Returns the names of the adapters: the files in adapters/."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(adapters.__path__)))


def _open(spec: str, how: HowToEncode) -> FrozenEncoder:
    source, _, argument = spec.partition(":")
    if spec == "log_mel":
        return LogMel(FrontendConfig())
    if spec == "chroma":
        return Chroma()
    if source in adapter_names():
        return import_module(f"{adapters.__name__}.{source}").open_encoder(argument, how)
    if source.endswith(".py"):
        return _complete(_module_of(Path(source)).open_encoder(argument, how), source)
    return load_frozen(*_options(spec, how))


def _source(spec: str) -> str:
    return spec.partition(":")[0]


def _options(spec: str, how: HowToEncode) -> tuple[str, HowToEncode]:
    """Splits SOURCE[:teacher|:student][:READOUT][:rope=MODE][:window=FRAMES].

    An existing path has no options.
    """
    if Path(spec).exists():
        return spec, how
    source, _, rest = spec.partition(":")
    words = rest.split(":") if rest else []
    if words and words[0] in ("teacher", "student"):
        how = replace(how, which=words.pop(0))
    while words and words[-1].startswith(("rope=", "window=")):
        option, _, value = words.pop().partition("=")
        if option == "window" and not value.isdigit():
            raise UserError(f"encoder {spec!r}: window={value} is not a number of frames; write e.g. window=1024")
        how = replace(how, rope=value) if option == "rope" else replace(how, window_frames=int(value))
    readout = ":".join(words)
    if readout and not readout.startswith("region:") and readout not in ("frames", "mean"):
        raise UserError(
            f"encoder {spec!r}: {readout!r} is not a readout (frames, mean, region:FxT) and {source!r} is not an "
            f"adapter ({', '.join(adapter_names())}); correct one of them"
        )
    return source, replace(how, readout=readout) if readout else how


def _module_of(path: Path) -> ModuleType:
    """Imports a Python file of the user."""
    description = spec_from_file_location(path.stem, path)
    if not path.is_file() or description is None or description.loader is None:
        raise UserError(f"there is no file {path}, so no encoder can be loaded; give the path of a Python file")
    module = module_from_spec(description)
    description.loader.exec_module(module)
    if not hasattr(module, "open_encoder"):
        raise UserError(
            f"{path} has no function open_encoder(argument, how), so no encoder can be loaded; "
            "docs/encoders.md shows one"
        )
    return module


def _complete(encoder: FrozenEncoder, source: str) -> FrozenEncoder:
    """Returns the encoder; raises UserError now, not after hours, if it lacks an attribute."""
    wanted = [name for name in vars(FrozenEncoder) if not name.startswith("_")]
    missing = [name for name in wanted if not hasattr(encoder, name)]
    if missing:
        raise UserError(
            f"the encoder of {source} has no {', '.join(missing)}, which the evaluator reads; "
            "add them, or build it on HiddenStates as docs/encoders.md shows"
        )
    return encoder


def _random_init(trained: FrozenPupuJEPA | None, how: HowToEncode) -> FrozenPupuJEPA:
    if trained is None:
        raise UserError(
            "random_init copies the shape of a trained network, but none is given; "
            "name a run directory too: --encoders runs/demo random_init"
        )
    return random_twin(trained, how)
