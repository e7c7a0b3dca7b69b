"""The page of ``onecycle app`` in a browser, as a person uses it: ``make test-browser``."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from browsing import keep_screenshot, wait_for
from PIL import Image

from models import CustomResNet
from onecycle.results.weights import save_weights

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog", "owl", "emu", "cow", "pig"]

pytestmark = pytest.mark.browser


@pytest.fixture
def address(tmp_path):
    """The address of the page; afterwards it must have ended as it was told, and left nothing."""
    pytest.importorskip("gradio")
    torch.manual_seed(0)
    data = {"source": "zoo", "classes": CLASSES, "mean": [0.5] * 3, "std": [0.2] * 3}
    weights = save_weights(
        tmp_path / "own.safetensors", CustomResNet(6).state_dict(), data=data, recipe={}
    )
    (tmp_path / "temporary").mkdir()
    log = tmp_path / "log.txt"
    with open(log, "wb") as stream:
        server = subprocess.Popen(
            [sys.executable, "-m", "onecycle", "app", str(weights), "--no-browser"],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "temporary")},
            stdout=stream, stderr=stream,
        )  # fmt: skip

    def found():
        said = log.read_text("utf-8")
        assert server.poll() is None, said
        return "Ctrl-C" in said and said.split()[1]

    try:
        yield wait_for(found, "the server")
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 143
        assert "Traceback" not in log.read_text("utf-8")
        assert not list((tmp_path / "temporary").iterdir())
    finally:
        server.kill()
        server.wait(30)


def resize(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    return browser.execute_script("return document.documentElement.scrollWidth")


def test_a_picture_gives_predictions_and_a_map_and_another_file_one_line(
    browser, address, tmp_path
):
    Image.new("RGB", (90, 60), "gold").save(tmp_path / "gold.png")
    (tmp_path / "text.png").write_text("no picture")
    assert address.startswith("http://127.0.0.1:")
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(address)

    def drop(name):
        field = wait_for(
            lambda: browser.find_elements("css selector", "input[type=file]"), "the field"
        )
        field[0].send_keys(str(tmp_path / name))

    def pictures():
        return browser.find_elements("css selector", "figure img[alt]")

    drop("gold.png")
    assert [p.get_attribute("naturalWidth") for p in wait_for(pictures, "pictures")] == ["32", "32"]
    text = browser.find_element("tag name", "body").text
    assert sum(name in text for name in CLASSES) == 5 and "%" in text
    for width in (390, 1280):
        assert resize(browser, width) <= width
        keep_screenshot(browser, f"app-{width}.png")
    browser.find_element("css selector", "button[aria-label=Clear]").click()
    wait_for(lambda: not pictures(), "an empty page")
    drop("text.png")
    (said,) = wait_for(
        lambda: browser.find_elements("css selector", "p[role=alert]"), "the message"
    )
    assert "not a picture of a known format" in said.text and "Traceback" not in said.text

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"].split("/")[2]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and event["params"]["request"]["url"].startswith("http")
    }
    assert asked == {address.split("/")[2]}
