"""What a device needs to specialize heads along whitened axes."""

from __future__ import annotations

import torch
from torch import Tensor

from data import Split
from heads import validation_features
from recipe import Recipe
from revcol import RevCol

RIDGE = 0.1  # share of the mean variance that is added to every direction


@torch.no_grad()
def whiteners(network: RevCol, split: Split, recipe: Recipe) -> dict[str, Tensor]:
    """Per exit but the last: the mean [C] of its features on images that it was not trained on, and
    the precision [C,C], the inverse of their covariance plus a ridge."""
    tensors = {}
    for e, u in enumerate(validation_features(network, split, recipe)[:-1]):
        mean = u.double().mean(0)
        centred = u.double() - mean
        covariance = centred.T @ centred / len(u)
        ridge = RIDGE * covariance.trace() / len(covariance)
        precision = torch.linalg.inv(covariance + ridge * torch.eye(len(covariance)))
        # exactly symmetric, whatever the inverse's rounding
        precision = (precision + precision.T) / 2
        tensors[f"exit-{e}.mean"] = mean.float().contiguous()
        tensors[f"exit-{e}.precision"] = precision.float().contiguous()
    return tensors
