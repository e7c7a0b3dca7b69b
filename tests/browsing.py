"""Waiting and screenshots, for the tests that open a browser."""

import os
import time
from pathlib import Path

PATIENCE_S = 300


def wait_for(condition, what):
    """What ``condition`` gives once it is true."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not come within {PATIENCE_S} s"
        time.sleep(0.2)
    return found


def keep_screenshot(browser, name):
    if "SCREENSHOTS" in os.environ:
        folder = Path(os.environ["SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(folder / name))
