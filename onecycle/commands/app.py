"""onecycle app: a local web page to try a network."""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import signal
import socket
import tempfile
import time
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle.commands.common import path
from onecycle.commands.options import add_model, weights_of
from onecycle.errors import DataError, StorageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from onecycle.results.weights import WeightsFile

ABOUT = (
    "Try a network on a web page. Drop a picture and see the predictions and where the network "
    "looked. The page is on this machine alone."
)
HOST = "127.0.0.1"
PORTS_TRIED = 100
TOP = 5
SHOWN_PX = 320
"""Height and width of a picture on the page, at most."""
MOST_BYTES = 100_000_000
GRADIO = (6, 31)
"""Pages of older versions fetch fonts and a script from other sites."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    # fmt: off
    add("weights", nargs="?", metavar="WEIGHTS", type=path,
        help="a .safetensors file of the network, or the folder of a run (the published ones)")
    add_model(parser, "what the file of weights says")
    add("--port", type=int, default=7860, metavar="N",
        help="of the page, or the next that is free (%(default)s)")
    add("--no-browser", action="store_true", help="do not open the page in a browser")
    # fmt: on


def check(args: argparse.Namespace) -> None:
    """Refuse what can be refused without torch."""
    if not 1 <= args.port <= 65535:
        raise UsageError(f"--port is {args.port}; it must be from 1 to 65535")
    if args.weights is not None:
        args.weights = weights_of(args.weights)
    try:
        found = tuple(map(int, re.findall(r"\d+", metadata.version("gradio"))[:2]))
    except metadata.PackageNotFoundError:
        found = ()
    if found < GRADIO:
        here = f", and {'.'.join(map(str, found))} is here" if found else ""
        raise UsageError(
            f"the page needs gradio {'.'.join(map(str, GRADIO))} or newer{here}: "
            'pip install "onecycle[app]"'
        )


def kept(args: argparse.Namespace) -> str:
    """What is there after an interruption."""
    return "nothing is written"


def main(args: argparse.Namespace) -> int:
    """Show the page until Ctrl-C or SIGTERM; the exit code."""
    from onecycle.results.networks import network_of
    from onecycle.results.weights import PUBLISHED, load_weights
    from onecycle.training.signals import catch_signals

    weights = load_weights(args.weights or PUBLISHED)
    model = network_of(weights, args.model)
    with tempfile.TemporaryDirectory() as folder, catch_signals() as signals:
        page = make_page(model, weights, folder)
        page.launch(
            server_name=HOST, server_port=free_port(args.port), share=False, quiet=True,
            inbrowser=not args.no_browser, prevent_thread_lock=True, max_file_size=MOST_BYTES,
        )  # fmt: skip
        print(f"Open {page.local_url} (Ctrl-C ends it)", flush=True)
        while not signals.stop():
            time.sleep(0.2)
        page.close(verbose=False)
    return 128 + signal.SIGTERM if signals.received == signal.SIGTERM else 0


def free_port(start: int) -> int:
    """The first port from ``start`` on that nothing listens on.

    Raises:
        StorageError: all that are tried are taken.
    """
    last = min(start + PORTS_TRIED - 1, 65535)
    for port in range(start, last + 1):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            try:
                tried.bind((HOST, port))
                return port
            except OSError:
                continue
    raise StorageError(f"the ports {start} to {last} are taken; give another --port")


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """What a network makes of a picture."""

    guesses: dict[str, float]
    """The most probable classes, the most probable first, with their probabilities, 0..1."""
    seen: np.ndarray
    """(H, W, 3) uint8: the picture as the network sees it."""
    looked: np.ndarray | None
    """(H, W, 3) uint8: the same with the evidence for the first class laid over it; None if no
    layer of the network has a map."""


def explain(model: nn.Module, weights: WeightsFile, content: bytes) -> Explained:
    """Classify a picture and show where the network looked.

    Args:
        model: of the weights.
        weights: with classes, mean and std.
        content: of a picture file.

    Raises:
        DataError: it is no picture that can be read.
    """
    import numpy as np
    import torch

    from onecycle.data.pictures import read_picture
    from onecycle.results.grad_cam import choose_layer, grad_cam
    from onecycle.results.pictures import predict_pictures
    from onecycle.results.report.sprites import heated

    resize = weights.recipe.get("resize") or "crop"
    picture = read_picture(content, weights.image_size, resize=resize)
    normal = {"mean": weights.mean, "std": weights.std}
    (guesses,) = predict_pictures(model, [picture], **normal, classes=weights.classes, top=TOP)
    mean, std = (np.float32(numbers) for numbers in normal.values())
    image = torch.from_numpy(((picture / np.float32(255) - mean) / std).transpose(2, 0, 1)[None])
    looked = None
    if layer := choose_layer(model, image):
        heat = grad_cam(model, image, [weights.classes.index(guesses[0].label)], layer)
        looked = heated(picture[None], heat)[0]
    return Explained({guess.label: guess.probability for guess in guesses}, picture, looked)


def answer(
    model: nn.Module, weights: WeightsFile, content: bytes | None
) -> tuple[dict[str, float] | None, str]:
    """What the page shows for a file: the predictions, and pictures or a message as HTML."""
    if content is None:
        return None, ""
    try:
        found = explain(model, weights, content)
    except DataError as error:
        return None, f'<p role="alert">{escape(str(error))}</p>'
    shown = _figure(found.seen, "As the network sees it")
    if found.looked is not None:
        best = next(iter(found.guesses))
        shown += _figure(found.looked, f"Where it looked for {best} (Grad-CAM)")
    return found.guesses, f'<div style="display:flex;flex-wrap:wrap;gap:1.5rem">{shown}</div>'


def _figure(picture: np.ndarray, caption: str) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    data, caption = base64.b64encode(stream.getvalue()).decode(), escape(caption)
    return (
        f'<figure style="margin:0;flex:1;min-width:14rem;max-width:{SHOWN_PX}px">'
        f'<img src="data:image/png;base64,{data}" alt="{caption}" '
        f'style="width:100%;image-rendering:pixelated"><figcaption>{caption}</figcaption></figure>'
    )


def make_page(model: nn.Module, weights: WeightsFile, folder: str) -> Any:
    """The page as gradio's ``Blocks``.

    Args:
        model: of the weights.
        weights: with classes, mean and std.
        folder: for the pictures that are dropped on the page.
    """
    # gradio reads them when it is imported. It would report its use and keep a history.
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder, "GRADIO_SHARE": "False",
    }  # fmt: skip
    import gradio

    name = Path(weights.file).name
    with gradio.Blocks(title=f"onecycle: {name}", analytics_enabled=False) as page:
        gradio.Markdown(
            f"# Try the network\n\n`{name}` was trained on {weights.source} and knows "
            f"{len(weights.classes)} classes. It answers with one of them whatever the picture "
            "shows."
        )
        with gradio.Row():
            with gradio.Column():
                # Not gradio's Image, which reads the file itself and fails on a damaged one.
                file = gradio.File(label="Picture", type="binary", height=180)
                guesses = gradio.Label(label="Predictions", num_top_classes=TOP)
            with gradio.Column():
                shown = gradio.HTML()
        file.change(
            lambda content: answer(model, weights, content),
            file, [guesses, shown], concurrency_limit=1,
        )  # fmt: skip
    return page
