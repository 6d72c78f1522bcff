"""The datasets, as whole arrays in memory, and an augmentation that works on a batch at once.

Images are u8 [N,H,W,C], labels int64 [N]. Nothing here downloads: Fashion-MNIST
comes from Debian's package `dataset-fashion-mnist` (or the same four files in
DATA/fashion-mnist), CIFAR-100 from DATA/cifar-100 as lossless WebP mosaics.
"""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FASHION_PACKAGE = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist

FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip
FASHION_SUBSETS = {
    "tops": [0, 2, 4, 6],
    "footwear": [5, 7, 9],
    "full-length": [1, 3],
    "outerwear": [2, 4],
}


@dataclass(frozen=True)
class Split:
    images: Tensor  # u8 [N,H,W,C]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    title: str
    terms: str  # what may be done with the data, and so with weights made from it
    split: str  # which images train, validate and test
    classes: list[str]  # names in label order
    subsets: dict[str, list[int]]  # named groups of labels
    train: Split
    validation: Split
    test: Split


def root(given: Path | None) -> Path | None:
    """The folder of datasets: --data, or else the environment's OFFRAMP_DATA."""
    from_environment = os.environ.get("OFFRAMP_DATA")
    return given or (Path(from_environment) if from_environment else None)


def load(name: str, root: Path | None) -> Dataset:
    if name == "fashion-mnist":
        return fashion_mnist(root)
    if name == "cifar-100":
        if root is None:
            raise SystemExit("CIFAR-100 needs --data DIR or OFFRAMP_DATA")
        return cifar_100(root / "cifar-100")
    if name == "noise":
        return noise()
    raise SystemExit(f"no dataset is called {name!r}")


def noise(side: int = 224, classes: int = 1000, images: int = 8) -> Dataset:
    """Images of nothing, for networks that are timed and never trained."""
    random = torch.Generator().manual_seed(0)
    shape = (images, side, side, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
    split = Split(pixels, torch.randint(0, classes, (images,), generator=random))
    return Dataset(
        title="noise",
        terms="CC0-1.0",
        split="none: the weights are random",
        classes=[f"class-{k}" for k in range(classes)],
        subsets={},
        train=split,
        validation=split,
        test=split,
    )


def fashion_test(root: Path | None) -> Split:
    """The 10,000 test images of Fashion-MNIST."""
    folder = fashion_folder(root)
    return Split(
        read_idx(folder / "t10k-images-idx3-ubyte.gz").unsqueeze(-1),
        read_idx(folder / "t10k-labels-idx1-ubyte.gz").long(),
    )


def fashion_mnist(root: Path | None, validation: int = 3000) -> Dataset:
    folder = fashion_folder(root)
    images = read_idx(folder / "train-images-idx3-ubyte.gz").unsqueeze(-1)
    labels = read_idx(folder / "train-labels-idx1-ubyte.gz").long()
    held = len(labels) - validation
    return Dataset(
        title="Fashion-MNIST (Xiao, Rasul, Vollgraf 2017)",
        terms="MIT (Fashion-MNIST, copyright 2017 Zalando SE)",
        split=f"training images: first {held:,} train, last {validation:,} validation; "
        "10,000 test images",
        classes=list(FASHION_CLASSES),
        subsets=FASHION_SUBSETS,
        train=Split(images[:held], labels[:held]),
        validation=Split(images[held:], labels[held:]),
        test=fashion_test(root),
    )


def fashion_folder(root: Path | None) -> Path:
    for folder in ([root / "fashion-mnist"] if root else []) + [FASHION_PACKAGE]:
        if folder.is_dir():
            return folder
    raise SystemExit(
        "Fashion-MNIST is missing: `apt install dataset-fashion-mnist`, "
        "or put its four files into DATA/fashion-mnist and give --data DATA"
    )


def read_idx(path: Path) -> Tensor:
    """An array of bytes in the IDX format: 0, 0, type 8, rank, then big-endian sizes."""
    raw = gzip.decompress(path.read_bytes())
    rank = raw[3]
    if raw[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an IDX file of bytes")
    sizes = np.frombuffer(raw, ">u4", rank, 4).astype(int)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes).copy())


# Images of each CIFAR-100 class, in file order: train, validation, and the rest
# (100) is the pool that streams are drawn from, which training never sees.
CIFAR_TRAIN, CIFAR_VALIDATION = 370, 30


