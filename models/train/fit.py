"""Training the backbone: one loop that can be stopped at any time and goes on where it was."""

from __future__ import annotations

import copy
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import Dataset, Loader, Split, normalise
from recipe import Recipe
from revcol import RevCol

CHECKPOINT_EVERY = 180.0  # seconds, besides the end of every epoch


class Run:
    """A network in training, with all that a checkpoint holds."""

    def __init__(self, recipe: Recipe, folder: Path, device: torch.device) -> None:
        torch.manual_seed(recipe.training.seed)
        self.recipe, self.device = recipe, device
        self.path = folder / "checkpoint.pt"
        self.network = RevCol(recipe.network, recipe.training.layer_scale).to(device)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.optimizer = adamw(self.network, recipe)
        self.step = 0
        self.seconds = 0.0  # spent in training, over all resumptions
        self.epochs = 0.0  # really run, a part of one included

    def save(self) -> None:
        """Write the checkpoint beside the old one, then put it in its place."""
        state = {
            "network_spec": asdict(self.recipe.network),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **{k: getattr(self, k) for k in ("step", "seconds", "epochs")},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        os.replace(fresh, self.path)

    def resume(self) -> bool:
        """Read the checkpoint, if there is one."""
        if not self.path.is_file():
            return False
        state: dict[str, Any] = torch.load(self.path, map_location=self.device, weights_only=True)
        if state.pop("network_spec") != asdict(self.recipe.network):
            raise SystemExit(f"{self.path} is of another network: remove it, or use another --work")
        for part in ("network", "average", "optimizer"):
            getattr(self, part).load_state_dict(state.pop(part))
        vars(self).update(state)
        return True


def adamw(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW that decays matrices and kernels, but no norm, bias, gamma or alpha."""
    decay = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    t = recipe.training
    groups = [
        {"params": decay, "weight_decay": t.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=t.learning_rate, betas=t.betas, fused=True)


def train(run: Run, data: Dataset, minutes: float | None) -> None:
    """Train until the recipe's epochs or `minutes` are used up, whichever comes first.

    The schedule follows p, the larger share of the two, so that a run always
    anneals to its end, also on a machine that is slower than hoped.
    """
    recipe, t = run.recipe, run.recipe.training
    train_split, validation = data.train.to(run.device), data.validation.to(run.device)
    loader = Loader(train_split, t.batch, recipe.augment.crop, recipe.augment.flip, t.seed)
    weights = torch.tensor(t.exit_weights, device=run.device)
    weights /= weights.sum()
    total = t.epochs * len(loader)
    budget = minutes * 60 if minutes else math.inf
    meter = Meter()
    started = time.monotonic() - run.seconds
    saved = time.monotonic()

    def progress() -> float:
        run.seconds = time.monotonic() - started
        return max(run.step / total, run.seconds / budget)

    while progress() < 1:
        epoch, first = divmod(run.step, len(loader))
        order = loader.order(epoch)
        for index in range(first, len(loader)):
            p = progress()
            if p >= 1:
                break
            images, labels = loader.get(order, epoch, index)
            x = normalise(images, recipe.mean, recipe.std)
            coarse = p < t.coarse
            x = halve(x) if coarse else x
            x, target = cutmix(x, labels, recipe, run.step)
            loss = update(run, x, target, weights, schedule(p, t.warmup))
            run.step += 1
            run.epochs = run.step / len(loader)
            meter.show(p, run.epochs, loss, run.seconds)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                run.save()
                saved = time.monotonic()
        run.save()
        saved = time.monotonic()
        coarse = progress() < t.coarse
        meter.epoch(run.epochs, accuracies(run.average, validation, recipe, coarse), run.seconds)


def schedule(p: float, warmup: float) -> float:
    """Share of the learning rate at progress p: up in a line, then down a half cosine."""
    if p < warmup:
        return max(p / warmup, 0.01)
    return 0.5 + 0.5 * math.cos(math.pi * (p - warmup) / (1 - warmup))


def cutmix(x: Tensor, labels: Tensor, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """Images with, in some batches, a box of another image in each, and the probabilities [N,K] of
    the classes in proportion to their areas (Yun et al., "CutMix", ICCV 2019). The step decides the
    rest, so that a resumed run goes on alike."""
    target = F.one_hot(labels, recipe.network.classes).float()
    draw = torch.Generator().manual_seed(recipe.training.seed * 1_000_003 + step)
    chance, area, row, column = torch.rand(4, generator=draw).tolist()
    if chance >= recipe.augment.cutmix:
        return x, target
    n, h, w, _ = x.shape
    # a box of the area 1 - share, anywhere, cut off at the edges
    half = math.sqrt(area) / 2
    top, bottom = (round(h * min(max(row + d, 0), 1)) for d in (-half, half))
    left, right = (round(w * min(max(column + d, 0), 1)) for d in (-half, half))
    share = (bottom - top) * (right - left) / (h * w)
    other = torch.randperm(n, generator=draw).to(x.device)
    mixed = x.clone()
    mixed[:, top:bottom, left:right] = x[other, top:bottom, left:right]
    return mixed, (1 - share) * target + share * target[other]


def update(run: Run, x: Tensor, target: Tensor, weights: Tensor, rate: float) -> Tensor:
    """One step on normalised images and their classes' probabilities; the loss (not yet waited for
    on a GPU)."""
    t = run.recipe.training
    for group in run.optimizer.param_groups:
        group["lr"] = t.learning_rate * rate
    with autocast(run.device):
        logits = run.network(x).float()
    per_exit = [F.cross_entropy(z, target, label_smoothing=t.smoothing) for z in logits]
    loss = torch.stack(per_exit) @ weights
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(run.network.parameters(), t.clip)
    run.optimizer.step()
    # young averages forget faster, so that the random start does not linger
    decay = min(t.average, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        current = list(run.network.parameters())
        torch._foreach_lerp_(list(run.average.parameters()), current, 1 - decay)
    return loss.detach()


def halve(x: Tensor) -> Tensor:
    """Images [N,H,W,C] at half the side: each pixel the mean of four."""
    n, h, w, c = x.shape
    return x.view(n, h // 2, 2, w // 2, 2, c).mean(dim=(2, 4))


def autocast(device: torch.device) -> torch.autocast:
    """bf16 where the hardware multiplies it: a GPU, or a CPU with AMX or AVX-512 BF16."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported()
    else:
        fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


@torch.no_grad()
def predict(network: RevCol, split: Split, recipe: Recipe, coarse: bool = False) -> Tensor:
    """Logits [E,N,K] in f32, on the split's device."""
    parts = []
    for images in split.images.split(500):
        x = normalise(images, recipe.mean, recipe.std)
        parts.append(network(halve(x) if coarse else x))
    return torch.cat(parts, dim=1)


def accuracies(network: RevCol, split: Split, recipe: Recipe, coarse: bool = False) -> list[float]:
    """Share of right answers at each exit."""
    right = predict(network, split, recipe, coarse).argmax(-1) == split.labels
    return right.float().mean(dim=1).tolist()


class Meter:
    """Progress: a bar that redraws itself on a terminal, a plain line a minute elsewhere."""

    WIDTH = 30

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.every = 0.5 if self.live else 60.0
        self.shown = time.monotonic()
        self.start: tuple[float, float] | None = None  # (p, seconds) when this process began

    def show(self, p: float, epochs: float, loss: Tensor, seconds: float) -> None:
        self.start = self.start or (p, seconds)
        if time.monotonic() - self.shown < self.every:
            return
        self.shown = time.monotonic()
        p0, seconds0 = self.start
        left = (1 - p) * (seconds - seconds0) / max(p - p0, 1e-9)
        text = f"{p:6.1%}  epoch {epochs:5.2f}  loss {loss.item():.3f}  {clock(left)} left"
        if self.live:
            done = int(p * self.WIDTH)
            bar = "█" * done + "░" * (self.WIDTH - done)
            print(f"\r\x1b[2K{bar} {text}", end="", flush=True)
        else:
            print(text, flush=True)

    def epoch(self, epochs: float, accuracy: list[float], seconds: float) -> None:
        exits = "  ".join(f"{a:.1%}" for a in accuracy)
        clear = "\r\x1b[2K" if self.live else ""
        print(f"{clear}epoch {epochs:5.2f}  validation {exits}  after {clock(seconds)}", flush=True)


def clock(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
