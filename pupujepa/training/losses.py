"""Losses of predictions per token, and a hinge against the loss of variance.

All are computed in the inputs' dtype; the training step passes float32.

Shapes: B batch, M target tokens, N tokens, V values per token.
"""

from torch import Tensor
from torch.nn import functional

from pupujepa.model.blocks import NORM_EPSILON

LOSSES = ("smooth_l1", "mse", "l1", "cosine", "norm_mse")
_VARIANCE_EPSILON = 1e-4  # of VICReg, under the square root


def standardise(x_BMV: Tensor) -> Tensor:
    """Normalises each token to zero mean and unit variance over its values, in float32: [B, M, V]."""
    return functional.layer_norm(x_BMV.float(), x_BMV.shape[-1:], eps=NORM_EPSILON)  # without affine parameters


def token_losses(prediction_BMV: Tensor, target_BMV: Tensor, *, loss: str, beta: float = 1.0) -> Tensor:
    """Returns the loss [B, M] of each token; the three elementwise losses average over its values.

    Args:
        loss: one of LOSSES. cosine = 1 - cos; norm_mse = 2 - 2 cos, the loss of M2D.
        beta: error at which smooth-L1 changes from square to linear.
    """
    match loss:
        case "smooth_l1":
            return functional.smooth_l1_loss(prediction_BMV, target_BMV, reduction="none", beta=beta).mean(-1)
        case "mse":
            return (prediction_BMV - target_BMV).square().mean(-1)
        case "l1":
            return (prediction_BMV - target_BMV).abs().mean(-1)
        case "cosine":
            return 1 - functional.cosine_similarity(prediction_BMV, target_BMV, dim=-1)
        case "norm_mse":
            return 2 - 2 * functional.cosine_similarity(prediction_BMV, target_BMV, dim=-1)
    raise AssertionError(f"ObjectiveConfig allows no loss {loss!r}")


def variance_hinge(x_BNV: Tensor, *, floor: float) -> Tensor:
    """Returns max(0, floor - std over a crop's tokens), averaged over the values: [B].

    It is the variance term of VICReg (arXiv 2105.04906, eq. 1: gamma = floor), but per crop instead of per batch. So a
    crop's loss does not depend on the rest of its micro-batch, and equal tokens in a crop cost even if crops differ.
    """
    std_BV = (x_BNV.var(1, correction=0) + _VARIANCE_EPSILON).sqrt()
    return functional.relu(floor - std_BV).mean(-1)
