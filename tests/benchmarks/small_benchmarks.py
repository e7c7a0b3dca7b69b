"""What the benchmarks' tests share: a network that trains in no time, and options of toy size."""

import argparse
import json

from torch import nn

CPU = ["--device", "cpu", "--precision", "float32"]
FORM = {"benchmark", "machine", "settings", "runs", "summary"}
TOY = [
    "--data-dir", "digits", "--limit-train", "48", "--limit-test", "30", "--batch-size", "16",
    "--epochs", "2", "--set", "lr_max=0.01", *CPU,
]  # fmt: skip


class Tiny(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(
            nn.Conv2d(3, 27, 3), nn.BatchNorm2d(27), nn.ReLU(), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(), nn.Linear(27, num_classes), nn.LogSoftmax(1),
        )  # fmt: skip


def stored(file):
    result = json.loads(file.read_text("utf-8"))
    assert FORM <= set(result)
    assert {"device_name", "cores", "amx", "threads", "precision", "versions"} <= set(
        result["machine"]
    )
    return result


def arguments(tmp_path, seconds=60.0):
    """Of ``gpu.run_all``."""
    return argparse.Namespace(
        out=tmp_path / "out", data_dir="digits", device="cpu", seconds=seconds, only=None
    )


def script(tmp_path, name, text):
    """A command that writes a results file, for a section."""
    (tmp_path / name).write_text(
        "import json, sys, time\nout = sys.argv[sys.argv.index('--out') + 1]\n"
        "write = lambda runs: json.dump({'runs': runs, 'summary': {}}, open(out, 'w'))\n" + text
    )
    return str(tmp_path / name)