def cifar_100(folder: Path) -> Dataset:
    coarse, fine, images = read_mosaics(folder, "train")
    rank = np.empty(len(fine), int)  # of an image within its class
    for k in range(100):
        where = np.flatnonzero(fine == k)
        rank[where] = np.arange(len(where))
    held = CIFAR_TRAIN + CIFAR_VALIDATION

    def take(keep: np.ndarray) -> Split:
        return Split(torch.from_numpy(images[keep]), torch.from_numpy(fine[keep]))

    groups = label_names(folder / "coarse_label_names.txt")
    members = {g: sorted({int(k) for k in fine[coarse == i]}) for i, g in enumerate(groups)}
    _, test_labels, test_images = read_mosaics(folder, "test")
    return Dataset(
        title="CIFAR-100 (Krizhevsky 2009)",
        terms="trained on CIFAR-100, which has no licence file: research use, cite Krizhevsky 2009",
        split=f"of each class in file order: first {CIFAR_TRAIN} train, next {CIFAR_VALIDATION} "
        f"validation, last 100 never used (stream pool); {len(test_labels):,} test images",
        classes=label_names(folder / "fine_label_names.txt"),
        subsets=members,
        train=take(rank < CIFAR_TRAIN),
        validation=take((rank >= CIFAR_TRAIN) & (rank < held)),
        test=Split(torch.from_numpy(test_images), torch.from_numpy(test_labels)),
    )


def label_names(path: Path) -> list[str]:
    return [line.strip().replace("_", "-") for line in path.read_text().splitlines() if line]


def read_mosaics(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse labels [N], fine labels [N] and images [N,32,32,3] of `train` or `test`."""
    labels = np.fromfile(folder / f"{split}.labels", np.uint8).reshape(-1, 2).astype(np.int64)
    parts = [from_mosaic(path, 32) for path in sorted(folder.glob(f"{split}_*.webp"))]
    return labels[:, 0], labels[:, 1], np.concatenate(parts)[: len(labels)]


def from_mosaic(path: Path, side: int) -> np.ndarray:
    """The tiles of a mosaic, row by row: u8 [N,side,side,C]."""
    with Image.open(path) as mosaic:
        pixels = np.asarray(mosaic)
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    tiles = pixels.reshape(rows, side, columns, side, -1).swapaxes(1, 2)
    return tiles.reshape(rows * columns, side, side, -1)


class Loader:
    """Batches of a training split, shuffled, shifted and mirrored.

    Every batch is a function of (seed, epoch, index), so that a resumed run
    goes on as if it had not been interrupted.
    """

    def __init__(self, split: Split, batch: int, crop: int, flip: bool, seed: int) -> None:
        self.labels = split.labels
        # zero-padded once: a shift is then a window at another offset
        self.padded = torch.nn.functional.pad(split.images, (0, 0, crop, crop, crop, crop))
        self.side = split.images.shape[1:3]
        self.batch, self.crop, self.flip, self.seed = batch, crop, flip, seed

    def __len__(self) -> int:
        return len(self.labels) // self.batch

    def order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.labels), generator=generator).to(self.labels.device)

    def get(self, order: Tensor, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Images u8 [B,H,W,C] and labels [B] of one batch."""
        which = order[index * self.batch : (index + 1) * self.batch]
        seed = (self.seed * 1_000_003 + epoch) * 1_000_003 + index
        return self.augment(which, torch.Generator().manual_seed(seed)), self.labels[which]

    def augment(self, which: Tensor, generator: torch.Generator) -> Tensor:
        """Each image of `which` at its own random shift, mirrored half of the time."""
        n = len(which)

        def window(length: int) -> Tensor:
            offset = torch.randint(2 * self.crop + 1, (n, 1), generator=generator)
            return offset + torch.arange(length)

        rows, columns = map(window, self.side)
        if self.flip:
            mirrored = torch.rand(n, 1, generator=generator) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = rows.to(which.device), columns.to(which.device)
        return self.padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """u8 to f32: values in 0..1, less the mean, over the deviation, per channel."""
    shift = torch.tensor(mean, device=images.device)
    return (images.float() / 255 - shift) / torch.tensor(std, device=images.device)
