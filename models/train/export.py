"""A trained network as a package: stages, heads, reference vectors, manifest.

Everything recorded (accuracies, vectors) is computed by the network as it is
shipped: folded, its weights rounded to f16, run in f32. Then each graph is run
in ONNX Runtime and must agree.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import efficientnet
import revcol
import sample
from data import Dataset, Split, normalise
from efficientnet import EfficientNet
from fit import accuracies, predict
from graph import stage_graph, state_names
from recipe import Recipe
from revcol import Block, RevCol, Scale
from whiteners import whiteners

TOLERANCE = 1e-3  # largest difference of a logit between PyTorch and ONNX Runtime
VECTORS = 500  # reference images of a dataset that may be shipped
SYNTHETIC = 64  # reference images where the dataset may not be shipped


@torch.no_grad()
def fold(network: RevCol | EfficientNet) -> RevCol | EfficientNet:
    """The same function with fewer parts, its backbone's weights rounded to f16.

    In every block the norm's affine moves into the linear layer that follows,
    and gamma into the one at the end; alpha is clamped for good.
    """
    folded = copy.deepcopy(network).float()
    for part in folded.modules():
        if isinstance(part, Block):
            expand, contract = part.expand, part.contract
            expand.bias += expand.weight @ part.norm.bias
            expand.weight *= part.norm.weight
            contract.weight *= part.gamma[:, None]
            contract.bias *= part.gamma
            nn.init.ones_(part.norm.weight)
            nn.init.zeros_(part.norm.bias)
            nn.init.ones_(part.gamma)
        elif isinstance(part, Scale):
            part.alpha.copy_(part.effective())
    for name, weight in folded.named_parameters():
        if not name.startswith("heads."):
            weight.copy_(weight.half())
    return folded


@torch.no_grad()
def write_package(
    folder: Path,
    network: RevCol | EfficientNet,
    temperatures: list[float],
    data: Dataset,
    recipe: Recipe,
    provenance: dict[str, Any],
) -> None:
    """Write the package of a network whose heads have their temperatures in them."""
    folder.mkdir(parents=True, exist_ok=True)
    folded = fold(network.cpu())
    stages = len(folded.heads)
    for stage in range(stages):
        onnx.save(stage_graph(folded, stage), folder / f"stage-{stage}.onnx")
    heads = {}
    for e, head in enumerate(folded.heads):
        heads[f"exit-{e}.weight"] = head.weight.detach().contiguous()
        heads[f"exit-{e}.bias"] = head.bias.detach().contiguous()
    save_file(heads, folder / "heads.safetensors")
    save_file(whiteners(folded, data.validation, recipe), folder / "whiteners.safetensors")
    vectors = reference(folded, data, recipe)
    save_file(vectors, folder / "vectors.safetensors")
    for path in folder.glob("*.safetensors"):  # which are written for the owner alone
        path.chmod(0o644)
    worst = disagreement(folder, folded, vectors, recipe)
    if worst > TOLERANCE:
        raise SystemExit(f"ONNX Runtime and PyTorch differ by {worst:.2g} in a logit")
    validation = accuracies(folded, data.validation, recipe)
    test = accuracies(folded, data.test, recipe)
    provenance = provenance | {"parameters": folded.backbone_parameters()}
    text = manifest(recipe, data, temperatures, validation, test, provenance)
    (folder / "model.toml").write_text(text + digests(folder))
    print(f"{folder}: test accuracy " + "  ".join(f"{a:.2%}" for a in test))
    print(f"largest difference of a logit from ONNX Runtime: {worst:.1e}")


def reference(network: RevCol, data: Dataset, recipe: Recipe) -> dict[str, Tensor]:
    """Images and the logits they must give, [S,E,K].

    CIFAR's own images stay outside of the project: for those there are the
    logits alone, of the first test images in file order.
    """

    def logits(images: Tensor) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return predict(network, Split(images, labels), recipe).transpose(0, 1).contiguous()

    if recipe.dataset == "fashion-mnist":
        images = sample.draw(data.test)["evaluation"].images[:VECTORS].contiguous()
        return {"images": images, "logits": logits(images)}
    images = synthetic(recipe)
    return {
        "images": images,
        "logits": logits(images),
        "test_logits": logits(data.test.images[:VECTORS]),
    }


def synthetic(recipe: Recipe) -> Tensor:
    """Images made from nothing but a seed: noise of four sizes of grain, summed."""
    spec, random = recipe.network, np.random.default_rng(0)
    sides = [s for s in (4, 8, 16, spec.height) if spec.height % s == 0]
    total = np.zeros((SYNTHETIC, spec.height, spec.width, spec.channels))
    for side in sides:
        grain = spec.height // side
        noise = random.integers(0, 256, (SYNTHETIC, side, side, spec.channels))
        total += noise.repeat(grain, 1).repeat(grain, 2)
    return torch.from_numpy((total / len(sides)).round().astype(np.uint8))


def disagreement(
    folder: Path, network: RevCol, vectors: dict[str, Tensor], recipe: Recipe
) -> float:
    """Largest difference of a logit: the package's stages in ONNX Runtime against PyTorch."""
    images = normalise(vectors["images"], recipe.mean, recipe.std).numpy()
    carried, worst = {"image": images}, 0.0
    for stage, head in enumerate(network.heads):
        session = onnxruntime.InferenceSession(
            folder / f"stage-{stage}.onnx", providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        carried = dict(zip(names, session.run(None, carried), strict=True))
        logits = head(torch.from_numpy(carried.pop("u")))
        worst = max(worst, (logits - vectors["logits"][:, stage]).abs().max().item())
    return worst


def manifest(
    recipe: Recipe,
    data: Dataset,
    temperatures: list[float],
    validation: list[float],
    test: list[float],
    provenance: dict[str, Any],
) -> str:
    """model.toml without its digests."""
    spec = recipe.network
    last = len(spec.widths) - 1
    macs = revcol.macs if isinstance(spec, revcol.Spec) else efficientnet.macs
    parts = [
        toml(
            format=1,
            name=recipe.name,
            version=recipe.version,
            description=recipe.description,
            license=data.terms,
            classes=data.classes,
        ),
        "\n[input]\n",
        toml(
            height=spec.height,
            width=spec.width,
            channels=spec.channels,
            mean=recipe.mean,
            std=recipe.std,
        ),
        "\n[subsets]\n",
        toml(**data.subsets),
        "\n[specialization]\n",
        toml(**asdict(recipe.specialization)),
        "\n[provenance]\n",
        toml(dataset=data.title, split=data.split, **provenance),
    ]
    for stage, count in enumerate(macs(spec)):
        parts += [
            "\n[[stages]]\n",
            toml(
                file=f"stage-{stage}.onnx",
                macs=count,
                inputs=state_names(spec, stage - 1) if stage else ["image"],
                features="u",
                state=state_names(spec, stage) if stage < last else [],
            ),
        ]
    for stage, widths in enumerate(spec.widths):
        parts += [
            "\n[[exits]]\n",
            toml(
                stage=stage,
                features=widths[-1],
                temperature=round(temperatures[stage], 4),
                validation_accuracy=round(validation[stage], 4),
                test_accuracy=round(test[stage], 4),
            ),
        ]
    return "".join(parts)


def digests(folder: Path) -> str:
    lines = ["\n[digests]\n"]
    for path in sorted(folder.iterdir()):
        if path.name != "model.toml":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f'"{path.name}" = "sha256:{digest}"\n')
    return "".join(lines)


def toml(**values: Any) -> str:
    """Lines of TOML: for strings, numbers and lists of them, JSON's notation is TOML's."""
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(lines)


def provenance(run_epochs: float, seed: int, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "epochs": round(run_epochs, 2),
        "date": date.today().isoformat(),
        "framework": f"torch {torch.__version__.split('+')[0]}",
        "seed": seed,
    }
