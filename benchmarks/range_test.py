#!/usr/bin/env python3
"""The losses of many range tests, so that rules for LRMAX and LRMIN can be judged without training.

    python benchmarks/range_test.py --data-dir DIR --seeds 20
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import new_result, now, parser, run_benchmark, settle, spread, write_json
from benchmarks.training import load_images, make_parts, train_loader
from onecycle.errors import UsageError
from onecycle.optim.lr_finder import find_lr
from onecycle.recipe import Recipe
from onecycle.training.compute import Compute


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, "range_test", data_dir="cifar10")
    made.add_argument("--seeds", type=int, default=20, metavar="N", help="0..N-1 (%(default)s)")
    made.add_argument("--limit-train", type=int, metavar="N")
    made.add_argument("--batch-size", type=int, default=512, metavar="N")
    made.add_argument("--steps", type=int, default=160, metavar="N", help="(%(default)s)")
    args = made.parse_args(argv)
    device, precision = settle(args)
    train = load_images(args.data_dir, 50_000)[0].sample(args.limit_train)
    recipe = Recipe(
        batch_size=args.batch_size, finder_start_lr=1e-7, finder_end_lr=0.3, finder_steps=args.steps
    )
    compute = Compute(device, precision)
    settings = {"images": train.source, "num_train": len(train), "precision": precision}
    result = new_result("range_test", device, precision, settings)
    result["recipe"] = dataclasses.asdict(recipe)
    for seed in range(args.seeds):
        own, begin = dataclasses.replace(recipe, seed=seed), now(device)
        parts = make_parts(own, compute, train)
        run = {"seed": seed}
        try:
            found = find_lr(
                parts.model, parts.optimizer, parts.criterion, train_loader(train, own, compute),
                start_lr=own.finder_start_lr, end_lr=own.finder_end_lr, num_steps=own.finder_steps,
                autocast_dtype=compute.dtype,
            )  # fmt: skip
            run |= {"lr_max": found.lr_max, "losses": [round(loss, 5) for loss in found.losses]}
            result["lrs"] = max(result.get("lrs", []), found.lrs, key=len)
        except UsageError as error:
            run["failed"] = str(error)
        result["runs"].append(run | {"seconds": now(device) - begin})
        rates = [run["lr_max"] for run in result["runs"] if "lr_max" in run]
        result["summary"] = {"lr_max": spread(rates)} if rates else {}
        write_json(args.out, result)
        print(f"seed {seed}: {run.get('lr_max') or run['failed']}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
