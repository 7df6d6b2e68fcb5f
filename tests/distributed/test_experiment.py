"""Experiments: presets, precedence, cross-field checks, and what makes one run another."""

from dataclasses import replace

import pytest
import yaml

from data.order.layout import OrderError
from data.shards.manifest import Manifest
from data.stream.corpora import Corpora, StreamCorpus
from distributed.experiment import (
    PRESETS,
    SIZES,
    Experiment,
    check,
    experiment_differences,
    load_experiment,
    preset_names,
    with_corpora,
)
from pupujepa.config import ConfigError, from_yaml, to_yaml
from pupujepa.errors import UserError
from tests.pupujepa.twins import one_dimensional

URL = "stream.url=shards/train"


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_makes_a_valid_experiment(name):
    """Each recipe that we ship composes, fits one rank, and survives a round trip through YAML."""
    experiment = load_experiment([name], overrides=[URL])
    sizes = check(experiment, world_size=1)
    assert sizes.global_batch == experiment.stream.global_batch
    assert from_yaml(Experiment, to_yaml(experiment)) == experiment


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_says_how_to_run_it(name):
    """The header of a preset holds the command."""
    text = (PRESETS / f"{name}.yaml").read_text()
    assert "distributed train --preset" in text.split("\n\n")[0]


def test_the_size_brings_its_learning_rate():
    """`model=large` takes the architecture and the peak learning rate of that size; the recipe's own rate wins."""
    paper = load_experiment(["paper"], overrides=["model=large"])
    assert (paper.model.width, paper.model.depth, paper.schedule.peak_lr) == (1024, 24, 4e-4)
    assert load_experiment(["demo"], overrides=["model=large"]).schedule.peak_lr == 2e-3
    for path in SIZES.glob("*.yaml"):
        rate = yaml.safe_load(path.read_text())["schedule"]["peak_lr"]
        assert load_experiment(["robust"], overrides=[f"model={path.stem}"]).schedule.peak_lr == rate


def test_later_words_win(tmp_path):
    """defaults < model < first preset < second preset < file < overrides."""
    file = tmp_path / "mine.yaml"
    file.write_text("train: {steps: 7}\nema: {end: 0.5}\n")
    layered = load_experiment(["paper", "short"], file=file, overrides=["ema.end=0.6", "model=tiny"])
    assert layered.train.steps == 7
    assert layered.ema.end == 0.6
    assert layered.optimizer.clip_norm == 1.0, "short inherits from robust"
    assert layered.model.width == 192


def test_a_recipe_of_ones_own(tmp_path):
    """A YAML file is a preset too, may name a model and change it in part."""
    file = tmp_path / "recipe.yaml"
    file.write_text("inherit: demo\nmodel: {crop_frames: 192}\n")
    experiment = load_experiment([str(file)])
    assert (experiment.model.crop_frames, experiment.model.width) == (192, 128)
    assert experiment.stream.crop_frames == 192, "the crop length is written once"


def test_the_structure_and_the_objective_bring_what_follows_from_them():
    """One word each: frames puts all bands into a token, mae makes the predictor's last layer, on any recipe."""
    for recipe in ("demo", "paper", "robust"):
        plain = load_experiment([recipe])
        line = load_experiment([recipe, "control_frames"])
        assert line == load_experiment([recipe], overrides=["model.structure=frames"])
        masks = replace(plain.masks, structure="frames")
        assert line == replace(plain, model=one_dimensional(plain.model), masks=masks)
        mae = load_experiment([recipe, "mae"])
        assert (mae.objective.kind, mae.model.predictor_objective) == ("mae", "mae")
        changed = {difference.partition(":")[0] for difference in experiment_differences(plain, mae)}
        assert changed - {"objective.target_layers"} == {
            "objective.kind",
            "objective.loss",
            "model.predictor_objective",
        }
        full_grid = load_experiment([recipe, "full_grid"])
        assert experiment_differences(plain, full_grid) == ["objective.target: masked -> full_grid"]


def test_a_config_from_before_the_variants_means_what_it_meant():
    """A run's config.yaml without the newer keys loads as the same experiment, also as a file on the command line."""
    experiment = load_experiment(["demo"], overrides=[URL])
    tree = yaml.safe_load(to_yaml(experiment))
    newer = {
        "model": ("structure", "position_code", "mlp", "qk_norm", "predictor_objective"),
        "objective": ("kind", "target", "variance_weight", "variance_of", "variance_floor"),
    }
    for section, keys in newer.items():
        for key in keys:
            del tree[section][key]
    assert from_yaml(Experiment, yaml.safe_dump(tree)) == experiment


def test_a_preset_cannot_inherit_from_itself(tmp_path):
    """A circle is an error, not an endless loop."""
    file = tmp_path / "a.yaml"
    file.write_text(f"inherit: {file}\n")
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_experiment([str(file)])


