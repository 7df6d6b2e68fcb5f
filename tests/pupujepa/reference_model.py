"""An independent float64 implementation of encoder and predictor, written from the method's description.

Plain einsum over a dictionary of tensors with the released names; shares no code with the library. Sequences are
lists of (step, band) positions, angles are computed per position, and rotation is done with complex numbers.
"""

import math

import numpy as np
import torch


def layer_norm(x, weight, bias):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def patch_tokens(tensors, mel_TF):
    """Returns tokens as a dictionary from (step, band) to [D]."""
    weight, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    _, _, frames, bands = weight.shape
    tokens = {}
    for step in range(mel_TF.shape[0] // frames):
        for band in range(mel_TF.shape[1] // bands):
            patch = mel_TF[step * frames : (step + 1) * frames, band * bands : (band + 1) * bands]
            raw = torch.einsum("dij,ij->d", weight[:, 0], patch) + bias
            tokens[step, band] = layer_norm(raw, tensors["patch_embed.norm.weight"], tensors["patch_embed.norm.bias"])
    return tokens


def angles(positions, *, steps, bands, head_dim, reference_steps, mode):
    """Returns [N, head_dim / 2] angles of (step, band) positions."""
    count = head_dim // 4
    exponents = [i * (math.log2(224) - 1) / (count - 1) if count > 1 else 0.0 for i in range(count)]
    frequencies = [math.pi * 2**e for e in exponents]
    rows = []
    for step, band in positions:
        if mode == "clip_relative":
            t = -1 + 2 * step / (steps - 1) if steps > 1 else -1.0
        else:
            t = (step - (steps - 1) / 2) * 2 / (reference_steps - 1)
        f = -1 + 2 * band / (bands - 1)
        rows.append([t * w for w in frequencies] + [f * w for w in frequencies])
    return torch.tensor(rows, dtype=torch.float64)


def rotate(x_HND, angle_NR):
    pairs = torch.view_as_complex(x_HND.reshape(*x_HND.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle_NR), angle_NR)).reshape(x_HND.shape)


def blocks(tensors, prefix, x_ND, angle_NR, *, heads):
    """Runs all blocks under `prefix` and returns the output of each."""
    outputs, number = [], 0
    while f"{prefix}.blocks.{number}.norm1.weight" in tensors:

        def get(name, number=number):
            return tensors[f"{prefix}.blocks.{number}.{name}"]

        width = x_ND.shape[1]
        h = layer_norm(x_ND, get("norm1.weight"), get("norm1.bias"))
        qkv = torch.einsum("nd,ed->ne", h, get("attn.qkv.weight")) + get("attn.qkv.bias")
        q, k, v = (qkv[:, i * width : (i + 1) * width].reshape(-1, heads, width // heads) for i in range(3))
        q, k, v = (z.permute(1, 0, 2) for z in (q, k, v))
        q, k = rotate(q, angle_NR), rotate(k, angle_NR)
        scores = torch.einsum("hnd,hmd->hnm", q, k) / math.sqrt(width // heads)
        weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
        mixed = torch.einsum("hnm,hmd->nhd", weights, v).reshape(-1, width)
        x_ND = x_ND + torch.einsum("nd,ed->ne", mixed, get("attn.proj.weight")) + get("attn.proj.bias")
        h = layer_norm(x_ND, get("norm2.weight"), get("norm2.bias"))
        packed = torch.einsum("nd,ed->ne", h, get("mlp.fc1.weight")) + get("mlp.fc1.bias")
        half = packed.shape[1] // 2
        gated = packed[:, :half] / (1 + torch.exp(-packed[:, :half])) * packed[:, half:]
        x_ND = x_ND + torch.einsum("nd,ed->ne", gated, get("mlp.fc2.weight")) + get("mlp.fc2.bias")
        outputs.append(x_ND)
        number += 1
    return outputs


class ReferenceModel:
    """A float64 copy of a model's tensors, evaluated token by token."""

    def __init__(self, state_dict, config):
        self.tensors = {name: tensor.double() for name, tensor in state_dict.items()}
        self.config = config

    def positions(self, mel_TF):
        steps = mel_TF.shape[0] // self.config.patch_frames
        return steps, [(t, f) for t in range(steps) for f in range(self.config.grid_bands)]

    def _angles(self, positions, steps, head_dim):
        return angles(
            positions,
            steps=steps,
            bands=self.config.grid_bands,
            head_dim=head_dim,
            reference_steps=self.config.grid_steps,
            mode=self.config.rope,
        )

    def encode(self, mel_TF, *, which, chosen=None):
        """Returns the normed output [K, D] for the chosen token indices (None: all)."""
        return self.hidden_states(mel_TF, which=which, chosen=chosen)[-1]

    def hidden_states(self, mel_TF, *, which, chosen=None):
        """Returns the tokens, the output of each block, and the last of them normed."""
        steps, positions = self.positions(mel_TF)
        positions = [positions[i] for i in (range(len(positions)) if chosen is None else chosen)]
        tokens = patch_tokens(self.tensors, mel_TF.double())
        x = torch.stack([tokens[p] for p in positions])
        angle = self._angles(positions, steps, self.config.width // self.config.heads)
        out = blocks(self.tensors, which, x, angle, heads=self.config.heads)
        normed = layer_norm(out[-1], self.tensors[f"{which}.norm.weight"], self.tensors[f"{which}.norm.bias"])
        return [x, *out[:-1], normed]

    def predict(self, mel_TF, context, target):
        """Returns the predictions [M, D] at the target indices."""
        steps, positions = self.positions(mel_TF)
        get = self.tensors.__getitem__
        seen = self.encode(mel_TF, which="student", chosen=context)
        projected = torch.einsum("nd,ed->ne", seen, get("predictor.proj_in.weight")) + get("predictor.proj_in.bias")
        masks = get("predictor.mask_token")[0].expand(len(target), -1)
        sequence = [positions[i] for i in np.concatenate([context, target])]
        angle = self._angles(sequence, steps, self.config.predictor_width // self.config.predictor_heads)
        out = blocks(
            self.tensors, "predictor", torch.cat([projected, masks]), angle, heads=self.config.predictor_heads
        )[-1]
        out = layer_norm(out[len(context) :], get("predictor.norm.weight"), get("predictor.norm.bias"))
        return torch.einsum("nd,ed->ne", out, get("predictor.proj_out.weight")) + get("predictor.proj_out.bias")
