"""Differences from the release, measured: `SECTIONS` has a function for each table of the page.

Shapes: B batch, T frames, F mel bands, N patches, K context patches, M target patches, D width, S samples.
"""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pupujepa.audio.log_mel import log_mel, normalise
from pupujepa.cost.cost import count_parameters, model_size
from pupujepa.model.model import PupuJEPA, encoder_rotation, predictor_rotation, visible_to
from pupujepa.model.rope import CLIP_RELATIVE, LENGTH_EXACT, grid_rotation, time_positions
from pupujepa.randomness import generator
from pupujepa.training.ema import update_ema
from pupujepa.training.masks import BLOCK, STRATEGIES, TIME_FREQUENCY, Mask, MaskConfig, draw_mask
from pupujepa.weights.release_args import read_args

SEED = 0
CLIPS_S = (1.0, 4.0, 10.24, 15.36)
MASKS = 1000
SIZES = ("tiny", "small", "base", "large", "huge", "giant")
ARGS_EXAMPLE = '{"preprocess": {"sample_rate": 24000, "n_mels": 128,}, "model": {"embed_dim": 192, "qk_norm": true,},}'


def rope(model: PupuJEPA) -> str:
    """Measures how much positions relative to the clip stretch time and change features."""
    rows = []
    for seconds in CLIPS_S:
        mel_BTF = music_like(model, seconds)
        steps = mel_BTF.shape[1] // model.config.patch_frames
        released, exact = (
            time_positions(steps, reference_steps=model.config.grid_steps, mode=mode, device=torch.device("cpu"))
            for mode in (CLIP_RELATIVE, LENGTH_EXACT)
        )
        stretch = float((released[1] - released[0]) / (exact[1] - exact[0]))
        ours, theirs = (features(rewired(model, rope=mode), mel_BTF) for mode in (LENGTH_EXACT, CLIP_RELATIVE))
        rows.append(
            (f"{seconds:g} s", f"{stretch:.2f}", f"{cosine(ours, theirs):.3f}", f"{distance(ours, theirs):.1%}")
        )
    header = ("clip", "time is stretched by", "cosine of released and exact features", "relative distance")
    return table(header, rows)


def qk_norm(model: PupuJEPA) -> str:
    """Counts tensors that args.json promises in vain, and measures features with norms."""
    missing = {}
    for size in ("tiny", "large"):
        config = model_size(size)
        with torch.device("meta"):
            believed = PupuJEPA(replace(config, qk_norm=True)).state_dict()
            missing[size] = len(believed.keys() - PupuJEPA(config).state_dict().keys())
    mel_BTF = music_like(model, 4.0)
    normed = rewired(model, qk_norm=True)
    return table(
        ("what", "number"),
        [
            ("tensors that args.json promises and the file of Tiny lacks", f"{missing['tiny']}"),
            ("the same for Large", f"{missing['large']}"),
            (
                "cosine of the features with and without normed queries and keys",
                f"{cosine(features(model, mel_BTF), features(normed, mel_BTF)):.3f}",
            ),
        ],
    )


def args_json(model: PupuJEPA) -> str:
    """Shows that the released args.json is not JSON."""
    try:
        json.loads(ARGS_EXAMPLE)
        plain = "reads it"
    except json.JSONDecodeError:
        plain = "refuses it"  # where, depends on the Python: 3.13 names the comma, 3.11 what follows it
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "args.json"
        path.write_text(ARGS_EXAMPLE)
        ours = "reads it" if read_args(path)["model"]["qk_norm"] else "misreads it"
    return table(("reader", "a file with trailing commas"), [("`json.loads`", plain), ("`read_args`", ours)])


def silence(model: PupuJEPA) -> str:
    """Measures the features of a second that is padded to a crop with silence and with zeros."""
    mel_BTF = music_like(model, 1.0)
    alone_ND = features(model, mel_BTF)
    quiet_BTF = spectrogram(model, np.zeros(model.frontend.sample_rate_hz, np.float32))
    rows = []
    for name, value in (("silence", float(quiet_BTF.mean())), ("zeros, as a padded batch is", 0.0)):
        rest_BTF = mel_BTF.new_full((1, model.config.crop_frames - mel_BTF.shape[1], mel_BTF.shape[2]), value)
        filled_ND = features(model, torch.cat([mel_BTF, rest_BTF], dim=1))[: len(alone_ND)]
        near, far = cosine(alone_ND, filled_ND), distance(alone_ND, filled_ND)
        rows.append((name, f"{value:.3f}", f"{near:.3f}", f"{far:.1%}"))
    header = ("1 s filled up to a crop with", "value", "cosine to that second encoded alone", "relative distance")
    return table(header, rows)


