import numpy as np
import pytest
import torch

from onecycle.optim.orthogonal import QUINTICS, minimax_quintics, orthogonalise


def polar(matrices):
    """The exact nearest orthogonal matrices."""
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    return u @ v


def likeness(made, matrices):
    """The cosine to the exact ones, of each matrix."""
    exact = polar(matrices).flatten(-2)
    return torch.cosine_similarity(made.float().flatten(-2), exact, dim=-1)


def matrices_of(singular, count, columns):
    """Random ones with these singular values times their norm."""
    rows = len(singular)
    u, v = (torch.linalg.qr(torch.randn(count, size, rows))[0] for size in (rows, columns))
    return (u * singular) @ v.mT


def newton_schulz(matrices):
    """Jordan's five rounds of one quintic, the usual iteration."""
    x = (matrices / matrices.norm(dim=(-2, -1), keepdim=True)).bfloat16()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (3, 32, 72), (2, 2, 8, 90)])
def test_singular_values_become_one_at_any_scale(shape):
    made = torch.linalg.svdvals(orthogonalise(1e-4 * torch.randn(shape)).float())
    assert 0.9 < made.min() and made.max() < 1.1


@pytest.mark.parametrize("columns", [96, 300])
@pytest.mark.parametrize("least", [1e-2, 5e-2])  # 0.003 and 0.013 of the norm, as in gradients
def test_it_is_nearer_to_the_exact_matrix_than_five_rounds_of_one_quintic(least, columns):
    singular = torch.logspace(np.log10(least), 0, 96)
    matrices = matrices_of(singular / singular.norm(), 4, columns)
    ours, usual = (likeness(f(matrices), matrices) for f in (orthogonalise, newton_schulz))
    assert (ours > 0.985).all() and (ours > usual).all()


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_few_large_singular_values_stay_in_bounds(rank):
    matrices = torch.randn(8, 40, rank) @ torch.randn(8, rank, 90)
    assert torch.linalg.svdvals(orthogonalise(matrices).float()).max() < 1.1


def test_nothing_gives_nothing():
    assert orthogonalise(torch.zeros(4, 9)).count_nonzero() == 0


def test_the_quintics_have_the_least_error_that_is_possible():
    first, *others = minimax_quintics(0.05, 3)
    x = np.linspace(0.05, 1.01, 10_001)

    def error(a, b, c):
        return 1 - (a * x + b * x**3 + c * x**5)

    worst = np.abs(error(*first)).max()
    # As large as that, with alternating signs, four times: so no other quintic is better.
    signs = np.sign(error(*first)[np.abs(error(*first)) > worst - 1e-3])
    assert (np.diff(signs) != 0).sum() == 3
    for quintic in others:
        x = 1 - error(*first)
        first = quintic
        assert np.abs(error(*first)).max() < 0.7 * worst
        worst = np.abs(error(*first)).max()
    assert len(QUINTICS) == 4
