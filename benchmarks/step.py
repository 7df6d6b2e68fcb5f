"""Our training step against a straightforward one in the style of the release: seconds per step.

  python -m benchmarks step                                on a GPU if there is one, else on one CPU thread
  python -m benchmarks step --models large --batch 32      with the share of the GPU's bf16 peak

A step is masks, forward and backward in bf16; the optimiser is the same on both sides and left out. The peer follows
the same method on the same parameters: masks sample by sample on tensors (benchmarks/masks.py), tokens gathered by
boolean masks, angles computed again by every stack, rotation on complex numbers, torch's attention, the loss fetched as
a number after every step. With equal masks both sides give the same loss; the difference is printed.
"""

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import arguments_of
from benchmarks.alternate import HEADER, Comparison, alternate, machine
from benchmarks.masks import loop_blocks, loop_random, loop_stripes
from distributed.run.speed import peak_flops_of
from pupujepa.cost.cost import model_size, training_cost
from pupujepa.model.model import ModelConfig, PupuJEPA
from pupujepa.randomness import generator
from pupujepa.training.masks import MaskConfig, draw_mask
from pupujepa.training.objective import ObjectiveConfig, TrainingStep

PREDICTION = (
    "1.15x on the CPU, since both sides use torch's attention, and ours computes the predictor's last block for the "
    "targets only and rotates at less cost. On a GPU 1.1x without compilation: both sides use the same kernels, and "
    "ours saves the masks' host syncs and the complex rotation."
)
OBJECTIVE = ObjectiveConfig()
MASKS = MaskConfig()


