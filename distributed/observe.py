"""What a logged step shows beside its loss: explained variance on its own crops, losses by corpus, gradients by module.

Only steps that are logged are looked at, so it costs a share of one step in `telemetry.log_every`. Sums over tokens are
products with membership matrices, which have a fixed order on every device; ranks are added up in one operation.

Shapes: B crops, M target patches, D width, n tokens (B * M), G groups of tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from data.batches import Batch
from pupujepa.masks import STRATEGIES

MODULES = ("patch_embed", "student", "predictor")
_GROUP_COLUMNS = 3


class StepObserver:
    """Watches one step; every rank makes one and calls the methods in step with the others.

    Args:
        bands: of the patch grid.
        corpora: names of a mix; one or none gives no losses by corpus.
    """

    def __init__(self, *, bands: int, corpora: Sequence[str] = ()):
        self._bands, self._corpora = bands, tuple(corpora) if len(corpora) > 1 else ()
        self._sums: Tensor | None = None
        self._width = 0
        self._gradients: Tensor | None = None

    @torch.no_grad()
    def after_forward(self, batch: Batch, aux: dict[str, Tensor]) -> None:
        """Adds a micro-batch, which lies on the device, and what the training step said of it."""
        prediction_nD = aux["prediction_BMD"].flatten(0, 1)
        target_nD = aux["target_BMD"].flatten(0, 1)
        tokens = batch.target.shape[1]
        strategy_n = batch.strategy[:, None].expand(-1, tokens).flatten()
        membership_Gn = torch.cat(
            [
                torch.ones_like(strategy_n)[None] == 1,
                _one_hot(strategy_n, len(STRATEGIES)),
                _one_hot(batch.target.flatten() % self._bands, self._bands),
            ]
        ).to(prediction_nD.dtype)
        error_n = (prediction_nD - target_nD).square().sum(-1)
        columns_n3 = torch.stack([error_n, target_nD.square().sum(-1), torch.ones_like(error_n)], dim=1)
        parts = [membership_Gn @ columns_n3, membership_Gn @ target_nD]
        for x_nD in (target_nD, prediction_nD):
            unit_nD = functional.normalize(x_nD, dim=-1)
            parts += [unit_nD.sum(0), unit_nD.square().sum(0)]
        parts += [self._loss_sums(batch, aux["per_sample_loss_B"])]
        sums = torch.cat([part.flatten().double() for part in parts])
        self._width = target_nD.shape[1]
        self._sums = sums if self._sums is None else self._sums + sums

    def after_backward(self, engine: Any) -> None:
        """Looks at the averaged gradients, between the last backward pass of a step and the optimizer."""
        squares = [
            sum((part.square().sum().double() for part in own_gradients(getattr(engine.module, name), engine)), start)
            for name in MODULES
            for start in [torch.zeros((), dtype=torch.float64, device=engine.device)]
        ]
        # without ZeRO every rank has all of every gradient
        share = 1 if engine.zero_optimization_stage() else dist.get_world_size()
        self._gradients = torch.stack(squares) / share

    def row(self) -> dict[str, float]:
        """Returns what the step showed, keys starting with `batch/`, `mix/` and `grad_norm/`; all ranks together."""
        assert self._sums is not None and self._gradients is not None, "no step was observed"
        total = torch.cat([self._sums, self._gradients])
        dist.all_reduce(total)
        numbers = total.cpu()
        gradients = numbers[-len(MODULES) :].sqrt().tolist()
        row = {f"grad_norm/{name}": norm for name, norm in zip(MODULES, gradients, strict=True)}
        return self._batch_values(numbers[: -len(MODULES)]) | row

    def _loss_sums(self, batch: Batch, loss_B: Tensor) -> Tensor:
        """Sums of losses and counts of crops per corpus, [2, corpora]."""
        names = [uid.partition("/")[0] for uid in batch.uids]
        index_B = torch.tensor([self._corpora.index(name) if self._corpora else -1 for name in names])
        chosen_CB = _one_hot(index_B.to(loss_B.device, non_blocking=True), len(self._corpora)).double()
        return torch.stack([chosen_CB @ loss_B.double(), chosen_CB.sum(1)])

    def _batch_values(self, numbers: Tensor) -> dict[str, float]:
        groups = ("", *(f"_{name}" for name in STRATEGIES), *(f"_band_{band}" for band in range(self._bands)))
        sizes = [len(groups) * _GROUP_COLUMNS, len(groups) * self._width, *[self._width] * 4, 2 * len(self._corpora)]
        columns, means, *units, losses = numbers.split(sizes)
        row = {}
        for name, (error, squares, count), sum_D in zip(
            groups,
            columns.unflatten(0, (-1, _GROUP_COLUMNS)).tolist(),
            means.unflatten(0, (-1, self._width)),
            strict=True,
        ):
            if count:
                # around the mean; of one token nothing is left
                spread = squares - float(sum_D.square().sum()) / count
                row[f"batch/explained_variance{name}"] = 1 - error / spread if spread > 0 else float("nan")
        tokens = float(columns[2])
        for which, (sum_D, squares_D) in zip(("target", "prediction"), (units[:2], units[2:]), strict=True):
            row |= _spread(which, sum_D, squares_D, tokens)
        sums_C, counts_C = losses.unflatten(0, (2, -1)).tolist() if self._corpora else ([], [])
        return row | {f"mix/{c}/loss": s / n for c, s, n in zip(self._corpora, sums_C, counts_C, strict=True) if n}


def own_gradients(module: nn.Module, engine: Any) -> Iterator[Tensor]:
    """Yields this rank's parts of the averaged gradients of a module, under every ZeRO stage.

    Call it between the last backward pass of a step and the optimizer.
    """
    stage = engine.zero_optimization_stage()
    for parameter in module.parameters():
        if not stage:
            gradient = parameter.grad
        elif stage == 3:
            from deepspeed.utils import safe_get_local_grad

            gradient = safe_get_local_grad(parameter)
        else:
            # what deepspeed.utils.safe_get_full_grad adds up over the ranks; None where the rank owns no part of it
            linked: Any = parameter
            mapping = linked._hp_mapping
            gradient = mapping and mapping.get_lp_grad_fragment(linked._index_in_param_group)
        if gradient is not None:
            yield gradient.float()


def _spread(which: str, sum_D: Tensor, squares_D: Tensor, count: float) -> dict[str, float]:
    """Normalised std and mean pairwise cosine from the sums of unit vectors, as in pupujepa/diagnostics.py."""
    variance_D = (squares_D / count - (sum_D / count).square()).clamp_min(0)
    values = {f"batch/std_{which}": float(variance_D.sqrt().mean()) * len(sum_D) ** 0.5}
    if count > 1:
        pairs = float(sum_D.square().sum() - squares_D.sum()) / (count * (count - 1))
        values[f"batch/cosine_{which}"] = pairs
    return values


def _one_hot(index_n: Tensor, count: int) -> Tensor:
    """Membership [count, n]; an index of none is in no group."""
    return torch.arange(count, device=index_n.device)[:, None] == index_n[None]
