import os

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def cifar10_dir():
    """The real images, where the variable CIFAR10_DIR names them."""
    if "CIFAR10_DIR" not in os.environ:
        pytest.skip("CIFAR10_DIR is not set: the real images are not here")
    return os.environ["CIFAR10_DIR"]
