"""What the evaluator asks of an encoder, and how the names on the command line become encoders.

Legend: B slices, S samples, L layers, T frames, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from distributed.marble.baselines import Chroma, LogMel
from distributed.marble.pupujepa_encoder import FrozenPupuJEPA, HowToEncode, load_frozen, random_twin
from distributed.marble.readout import SliceFeatures
from distributed.marble.tasks import Task
from pupujepa.errors import UserError
from pupujepa.frontend import FrontendConfig

BASELINES = ("random_init", "log_mel", "chroma")


class FrozenEncoder(Protocol):
    """A frozen front end: audio slices in, features of all its layers out.

    Attributes:
        name: what results call it.
        digest: changes whenever its features could.
        front_end: what turns audio into its input, in words or as a digest.
        only_tasks: the tasks it makes sense for; None for all.
        frame_rate_hz: frames per second; None for an encoder that has only clip-level features.
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
        """Returns the time mean of every layer, and the frames of `frame_layers` (empty: none)."""
        ...


def supports(encoder: FrozenEncoder, task: Task) -> bool:
    """Tells whether a task can be measured with an encoder."""
    if encoder.only_tasks is not None and task.name not in encoder.only_tasks:
        return False
    return task.frames is None or encoder.frame_rate_hz is not None


def resolve_encoders(specs: Sequence[str], how: HowToEncode, *, random_seed: int = 0) -> tuple[FrozenEncoder, ...]:
    """Loads the encoders named on the command line, in that order.

    Args:
        specs: run directories, release folders, or random_init, log_mel, chroma. `random_init` copies the shape and
            the input normalisation of the first run or release in the list.
        random_seed: of the untrained network.

    Raises:
        UserError: a folder without weights, `random_init` without an encoder to copy, or two encoders of one name.
    """
    trained = {s: load_frozen(Path(s), how) for s in specs if s not in BASELINES}
    encoders: list[FrozenEncoder] = []
    for spec in specs:
        if spec == "random_init":
            encoders.append(_random_init(list(trained.values()), how, random_seed))
        elif spec == "log_mel":
            encoders.append(LogMel(FrontendConfig()))
        elif spec == "chroma":
            encoders.append(Chroma())
        else:
            encoders.append(trained[spec])
    names = [e.name for e in encoders]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two encoders are called {name!r}, so their results could not be told apart; rename a folder"
            )
    return tuple(encoders)


def _random_init(trained: Sequence[FrozenPupuJEPA], how: HowToEncode, seed: int) -> FrozenPupuJEPA:
    if not trained:
        raise UserError(
            "random_init is an untrained network of the same shape as a trained one, and none is given; "
            "name a run directory too: --encoders runs/demo random_init"
        )
    return random_twin(trained[0], how, seed=seed)
