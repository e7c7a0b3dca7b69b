"""onecycle export: trained weights as an ONNX model for other programs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import warnings
from typing import TYPE_CHECKING, Any

from onecycle.commands.common import check_output, path
from onecycle.commands.options import add_force, add_model, add_weights, weights_of
from onecycle.errors import UsageError
from onecycle.files import write_file

if TYPE_CHECKING:
    from onecycle.results.weights import WeightsFile

ABOUT = (
    'Export weights as an ONNX model. Its input "images" is (N, 3, S, S) float32, '
    'channel-normalised, for any N; its output "log_probabilities" is (N, K). The metadata holds '
    "class names, mean and standard deviation."
)
OPSET = 18
PACKAGES = ("onnx", "onnxscript")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add_weights(parser)
    parser.add_argument("file", metavar="FILE", type=path, help="the .onnx file to write")
    add_model(parser, "what the file of weights says")
    add_force(parser)


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch."""
    args.weights = weights_of(args.weights)
    check_output(args.file, args.force, inputs=[args.weights])


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Write the ONNX model; the exit code."""
    from onecycle.results.weights import load_weights

    content = export(load_weights(args.weights), args.model).SerializeToString()
    write_file(args.file, content)
    print(f"{args.file}: {len(content):,} bytes")
    return 0


def export(weights: WeightsFile, name: str | None = None) -> Any:
    """The network as an ONNX ``ModelProto``; it holds no path of this machine.

    Args:
        weights: what a file holds.
        name: of the network; None: what the file says.

    Raises:
        UsageError: a package that the export needs is not installed.
    """
    for package in PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UsageError(f"the export needs {package}: pip install {package}") from error
    import torch
    from torch import nn

    from onecycle.outputs import LogProbabilities
    from onecycle.results.networks import network_of

    model, size = network_of(weights, name), weights.image_size
    if not isinstance([*model.modules()][-1], nn.LogSoftmax):
        model = LogProbabilities(model, torch.zeros(2, 3, size, size)).eval()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of parts of the exporter that will be removed
        # Two images: for one, the exporter would take N for the constant 1.
        proto = torch.onnx.export(
            model,
            (torch.zeros(2, 3, size, size),),
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