@pytest.mark.parametrize(
    ("presets", "overrides", "match"),
    [
        (["dmo"], [], "no preset 'dmo'; choose one of a_jepa, .*demo"),
        ([], ["model=huuge"], "no model 'huuge'; choose one of base"),
        ([], ["train.step=10"], "unknown key train.step; did you mean train.steps?"),
        ([], ["train.steps"], "has no '='"),
        ([], ["train.steps=many"], "train.steps"),
        ([], ["train.steps=0"], "train.steps=0 must be at least 1"),
        ([], ["engine.zero_stage=7"], "zero_stage=7"),
        ([], ["model.structure=frames", "model.patch_bands=16"], "patch_bands=16 contradicts it; set patch_bands=0"),
        (["demo"], ["objective.kind=mae"], "asks no teacher, so target_layers=4"),
    ],
)
def test_wrong_words_are_refused_in_a_sentence(presets, overrides, match):
    """The message names the word, and what was probably meant."""
    with pytest.raises(UserError, match=match):
        load_experiment(presets, overrides=overrides)


def test_a_whole_model_and_a_name_contradict(tmp_path):
    """--config with a model and model=NAME: neither silently wins."""
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(load_experiment(["demo"])))
    assert load_experiment(file=file) == load_experiment(["demo"])
    with pytest.raises(ConfigError, match="contradict each other"):
        load_experiment(file=file, overrides=["model=tiny"])


@pytest.mark.parametrize(
    ("overrides", "world_size", "match"),
    [
        ([URL, "masks.structure=flat"], 1, "masks.structure=flat differs from model.structure=2d"),
        ([], 1, "stream.url is not set"),
        (["stream.url=s3://key:secret@bucket/x"], 1, "carries credentials"),
        ([URL, "stream.crop_frames=256"], 1, "set only model.crop_frames"),
        ([URL, "objective.target_layers=9"], 1, "exceeds the teacher's 4 blocks"),
        ([URL, "model.predictor_objective=mae"], 1, "set objective.kind alone, the model follows it"),
        ([URL, "stream.global_batch=15"], 2, "cannot be shared by 2 ranks"),
        ([URL, "engine.micro_batch=3"], 1, "does not divide the 8 crops"),
    ],
)
def test_contradictions_are_found_before_anything_starts(overrides, world_size, match):
    """Fields that do not fit each other or the number of ranks are refused with the remedy."""
    with pytest.raises(UserError, match=match):
        check(load_experiment(["demo"], overrides=overrides), world_size=world_size)


def test_lanes_must_be_shared_by_the_ranks():
    """A world size that does not divide the lanes is refused before the start."""
    experiment = load_experiment(["demo"], overrides=[URL, "stream.global_batch=24"])
    with pytest.raises(OrderError, match="lanes 4 is not a multiple of the world size 3"):
        check(experiment, world_size=3)


def test_what_makes_another_run():
    """Speed, logging and the number of ranks may change between sessions; what decides the losses may not."""
    begun = [URL, "engine.precision=bf16"]
    before = load_experiment(["demo"], overrides=begun)
    free = ["engine.zero_stage=3", "engine.micro_batch=2", "stream.workers=7", "checkpoint.every=5", URL + "-copy"]
    assert (
        experiment_differences(before, load_experiment(["demo"], overrides=[*begun, *free, "telemetry.log_every=1"]))
        == []
    )
    for override, difference in (
        ("train.steps=9", f"train.steps: {before.train.steps} -> 9"),
        ("train.seed=1", "train.seed: 0 -> 1"),
        ("stream.seed=1", "stream.seed: 0 -> 1"),
        ("stream.lanes=2", "stream.lanes: 4 -> 2"),
        ("stream.global_batch=32", "stream.global_batch: 8 -> 32"),
        ("engine.precision=fp32", "engine.precision: bf16 -> fp32"),
        ("masks.ratio=0.7", "masks.ratio: 0.8 -> 0.7"),
    ):
        assert experiment_differences(before, load_experiment(["demo"], overrides=[*begun, override])) == [difference]


def test_the_corpus_gives_its_statistics():
    """The weights belong to the mean and deviation of the corpus they were trained on."""
    manifest = Manifest("train", {}, "", "uint8", -11.5, 5.0, -3.25, 1.5, 1.0, 1, ())
    corpora = Corpora((StreamCorpus("", "shards/train", manifest),), (1,))
    experiment = with_corpora(load_experiment(["demo"]), corpora)
    assert (experiment.model.mel_mean, experiment.model.mel_std) == (-3.25, 1.5)
    assert replace(experiment, model=load_experiment(["demo"]).model) == load_experiment(["demo"])
