"""The words for what a run fills its gaps with: features of the teacher, or, in a run of kind mae, the patches."""

from dataclasses import dataclass

from distributed.report.inputs import RunInputs
from pupujepa.model.architecture import MAE


@dataclass(frozen=True)
class Terms:
    """Phrases of the page that depend on the objective; `goal` alone is HTML.

    verb, goal: what is done with a hidden patch, and what with it exactly.
    task: of the student and predictor, in a sentence that ends on the veiled patches.
    loss: what the loss measures and how it should go.
    share: whose variance is explained, by what.
    hidden, mean, part: what is predicted of hidden patches; the guess to beat; what glows.
    cheat: why the loss alone proves nothing.
    rise, lag: what a rising loss, and a teacher that hardly moved, mean.
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
    "features are poor: they may use few directions, or tell places and not music.",
    rise="The target stands still here, so the model has become worse: look at the learning rate and the gradient "
    "norm.",
    lag="so far the teacher, which the probes read, is nearly an untrained network",
)


def terms_of(run: RunInputs) -> Terms:
    """Returns the words for a run; without a configuration those of a joint-embedding model."""
    return PATCHES if (run.config.get("objective") or {}).get("kind") == MAE else FEATURES
