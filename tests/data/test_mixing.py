import numpy as np
import pytest
import torch

from onecycle.data.mixing import Mixing

COUNT = 5


def batch():
    """Image i is 1 in channel i and 0 elsewhere, so that a mean over its pixels is its label."""
    images = torch.eye(COUNT)[:, :, None, None].expand(-1, -1, 20, 16).contiguous()
    return images.to(memory_format=torch.channels_last), torch.arange(COUNT)


def mixed(mixing, epoch=1, index=0):
    return mixing(*batch(), epoch, index)


@pytest.mark.parametrize("mixing", [Mixing(1.0, 0), Mixing(0, 1.0), Mixing(0.3, 1.0)])
def test_an_image_has_as_much_of_each_label_as_the_loss_has(mixing):
    for index in range(50):
        images, first, second, share = mixed(mixing, index=index)
        one_hot = torch.nn.functional.one_hot
        expected = share * one_hot(first, COUNT) + (1 - share) * one_hot(second, COUNT)
        torch.testing.assert_close(images.mean((2, 3)), expected)
        assert 0.5 <= share <= 1 and share.dtype == torch.float32
        assert torch.equal(first.sort().values, torch.arange(COUNT))
        assert torch.equal(second, first.flip(0))


def test_the_images_given_stay_as_they_are_and_the_memory_format_too():
    for mixing in (Mixing(1.0, 0), Mixing(0, 1.0)):
        (images, labels), (before, _) = batch(), batch()
        made, *_ = mixing(images, labels, 1, 0)
        assert torch.equal(images, before)
        assert made.is_contiguous(memory_format=torch.channels_last)


def test_seed_epoch_and_batch_alone_decide():
    state = np.random.get_state()[1].copy()
    torch.manual_seed(1)
    drawn = torch.get_rng_state()
    first = mixed(Mixing(1.0, 1.0, seed=3), 2, 7)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert np.array_equal(np.random.get_state()[1], state)
    torch.rand(5)
    again = mixed(Mixing(1.0, 1.0, seed=3), 2, 7)
    assert all(torch.equal(*pair) for pair in zip(first, again))
    for seed, epoch, index in ((4, 2, 7), (3, 3, 7), (3, 2, 8)):
        other = mixed(Mixing(1.0, 1.0, seed=seed), epoch, index)
        assert not torch.equal(other[0], first[0])


def is_cut(images):
    return bool(((images == 0) | (images == 1)).all())


def test_a_batch_takes_one_of_the_two_at_random():
    cuts = [is_cut(mixed(Mixing(1.0, 1.0), index=index)[0]) for index in range(200)]
    assert 70 < sum(cuts) < 130
    assert not is_cut(mixed(Mixing(1.0, 0))[0]) and is_cut(mixed(Mixing(0, 1.0))[0])


@pytest.mark.parametrize("alpha, expected", [(1.0, 0.75), (0.1, 0.929), (50.0, 0.54)])
def test_alpha_says_how_evenly_two_images_are_blended(alpha, expected):
    # Of Beta(alpha, alpha), the mean of the larger part.
    shares = [mixed(Mixing(alpha, 0), index=index)[-1].item() for index in range(1000)]
    assert np.mean(shares) == pytest.approx(expected, abs=0.02)


def test_a_pasted_part_is_a_rectangle_of_the_images_proportions():
    sizes = []
    for index in range(100):
        images, first, *_ = mixed(Mixing(0, 1.0), index=index)
        other = (images[0].argmax(0) != 0).nonzero()
        if len(other):
            top, left = other.min(0).values.tolist()
            bottom, right = (other.max(0).values + 1).tolist()
            assert len(other) == (bottom - top) * (right - left)
            if top > 0 and left > 0 and bottom < 20 and right < 16:
                sizes.append((bottom - top, right - left))
    assert len(set(sizes)) > 5
    assert all(abs(height / 20 - width / 16) < 0.1 for height, width in sizes)


def test_labels_may_be_probabilities():
    images, labels = batch()
    soft = torch.nn.functional.one_hot(labels).float()
    _, first, second, share = Mixing(1.0, 0)(images, soft, 1, 0)
    assert first.shape == second.shape == (COUNT, COUNT)
