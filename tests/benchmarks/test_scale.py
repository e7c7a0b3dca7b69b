import numpy as np
import pytest
import torch
from small_benchmarks import Tiny

from benchmarks import scale
from benchmarks.scale_figure import draw_scale
from benchmarks.tables import render_scale
from onecycle.training.compute import Compute

CPU = Compute(torch.device("cpu"))
MACHINE = {"device": "cpu", "device_name": "a processor", "threads": 2, "amx": False}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scale, "CustomResNet", Tiny)
    monkeypatch.setattr(scale, "BATCH", 16)


def test_images_on_the_disk_are_those_that_a_run_reads(tmp_path):
    args = scale.parse(["--scratch", str(tmp_path)])
    scale.write_images(tmp_path / "images.npy", 700)
    found = scale.measure("images", 700, args, CPU)
    assert found["images_per_s"] > 0 and found["kept_on_device"]
    images = np.load(tmp_path / "images.npy")
    assert images.shape == (700, 32, 32, 3) and len(np.unique(images[699])) > 100


@pytest.mark.parametrize(("axis", "value"), [("classes", 3), ("image_size", 40), ("processes", 1)])
def test_a_point_that_is_trained_has_its_rate(axis, value):
    assert scale.measure(axis, value, scale.parse([]), CPU)["images_per_s"] > 0


def test_slopes_are_those_of_the_last_two_points():
    runs = [
        {"axis": "image_size", "value": value, "images_per_s": 1e6 / value**2, "memory_bytes": 7}
        for value in (32, 64, 224)
    ]
    summary = scale.summarise(runs)
    assert summary["image_size"]["images_per_s"]["slope"] == pytest.approx(-2)
    assert summary["image_size"]["memory_bytes"]["slope"] == pytest.approx(0)
    result = {"runs": runs, "summary": summary, "machine": MACHINE}
    assert "| 224 | 20 | 0 |" in render_scale(result) and "-2.00" in render_scale(result)
    assert len([axes for axes in draw_scale(result).axes if axes.has_data()]) == 2
