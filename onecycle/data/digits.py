"""scikit-learn's handwritten digits: small, and offline."""

from __future__ import annotations

import torch

from onecycle.data.dataset import IMAGE_SIZE_PX, ImageDataset, Images


def load_digits(num_test: int = 360, *, image_size: int = IMAGE_SIZE_PX) -> Images:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 grey to RGB. Offline.

    Args:
        num_test: size of the test set, 1..1796; the classes keep their proportions.
        image_size: height and width of the images, in pixels.

    Returns:
        Training and test images, always the same split.

    Raises:
        UsageError: ``num_test`` is out of its range.

    Source:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), test part.
    """
    from sklearn import datasets  # here, so that CIFAR-10 does without it

    digits = datasets.load_digits()
    grey = torch.from_numpy(digits.images * (255 / 16)).float().unsqueeze(1)
    large = torch.nn.functional.interpolate(grey, size=(image_size, image_size), mode="bilinear")
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy()
    everything = ImageDataset(images, digits.target, [str(k) for k in range(10)], "digits")
    train, test = everything.hold_out(num_test)
    test.name = everything.name
    return train, test
