#!/usr/bin/env python3
"""Write trained weights as an ONNX model: export_onnx.py WEIGHTS OUT.onnx.

Its input "images" is (N, 3, 32, 32) float32, channel-normalised, for any N; its output
"log_probabilities" is (N, K). The metadata holds the class names, mean and standard deviation.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from models import CustomResNet
from onecycle.errors import RunError, StorageError, UsageError
from onecycle.files import write_whole
from onecycle.results.weights import WeightsFile, load_weights

OPSET = 18
PACKAGES = ("onnx", "onnxscript")


def export(weights: WeightsFile) -> Any:
    """The network as an ONNX ``ModelProto``; it holds no path of this machine."""
    for package in PACKAGES:
        try:
            __import__(package)
        except ImportError as error:
            raise UsageError(f"the export needs {package}: pip install {package}") from error
    model = CustomResNet.from_pretrained(weights)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter's own parts that will go
        # Two images: of one, the exporter would take N for the constant 1.
        proto = torch.onnx.export(
            model,
            (torch.zeros(2, 3, 32, 32),),
            input_names=["images"],
            output_names=["log_probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
    graph = proto.graph
    for kind in (graph.input, graph.output, graph.node, graph.value_info, graph.initializer):
        for part in kind:
            del part.metadata_props[:]  # names the source files of this machine
    del graph.metadata_props[:]
    for name in ("classes", "mean", "std", "source"):
        proto.metadata_props.add(key=name, value=json.dumps(getattr(weights, name)))
    return proto


def main(argv: list[str]) -> int:
    """Run the command line; the exit code."""
    try:
        if len(argv) != 2:
            raise UsageError("give the file of weights and the .onnx file to write")
        out = Path(argv[1])
        content = export(load_weights(argv[0])).SerializeToString()
        try:
            write_whole(out, content)
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error.strerror}") from error
    except RunError as error:
        print(f"{Path(__file__).name}: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{out}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
