"""A recipe: every choice that makes a package, read from recipes/NAME.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import efficientnet
import revcol

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Training:
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float  # of matrices and kernels; norms, biases, gamma and alpha have none
    betas: tuple[float, float]
    warmup: float  # share of the run
    coarse: float  # share of the run on images of half the side, at a quarter of the cost
    clip: float  # largest norm of the gradient
    average: float  # decay of the moving average of the weights, which is what gets exported
    smoothing: float  # of labels
    exit_weights: tuple[float, ...]  # of each exit's loss
    layer_scale: float  # gamma at the start
    seed: int


@dataclass(frozen=True)
class Augment:
    crop: int  # largest shift, pixels
    flip: bool
    cutmix: float  # share of the batches in which a box of each image shows another image


@dataclass(frozen=True)
class Heads:
    """The fit of the heads to the finished backbone."""

    passes: int  # over the training images, each with fresh augmentation
    ridge: tuple[float, ...]  # penalties on |W|^2 to choose from on validation


@dataclass(frozen=True)
class Specialization:
    """How a device specializes the heads; chosen with `offramp bench specialization`."""

    threshold: float  # confidence from which frames leave early
    rate: float
    whitened: bool
    prior: float
    prior_window: float
    prior_smoothing: float
    prior_doubt: float
    prior_last: bool
    gate: float


@dataclass(frozen=True)
class Recipe:
    name: str
    version: int
    description: str
    dataset: str
    mean: list[float]  # per channel, of values in 0..1
    std: list[float]
    network: revcol.Spec | efficientnet.Spec
    training: Training
    augment: Augment
    heads: Heads
    specialization: Specialization


def load(name: str) -> Recipe:
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise SystemExit(f"no recipe is called {name!r}; there are: {known}")
    table = tomllib.loads(path.read_text())
    kinds = {"revcol": revcol.Spec, "efficientnet": efficientnet.Spec}
    parts = {
        "network": kinds[table["network"].pop("kind", "revcol")],
        "training": Training,
        "augment": Augment,
        "heads": Heads,
        "specialization": Specialization,
    }
    for key, kind in parts.items():
        table[key] = build(kind, table[key], f"{path.name}: [{key}]")
    return build(Recipe, table | {"name": name}, path.name)


def build(kind: type, table: dict[str, Any], where: str) -> Any:
    """A dataclass from a table that must have exactly its fields."""
    odd = {f.name for f in fields(kind)} ^ table.keys()
    if odd:
        raise SystemExit(f"{where}: missing or unknown: {', '.join(sorted(odd))}")
    return kind(**{key: frozen(value) for key, value in table.items()})


def frozen(value: Any) -> Any:
    """Lists of lists as tuples of tuples, so that a Spec can be compared and hashed."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value
