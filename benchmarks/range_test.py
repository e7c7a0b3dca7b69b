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
from benchmarks.training import load_images, make_run, range_test
from onecycle.errors import UsageError
from onecycle.recipe import Recipe


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    made = parser(__doc__, "range_test", data_dir="cifar10")
    made.add_argument("--seeds", type=int, default=20, metavar="N", help="0..N-1 (%(default)s)")
    made.add_argument("--limit-train", type=int, metavar="N")
    made.add_argument("--batch-size", type=int, default=512, metavar="N")
    made.add_argument("--steps", type=int, default=160, metavar="N", help="(%(default)s)")
    args = made.parse_args(argv)
    compute = settle(args)
    train, test = load_images(args.data_dir, 50_000)
    train = train.sample(args.limit_train)
    recipe = Recipe(
        batch_size=args.batch_size, finder_start_lr=1e-7, finder_end_lr=0.3, finder_steps=args.steps
    )
    settings = {
        "images": train.source, "num_train": len(train), "precision": compute.precision,
    }  # fmt: skip
    result = new_result("range_test", compute, settings) | {"recipe": dataclasses.asdict(recipe)}
    for seed in range(args.seeds):
        begin, run = now(compute.device), {"seed": seed}
        try:
            own = dataclasses.replace(recipe, seed=seed)
            found = range_test(make_run(own, (train, test), compute))
            run |= {"lr_max": found.lr_max, "losses": [round(loss, 5) for loss in found.losses]}
            result["lrs"] = max(result.get("lrs", []), found.lrs, key=len)
        except UsageError as error:
            run["failed"] = str(error)
        result["runs"].append(run | {"seconds": now(compute.device) - begin})
        rates = [run["lr_max"] for run in result["runs"] if "lr_max" in run]
        result["summary"] = {"lr_max": spread(rates)} if rates else {}
        write_json(args.out, result)
        print(f"seed {seed}: {run.get('lr_max') or run['failed']}", flush=True)
    return result


if __name__ == "__main__":
    sys.exit(run_benchmark(main))
