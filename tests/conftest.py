import os
import shutil
import signal

import pytest
import torch

from onecycle.training.compute import set_seed

os.environ.setdefault("MPLBACKEND", "Agg")
if not torch.cuda.is_available():  # before anything imports Triton
    os.environ["TRITON_INTERPRET"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # of nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """What a test draws without a seed is the same alone, after others, and in each run."""
    set_seed(0)


@pytest.fixture(scope="session", autouse=True)
def decoded_pictures(tmp_path_factory):
    """Decoded pictures are kept in a folder of the tests, and not in the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def cifar10_dir():
    """The real images, where the variable CIFAR10_DIR names them."""
    if "CIFAR10_DIR" not in os.environ:
        pytest.skip("CIFAR10_DIR is not set: the real images are not here")
    return os.environ["CIFAR10_DIR"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium, which notes what pages complain about and ask for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.fail("chromium is missing: apt-get install chromium chromium-driver", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "window-size=1400,1000", f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()
