"""The page's words for the targets of a run: the teacher's features, or patches for kind mae."""

from dataclasses import dataclass

from distributed.report.inputs import RunInputs
from pupujepa.model.architecture import MAE


@dataclass(frozen=True)
class Terms:
    """Phrases of the page that depend on the objective; `goal` alone is HTML.

    verb, goal: the verb for the task, and the target of a hidden patch.
    task: of student and predictor, a sentence that ends on the veiled patches.
    loss: the quantity that the loss measures, and its expected course.
    share: the explained variance.
    hidden, mean, part: sentence on the explained variance; the guess to beat; the meaning of the glow.
    cheat: why the loss alone proves nothing.
    rise, lag: the meaning of a rising loss, and of a teacher that hardly moved.
    """

    verb: str
    goal: str
    task: str
    loss: str
    share: str
    hidden: str
    mean: str
    part: str
    cheat: str
    rise: str
    lag: str


FEATURES = Terms(
    verb="Predict",
    goal="the features that a slow copy, the <em>teacher</em>, gives to the hidden patches: the brighter, the better "
    "it was predicted",
    task="The student sees only the clear patches and must predict the features of the veiled ones",
    loss="Distance between predicted and true features of hidden patches. It should fall, but may rise when the "
    "teacher grows richer",
    share="Share of the hidden features' variance that the prediction explains",
    hidden="The prediction explains {} of the variance of the hidden patches' features",
    mean="mean feature",
    part="the more of its feature was predicted right",
    cheat="A model like this can cheat: if every patch had the same feature, the loss would be zero and nothing "
    "learned.",
    rise="Alone that is normal, since the target moves; with falling probes it would be an alarm.",
    lag="so far the targets are those of an untrained network",
)
PATCHES = Terms(
    verb="Reconstruct",
    goal="the spectrogram of the hidden patches: the brighter, the better it was reconstructed",
    task="The student sees only the clear patches, and the predictor must reconstruct the veiled ones",
    loss="Distance between hidden patches and their reconstruction, of standardised patches unless configured "
    "otherwise. It should fall",
    share="Share of the hidden patches' variance that the reconstruction explains",
    hidden="The reconstruction explains {} of the variance of the hidden patches",
    mean="mean patch",
    part="the more of it was reconstructed right",
    cheat="A reconstruction cannot be cheated by features that are all the same, but it can be good while the "
    "features are poor: they may use few directions, or encode positions and not music.",
    rise="The target is fixed here, so the model has become worse: look at the learning rate and the gradient norm.",
    lag="so far the teacher, which the probes read, is nearly an untrained network",
)


def terms_of(run: RunInputs) -> Terms:
    """Returns the words for a run; those of a joint-embedding model without a configuration."""
    return PATCHES if (run.config.get("objective") or {}).get("kind") == MAE else FEATURES