def predictor_heads(model: PupuJEPA) -> str:
    """Measures predictions with a wrong number of heads, which loads without an error."""
    mel_BTF = music_like(model, model.config.crop_frames / model.frontend.frames_per_s)
    rng = generator(SEED, "differences", "heads")
    mask = draw_mask(rng, MaskConfig(), steps=model.config.grid_steps, bands=model.config.grid_bands, progress=0.0)
    heads = model.config.predictor_heads
    right = prediction(model, mel_BTF, mask.context, mask.target)
    rows = []
    for other in (heads // 2, 2 * heads):
        wrong = prediction(rewired(model, predictor_heads=other), mel_BTF, mask.context, mask.target)
        rows.append((f"{other} instead of {heads}", f"{cosine(right, wrong):.3f}", f"{distance(right, wrong):.1%}"))
    return table(("heads of the predictor", "cosine of the predictions", "relative distance"), rows)


def mask_counts(model: PupuJEPA) -> str:
    """Counts visible patches by strategy."""
    patches, ratio = 2048, 0.8
    released = f"{math.floor(patches * (1 - ratio))} (random), {patches - int(patches * ratio)} (others)"
    ours = {len(_mask(MaskConfig(), i, strategy).context) for i in range(50) for strategy in range(3)}
    return table(
        ("masks", "visible patches of 2048", "shapes in a run"),
        [
            ("released", released, "2"),
            ("ours", ", ".join(map(str, sorted(ours))), f"{len(ours)}"),
        ],
    )


def mask_coverage(model: PupuJEPA) -> str:
    """Measures how often edges of the grid, and whole bands, are hidden."""
    rows = []
    for balanced in (False, True):
        for strategy in (BLOCK, TIME_FREQUENCY):
            hidden = np.zeros((256, 8))
            whole_band = 0
            for i in range(MASKS):
                one = np.zeros(2048, bool)
                one[_mask(MaskConfig(balanced=balanced), i, strategy).target] = True
                hidden += one.reshape(256, 8)
                whole_band += one.reshape(256, 8).all(0).any()
            share = hidden / MASKS
            rows.append(
                (
                    f"{STRATEGIES[strategy].replace('_', '-')}, {'balanced' if balanced else 'released'}",
                    f"{share[[0, -1]].mean():.0%}",
                    f"{share[120:136].mean():.0%}",
                    f"{whole_band / MASKS:.0%}",
                )
            )
    header = ("masks", "first and last step hidden", "middle steps hidden", "masks that hide a whole band")
    return table(header, rows)


def strategy_draws(model: PupuJEPA) -> str:
    """Computes the share of steps without any block mask, after the warm-up."""
    share, batch = 0.25, 1024
    return table(
        ("strategy is drawn", f"steps without a single block mask (share {share:g}, batch {batch})"),
        [("per batch, as released", f"{1 - share:.0%}"), ("per sample", f"{(1 - share) ** batch:.0e}")],
    )


def sizes(model: PupuJEPA) -> str:
    """Counts parameters of the encoders beside those of a plain ViT of equal width and depth."""
    rows = []
    for size in SIZES:
        config = model_size(size)
        plain = 12 * config.width**2 * config.depth
        ours = count_parameters(config).encoder
        rows.append((size.capitalize(), f"{ours:,}", f"{plain / 1e6:,.0f} M", f"{ours / plain - 1:+.0%}"))
    return table(("size", "parameters of the encoder", "12 D² a block, a plain ViT", "more"), rows)


def precision(model: PupuJEPA) -> str:
    """Measures the effect of bf16 on the teacher's average and on rotary angles."""
    momentum, updates = 0.99999, 1000
    draw = torch.Generator().manual_seed(SEED)
    start = torch.randn(100_000, generator=draw) * 0.02
    student = start + torch.randn(100_000, generator=draw) * 0.002
    exact, narrow = start.clone(), start.bfloat16()
    for _ in range(updates):
        update_ema([exact], [student], momentum)
        narrow = (momentum * narrow.float() + (1 - momentum) * student).bfloat16()
    angle = math.pi * 112 * time_positions(256, reference_steps=256, mode=LENGTH_EXACT, device=torch.device("cpu"))
    rounded = angle.bfloat16().double()
    ours = grid_rotation(256, 1, head_dim=64, reference_steps=256, mode=LENGTH_EXACT, device=torch.device("cpu"))
    fastest = ours.cos.shape[1] // 2 - 1  # the last pair that turns with time
    turned = torch.atan2(ours.sin[:, fastest].double(), ours.cos[:, fastest].double())
    own = torch.remainder(turned - angle + math.pi, 2 * math.pi) - math.pi
    return table(
        ("what", "in bf16", "ours, float32"),
        [
            (
                f"weights of the teacher that moved after {updates} updates at momentum {momentum}",
                f"{float((narrow != start.bfloat16()).float().mean()):.1%}",
                f"{float((exact != start).float().mean()):.1%}",
            ),
            (
                "largest error of a rotary angle, radians",
                f"{float((rounded - angle).abs().max()):.2f}",
                f"{float(own.abs().max()):.2f}",
            ),
        ],
    )


SECTIONS: dict[str, Callable[[PupuJEPA], str]] = {
    "rope": rope,
    "qk_norm": qk_norm,
    "args_json": args_json,
    "silence": silence,
    "predictor_heads": predictor_heads,
    "mask_counts": mask_counts,
    "mask_coverage": mask_coverage,
    "strategy_draws": strategy_draws,
    "sizes": sizes,
    "precision": precision,
}


def music_like(model: PupuJEPA, seconds: float) -> Tensor:
    """Returns a normalised spectrogram [1, T, F] of decaying harmonic tones over quiet noise."""
    rate = model.frontend.sample_rate_hz
    rng = generator(SEED, "differences", "audio")
    time_s = np.arange(round(seconds * rate)) / rate
    audio = 0.003 * rng.standard_normal(len(time_s))
    for onset in np.arange(0, seconds, 0.25):
        hz = 110 * 2 ** (rng.integers(0, 36) / 12)
        since = np.maximum(time_s - onset, 0)
        envelope = np.exp(-4 * since) * (time_s >= onset)
        audio += sum(0.1 / k * np.sin(2 * np.pi * k * hz * since) for k in range(1, 9)) * envelope
    return spectrogram(model, audio.astype(np.float32))


def spectrogram(model: PupuJEPA, audio_S: NDArray[np.float32]) -> Tensor:
    """Returns the normalised spectrogram [1, T, F] of audio, whole patches of it."""
    mel_BTF = log_mel(torch.from_numpy(audio_S)[None], model.frontend)
    mel_BTF = mel_BTF[:, : mel_BTF.shape[1] // model.config.patch_frames * model.config.patch_frames]
    return normalise(mel_BTF, model.config.mel_mean, model.config.mel_std)


def rewired(model: PupuJEPA, **changes: object) -> PupuJEPA:
    """Returns the same weights in another architecture; norms that the weights lack are neutral."""
    with torch.device("meta"):
        other = PupuJEPA(replace(model.config, **changes), frontend=model.frontend)
    tensors = dict(model.state_dict())
    for name, wanted in other.state_dict().items():
        tensors.setdefault(name, torch.ones(wanted.shape) if name.endswith("weight") else torch.zeros(wanted.shape))
    other.load_state_dict(tensors, assign=True)
    return other.eval()


@torch.no_grad()
def features(model: PupuJEPA, mel_BTF: Tensor) -> Tensor:
    """Returns the teacher's last layer [N, D]."""
    return model.encode(mel_BTF, layers=[-1])[0][0]


@torch.no_grad()
def prediction(model: PupuJEPA, mel_BTF: Tensor, context: np.ndarray, target: np.ndarray) -> Tensor:
    """Returns the predictor's output at the targets [M, D]."""
    context_BK, target_BM = (torch.from_numpy(index)[None] for index in (context, target))
    steps = mel_BTF.shape[1] // model.config.patch_frames
    rotation = encoder_rotation(model.config, steps, mel_BTF.device)
    context_BKD = model.student(*visible_to(model.student, model.tokens(mel_BTF), context_BK, rotation))
    sequence_BN = torch.cat([context_BK, target_BM], 1)
    return model.predictor(context_BKD, sequence_BN, predictor_rotation(model.config, steps, sequence_BN))[0]


def cosine(one_ND: Tensor, other_ND: Tensor) -> float:
    """Returns the mean cosine of corresponding vectors."""
    return float(functional.cosine_similarity(one_ND, other_ND, dim=-1).mean())


def distance(one_ND: Tensor, other_ND: Tensor) -> float:
    """Returns the distance of two sets of vectors, relative to the length of the first."""
    return float((one_ND - other_ND).norm() / one_ND.norm())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def _mask(config: MaskConfig, number: int, strategy: int) -> Mask:
    rng = generator(SEED, "differences", "masks", number)
    return draw_mask(rng, config, steps=256, bands=8, progress=1.0, strategy=strategy)
