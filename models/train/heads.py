"""The last step of training: heads fitted anew to the finished backbone, and their temperatures.

While the backbone moves, a head trails behind it, and the early heads' losses
weigh little. On frozen features the fit of a head is a convex problem, solved
here to its end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from data import Dataset, Loader, Split, normalise
from recipe import Recipe
from revcol import RevCol

TEMPERATURES = torch.logspace(-2, 2, 801, base=2)  # 1/4 to 4


@torch.no_grad()
def refit(network: RevCol, data: Dataset, recipe: Recipe) -> list[float]:
    """Replace the network's heads by the best found on validation; the temperature of each exit.

    Candidates are the head as it was trained and one fit for each ridge. A head
    leaves with its temperature T divided out of weight and bias, so that its
    softmax is calibrated as it stands.
    """
    device = next(network.parameters()).device
    features, labels = training_features(network, data.train.to(device), recipe)
    validation = data.validation.to(device)
    held_out = validation_features(network, validation, recipe)
    temperatures = []
    for e, head in enumerate(network.heads):
        candidates = [(head.weight.clone(), head.bias.clone())]
        for ridge in recipe.heads.ridge:
            candidates.append(regress(features[e], labels, *candidates[0], ridge))
        scored = [
            temperature(F.linear(held_out[e], *candidate), validation.labels)
            for candidate in candidates
        ]
        best = min(range(len(candidates)), key=lambda i: scored[i][1])
        loss, t = scored[best][1], scored[best][0]
        origin = f"ridge {recipe.heads.ridge[best - 1]:g}" if best else "as trained"
        print(f"exit {e}: {origin}, temperature {t:.2f}, validation loss {loss:.3f}", flush=True)
        head.weight.copy_(candidates[best][0] / t)
        head.bias.copy_(candidates[best][1] / t)
        temperatures.append(t)
    return temperatures


def training_features(network: RevCol, split: Split, recipe: Recipe) -> tuple[list[Tensor], Tensor]:
    """u of each exit [P*N, C_e] and labels [P*N], over P augmented passes."""
    a = recipe.augment
    loader = Loader(split, 500, a.crop, a.flip, recipe.training.seed + 1)
    batches, labels = [], []
    for epoch in range(recipe.heads.passes):
        order = loader.order(epoch)
        for index in range(len(loader)):
            x, y = loader.get(order, epoch, index)
            batches.append(network.features(normalise(x, recipe.mean, recipe.std)))
            labels.append(y)
    return [torch.cat(parts) for parts in zip(*batches, strict=True)], torch.cat(labels)


def validation_features(network: RevCol, split: Split, recipe: Recipe) -> list[Tensor]:
    parts = [
        network.features(normalise(x, recipe.mean, recipe.std)) for x in split.images.split(500)
    ]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


def regress(
    u: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression, mean cross-entropy + ridge * |W|^2, from a first guess."""
    weight = weight.clone().requires_grad_()
    bias = bias.clone().requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=40, history_size=10, line_search_fn="strong_wolfe"
    )

    @torch.enable_grad()
    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(F.linear(u, weight, bias), labels) + ridge * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()


def temperature(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """The T for which softmax(logits / T) has the least cross-entropy, and that cross-entropy."""
    losses = [F.cross_entropy(logits / t, labels).item() for t in TEMPERATURES.tolist()]
    best = min(range(len(losses)), key=losses.__getitem__)
    return TEMPERATURES[best].item(), losses[best]