def main() -> None:
    """Prints the comparison as Markdown."""
    args = parse(arguments_of("step"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{where(device)}\n\nprediction: {PREDICTION}\n")
    rows, facts = [], []
    for name in args.models:
        config = model_size(name)
        batch = args.batch or (32 if device.type == "cuda" else 1)
        model = PupuJEPA(config).to(device)
        mel_BTF = torch.randn(batch, config.crop_frames, config.mel_bands, device=device)
        ours = ours_of(TrainingStep(model, OBJECTIVE, torch.bfloat16), mel_BTF, compiled=args.compile)
        compared = alternate(ours, partial(straightforward_step, model, mel_BTF), runs=args.runs)
        rows.append(compared.row(f"{name}, {batch} crops, {device.type}"))
        facts += [f"- {name}: losses on equal masks differ by {loss_gap(model, mel_BTF):.1e}"]
        facts += [f"- {name}: {throughput(config, compared, batch, device)}"]
    print(f"{HEADER}\n" + "\n".join([*rows, "", *facts]))


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads what follows `step` on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__)
    parser.add_argument("--models", nargs="+", default=["tiny", "base"], help="model presets (default: tiny base)")
    parser.add_argument("--batch", type=int, help="crops of a step (default: 32 on a GPU, 1 on a CPU)")
    parser.add_argument("--runs", type=int, default=5, help="counted steps of each side (default: 5)")
    parser.add_argument("--compile", action="store_true", help="compile our side")
    return parser.parse_args(argv)


def ours_of(step: TrainingStep, mel_BTF: Tensor, *, compiled: bool) -> Callable[[], None]:
    """Returns our step, with masks drawn from keys as in the stream."""
    forward = torch.compile(step, fullgraph=True) if compiled else step
    calls = iter(range(1 << 30))

    def run() -> None:
        loss, _ = forward(mel_BTF, *our_masks(step.config, len(mel_BTF), next(calls), mel_BTF.device))
        loss.backward()
        step.zero_grad()
        wait(mel_BTF.device)

    return run


def our_masks(config: ModelConfig, batch: int, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns context and target of a batch."""
    rngs = [generator(0, number, f"uid-{row}", 0, "mask") for row in range(batch)]
    masks = [draw_mask(rng, MASKS, steps=config.grid_steps, bands=config.grid_bands, progress=1.0) for rng in rngs]
    context, target = (torch.stack([torch.from_numpy(m[i]) for m in masks]) for i in (0, 1))
    return context.to(device, non_blocking=True), target.to(device, non_blocking=True)


def straightforward_step(model: PupuJEPA, mel_BTF: Tensor) -> None:
    """Runs the peer's step, with one masking strategy for the batch, as released."""
    draw = (loop_random, loop_random, loop_blocks, loop_stripes)[int(torch.randint(4, (1,)).item())]
    hidden_BN = torch.zeros(len(mel_BTF), model.config.num_patches, dtype=torch.bool)
    hidden_BN.scatter_(1, draw(len(mel_BTF))[1], value=True)
    loss = straightforward_loss(model, mel_BTF, hidden_BN.to(mel_BTF.device))
    loss.backward()
    loss.item()
    model.zero_grad()


def straightforward_loss(model: PupuJEPA, mel_BTF: Tensor, hidden_BN: Tensor) -> Tensor:
    """Returns the loss of a batch; hidden patches are True, the same number in every sample."""
    config = model.config
    with torch.autocast(mel_BTF.device.type, dtype=torch.bfloat16):
        tokens_BND = model.patch_embed(mel_BTF)
        angles_ND = complex_angles(config, config.width // config.heads, mel_BTF.device)
        context_BKD = torch.stack([x[~h] for x, h in zip(tokens_BND, hidden_BN, strict=True)])
        angles_BKD = torch.stack([angles_ND[~h] for h in hidden_BN])
        context_BKD = blocks(model.student.blocks, context_BKD, angles_BKD, config.heads)
        predictor = model.predictor
        context_BKD = predictor.proj_in(model.student.norm(context_BKD))
        targets = int(hidden_BN[0].sum())
        sequence_BND = torch.cat([context_BKD, predictor.mask_token.expand(len(mel_BTF), targets, -1)], dim=1)
        angles_ND = complex_angles(config, config.predictor_width // config.predictor_heads, mel_BTF.device)
        angles_BND = torch.stack([torch.cat([angles_ND[~h], angles_ND[h]]) for h in hidden_BN])
        sequence_BND = blocks(predictor.blocks, sequence_BND, angles_BND, config.predictor_heads)
        prediction_BMD = predictor.proj_out(predictor.norm(sequence_BND))[:, -targets:]
        with torch.no_grad():
            angles_ND = complex_angles(config, config.width // config.heads, mel_BTF.device)
            target_BMD = torch.stack([x[h] for x, h in zip(tokens_BND, hidden_BN, strict=True)])
            angles_BMD = torch.stack([angles_ND[h] for h in hidden_BN])
            target_BMD = model.teacher.norm(blocks(model.teacher.blocks, target_BMD, angles_BMD, config.heads))
    target_BMD = functional.layer_norm(target_BMD.float(), target_BMD.shape[-1:])
    return functional.smooth_l1_loss(prediction_BMD.float(), target_BMD)


def blocks(stack: Iterable[Any], x_BND: Tensor, angles_BND: Tensor, heads: int) -> Tensor:
    """Runs pre-norm blocks; they read the same parameters as ours."""
    for block in stack:
        qkv = block.attn.qkv(block.norm1(x_BND)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (turned(x, angles_BND.unsqueeze(1)) for x in (qkv[0], qkv[1]))
        mixed = functional.scaled_dot_product_attention(query, key, qkv[2])
        x_BND = x_BND + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        gate, value = block.mlp.fc1(block.norm2(x_BND)).chunk(2, dim=-1)
        x_BND = x_BND + block.mlp.fc2(functional.silu(gate) * value)
    return x_BND


def complex_angles(config: ModelConfig, head_dim: int, device: torch.device) -> Tensor:
    """Returns exp(i angle) [N, head_dim / 2] of every patch of the released grid."""
    frequencies = torch.pi * torch.logspace(0, torch.log2(torch.tensor(112.0)).item(), head_dim // 4, base=2.0)
    time = torch.linspace(-1, 1, config.grid_steps)[:, None] * frequencies
    band = torch.linspace(-1, 1, config.grid_bands)[:, None] * frequencies
    steps, bands, quarter = config.grid_steps, config.grid_bands, head_dim // 4
    both = [time[:, None].expand(steps, bands, quarter), band[None].expand(steps, bands, quarter)]
    angles = torch.cat(both, dim=-1).reshape(steps * bands, -1)
    return torch.polar(torch.ones_like(angles), angles).to(device)


def turned(x_BHND: Tensor, angles: Tensor) -> Tensor:
    """Rotates (even, odd) pairs as complex numbers."""
    pairs = torch.view_as_complex(x_BHND.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * angles).flatten(-2).to(x_BHND.dtype)


@torch.no_grad()
def loss_gap(model: PupuJEPA, mel_BTF: Tensor) -> float:
    """Returns the relative difference of both losses on equal masks."""
    context_BK, target_BM = our_masks(model.config, len(mel_BTF), 0, mel_BTF.device)
    ours, _ = TrainingStep(model, OBJECTIVE, torch.bfloat16)(mel_BTF, context_BK, target_BM)
    hidden_BN = torch.zeros(len(mel_BTF), model.config.num_patches, dtype=torch.bool, device=mel_BTF.device)
    peer = straightforward_loss(model, mel_BTF, hidden_BN.scatter_(1, target_BM, value=True))
    return abs(float(ours - peer) / float(peer))


def throughput(config: ModelConfig, compared: Comparison, batch: int, device: torch.device) -> str:
    """Returns crops and operations per second of our side, and their share of a known GPU's peak."""
    seconds = sorted(compared.ours_s)[len(compared.ours_s) // 2]
    tflops = training_cost(config, MASKS, OBJECTIVE).total * batch / seconds / 1e12
    text = f"{batch / seconds:.2f} crops/s, {tflops:.2f} TFLOP/s"
    if device.type == "cuda":
        peak_flops = peak_flops_of(torch.cuda.get_device_name(), precision="bf16")
        text += f", {tflops * 1e12 / peak_flops:.0%} of the bf16 peak" if peak_flops else ""
    return text


def where(device: torch.device) -> str:
    """Returns the name of the device and the machine."""
    return f"{torch.cuda.get_device_name()}; {machine()}" if device.type == "cuda" else f"{machine()}, one thread"


def wait(device: torch.device) -> None:
    """Waits for the kernels of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
