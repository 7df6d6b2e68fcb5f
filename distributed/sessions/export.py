"""Write a checkpoint of a run in the released weight format: model.safetensors and args.json.

The encoder is the teacher, which inference runs; the file also holds student, patch embedding and predictor. A finished
run has written RUN/export itself; this command serves a run in progress, or another folder.

  python -m distributed export runs/demo                      newest checkpoint -> runs/demo/export
  python -m distributed export runs/large --step 200000 --out releases/large-200k

Read it back with pupujepa.weights.weights.load(DIR), or python -m pupujepa embed DIR songs/.
"""

import argparse
import logging
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from distributed.checkpoints.manifest import Checkpoint
from distributed.checkpoints.reading import checkpoint_place, committed
from distributed.checkpoints.saved_engine import WEIGHTS, SavedEngine, read_state_file
from distributed.checkpoints.state import CONFIG_NAME, ENGINE_FOLDER, TEACHER_NAME, read_frontend
from distributed.experiment import Experiment
from distributed.run.directory import RunDirectory
from distributed.run.log import configure_logging
from distributed.sessions.listing import checkpoint_settings
from pupujepa.config import from_yaml
from pupujepa.model.model import PupuJEPA
from pupujepa.weights.weights import save_release

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command line of `export`."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="run directory")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument("--out", type=Path, help="folder to write (default: RUN/export)")


def run(args: argparse.Namespace) -> int:
    """Verifies a checkpoint and writes the release."""
    configure_logging(rank=0)
    directory = RunDirectory(args.run_dir)
    # a folder of checkpoints can be exported without its config.yaml
    url = checkpoint_settings(directory).url if directory.config.is_file() else ""
    with tempfile.TemporaryDirectory(prefix="pupujepa-") as staging:
        checkpoint = committed(checkpoint_place(directory, url, staging=Path(staging)), step=args.step)
        path = write_release(model_of(checkpoint), args.out or directory.export, checkpoint=checkpoint)
    logger.info("wrote %s from %s of %s", path, checkpoint.name, url or directory.checkpoints)
    return 0


def model_of(checkpoint: Checkpoint) -> PupuJEPA:
    """Builds the model of a checkpoint of any number of ranks and ZeRO stage."""
    experiment = from_yaml(Experiment, checkpoint.path / CONFIG_NAME)
    with torch.device("meta"):
        model = PupuJEPA(experiment.model, frontend=read_frontend(checkpoint.path))
    state = _student_state(checkpoint, model)
    state |= {f"teacher.{name}": tensor for name, tensor in load_file(checkpoint.path / TEACHER_NAME).items()}
    model.load_state_dict(state, assign=True)
    return model


def write_release(model: PupuJEPA, directory: Path, *, checkpoint: Checkpoint) -> Path:
    """Writes the model with its step, checkpoint and digest."""
    origin = {"step": checkpoint.step, "checkpoint": checkpoint.name, "checkpoint_digest": checkpoint.digest}
    return save_release(model, model.config, directory, train=origin)


def _student_state(checkpoint: Checkpoint, model: PupuJEPA) -> dict[str, Tensor]:
    folder, stage = checkpoint.path / ENGINE_FOLDER, checkpoint.facts["zero_stage"]
    if stage < 3:
        # float32 and whole on every rank
        return dict(read_state_file(folder / "mp_rank_00_model_states.pt")["module"])
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}
    saved = SavedEngine(folder, world_size=checkpoint.facts["world_size"], stage=stage, names=list(shapes))
    return {name: saved.whole(name, WEIGHTS).reshape(shape) for name, shape in shapes.items()}
