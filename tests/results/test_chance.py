import pytest
from scipy.stats import binomtest

from onecycle.results.compare.chance import mcnemar, wilson_interval


@pytest.mark.parametrize("right, total", [(0, 1), (1, 1), (0, 40), (40, 40), (9123, 10_000)])
def test_the_interval_is_that_of_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert wilson_interval(right, total) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(
    "first, second", [(0, 0), (5, 5), (0, 9), (30, 12), (12, 30), (4000, 4200)]
)
def test_the_test_is_the_binomial_one_of_the_images_on_which_two_runs_differ(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)
