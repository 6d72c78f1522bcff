"""Train a RevCol with exits and write it as a package.

    python models/train/train.py revcol-fashion
    python models/train/train.py revcol-cifar100 --data DIR --minutes 75
    python models/train/train.py sample

Started again, a run goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

# Before torch is loaded: on a busy machine threads that spin while they wait for
# one another are ten times slower than threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

import data
import export
import recipe as recipes
import sample
from efficientnet import EfficientNet
from fit import Run, train
from heads import refit
from revcol import RevCol, Spec

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> None:
    args = arguments()
    if args.recipe == "sample":
        test = data.fashion_test(data.root(args.data))
        sample.write(test, args.out or REPOSITORY / "agent/camera/sample")
        return
    recipe = recipes.load(args.recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = data.load(recipe.dataset, data.root(args.data))
    if recipe.dataset == "noise":
        export_random(recipe, dataset, args)
        return
    run = Run(recipe, args.work or REPOSITORY / "target/train" / recipe.name, device)
    if run.resume():
        print(f"{run.path}: {run.epochs:.2f} epochs done", flush=True)
    elif args.export_only:
        raise SystemExit(f"there is no {run.path} to export")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if not args.export_only:
            train(run, dataset, args.minutes)
    except KeyboardInterrupt:
        run.save()
        raise SystemExit(f"\nstopped; the same command goes on from {run.path}") from None
    temperatures = refit(run.average, dataset, recipe)
    out = args.out or REPOSITORY / "models/zoo" / recipe.name
    provenance = export.provenance(run.epochs, recipe.training.seed, command(args))
    export.write_package(out, run.average, temperatures, dataset, recipe, provenance)


def export_random(recipe: recipes.Recipe, dataset: data.Dataset, args: argparse.Namespace) -> None:
    """The package of a network that was never trained: it takes as long as one that was."""
    torch.manual_seed(recipe.training.seed)
    kind = RevCol if isinstance(recipe.network, Spec) else EfficientNet
    network = kind(recipe.network)
    out = args.out or REPOSITORY / "target" / recipe.name
    provenance = export.provenance(0, recipe.training.seed, command(args))
    export.write_package(out, network, [1.0] * len(network.heads), dataset, recipe, provenance)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a file of recipes/ without its .toml, or `sample`")
    parser.add_argument("--data", type=Path, help="folder of datasets (or OFFRAMP_DATA)")
    parser.add_argument("--out", type=Path, help="the package (models/zoo/RECIPE)")
    parser.add_argument("--work", type=Path, help="the checkpoint (target/train/RECIPE)")
    parser.add_argument("--minutes", type=float, help="anneal to the end within this time")
    parser.add_argument(
        "--export-only", action="store_true", help="package the checkpoint as it is"
    )
    return parser.parse_args()


def command(args: argparse.Namespace) -> str:
    """The command as one would type it elsewhere: without this machine's folders."""
    minutes = f" --minutes {args.minutes:g}" if args.minutes else ""
    return f"python models/train/train.py {args.recipe}{minutes}"


if __name__ == "__main__":
    main()
