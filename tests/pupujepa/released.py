"""Folders in the released layout, with the names, shapes and text of the release.

Shapes come from the description of the method, not from the library, so that they can disagree with it.
"""

import json
import struct
from math import prod
from pathlib import Path

from safetensors.torch import save_file

from pupujepa.model.model import PupuJEPA
from tests.pupujepa.models import random_model

# width, depth, heads
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "giant": (1536, 40, 24),
}
NAMINGS = ("pupujepaV2_25hz", "pupum2dV2_25hz")

# The released args.json: trailing commas, qk_norm true, nothing of ours.
RELEASED_ARGS = """{
  "preprocess": {"sample_rate": 24000, "cut_mel_frame": 64, "hop_size": 240, "n_fft": 1024, "win_size": 1024,
                 "fmin": 0, "fmax": 12000, "n_mels": 128, "normalize": true, "flip_ft": true,},
  "model": {"image_size": [64, 128,], "patch_size": [4, 16], "embed_dim": 32, "depth": 3, "num_heads": 2,
            "mlp_ratio": 4.0, "use_swiglu": true, "qk_norm": true, "norm_layer": "layer", "frequency_first": false,
            "in_chans": 1, "drop_path_rate": 0.0, "drop_path_uniform": false, "layer_scale_init_value": null,
            "decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2, "note": "a, ] and , } in text",},
  "train": {"steps": 500000,},
}
"""


def release(directory: Path, args: str = RELEASED_ARGS, *, steps: tuple[int, ...] = (500_000,)) -> PupuJEPA:
    """Writes a folder of the small model in the released layout; the newest step holds the returned model."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "args.json").write_text(args)
    for step in steps:
        model = random_model(seed=step)
        folder = directory / "checkpoint" / f"step-{step:07d}_loss-0.177000"
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
    return model


def release_of_size(directory: Path, size: str) -> Path:
    """Writes a folder of a released size: real names and shapes, and a sparse file of zeros as weights.

    Returns:
        The path of the weights, whose length is the true one although it takes no place on the disk.
    """
    width, depth, heads = SIZES[size]
    args = RELEASED_ARGS.replace('"embed_dim": 32, "depth": 3, "num_heads": 2', "@").replace("64", "1024")
    args = args.replace("@", f'"embed_dim": {width}, "depth": {depth}, "num_heads": {heads}')
    args = args.replace(
        '"decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2',
        '"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16',
    )
    path = directory / "checkpoint" / "step-0500000_loss-0.177000" / "model.safetensors"
    path.parent.mkdir(parents=True)
    (directory / "args.json").write_text(args)
    header, end = {}, 0
    for name, shape in released_shapes(width, depth).items():
        start, end = end, end + 4 * prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def released_shapes(width: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Returns every tensor of a released file, by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 1, 4, 16),
        "patch_embed.proj.bias": (width,),
        "patch_embed.norm.weight": (width,),
        "patch_embed.norm.bias": (width,),
        "predictor.proj_in.weight": (512, width),
        "predictor.proj_in.bias": (512,),
        "predictor.mask_token": (1, 1, 512),
        "predictor.proj_out.weight": (width, 512),
        "predictor.proj_out.bias": (width,),
    }
    for stack, d, blocks in (("student", width, depth), ("teacher", width, depth), ("predictor", 512, 8)):
        shapes |= {f"{stack}.norm.weight": (d,), f"{stack}.norm.bias": (d,)}
        for number in range(blocks):
            block = f"{stack}.blocks.{number}"
            for norm in ("norm1", "norm2"):
                shapes |= {f"{block}.{norm}.weight": (d,), f"{block}.{norm}.bias": (d,)}
            matrices = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (8 * d, d), "mlp.fc2": (d, 4 * d)}
            for name, (out, into) in matrices.items():
                shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
    return shapes
