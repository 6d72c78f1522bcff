"""The embedded camera sample: a stream and an evaluation set out of Fashion-MNIST's test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import Split

COLUMNS, ROWS = 50, 40  # of a mosaic: 2,000 images
PER_CLASS = 200
SEED = 20240


def draw(test: Split) -> dict[str, Split]:
    """`stream` and `evaluation`: 200 images a class each, disjoint, in a fixed random order."""
    random = np.random.default_rng(SEED)
    picks: dict[str, list[np.ndarray]] = {"stream": [], "evaluation": []}
    for k in range(10):
        members = random.permutation(np.flatnonzero(test.labels.numpy() == k))
        for i, pick in enumerate(picks.values()):
            pick.append(members[i * PER_CLASS : (i + 1) * PER_CLASS])
    out = {}
    for name, pick in picks.items():
        order = torch.from_numpy(random.permutation(np.concatenate(pick)))
        out[name] = Split(test.images[order], test.labels[order])
    return out


def write(test: Split, folder: Path) -> None:
    """NAME.png, a grey mosaic read row by row, and NAME.labels, a byte an image."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in draw(test).items():
        side = split.images.shape[1]
        tiles = split.images.numpy().reshape(ROWS, COLUMNS, side, side).swapaxes(1, 2)
        mosaic = Image.fromarray(tiles.reshape(ROWS * side, COLUMNS * side))
        mosaic.save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}.labels").write_bytes(split.labels.numpy().astype(np.uint8).tobytes())
        size = (folder / f"{name}.png").stat().st_size
        print(f"{name}: {len(split):,} images, {size / 1e6:.2f} MB")
