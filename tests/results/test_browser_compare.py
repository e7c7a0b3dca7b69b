"""The comparison of runs in a browser: ``make test-browser``."""

import pytest
from browsing import keep_screenshot
from made_runs import make_run

from onecycle.results.compare import compare

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("count, classes", [(2, 10), (12, 100)])
def test_only_tables_scroll_sideways_and_charts_are_read_by_key(browser, tmp_path, count, classes):
    names = [f"a-class-with-a-long-name-{k}" for k in range(classes)]
    folders = [
        make_run(
            tmp_path / f"{k}", wrong=range(3 * k, 9 * k + 1), images=300, classes=names,
            name=f"{'a-long-name-' * 8}{k}", epochs=3 + k, files=True,
        )
        for k in range(count)
    ]  # fmt: skip
    file = tmp_path / "compare.html"
    file.write_text(compare(folders, out_dir=tmp_path), "utf-8")
    browser.get(file.as_uri())
    for width in (390, 1280):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        tall = browser.execute_script(
            "return Math.max(...[...document.querySelectorAll('tr')].map(e => e.offsetHeight))"
        )
        assert tall < 200  # no name is squeezed into a column of letters
        keep_screenshot(browser, f"compare-{count}-{width}.png")
    plot = browser.find_element("css selector", ".plot")
    plot.send_keys("\ue011")  # Home
    readout = browser.find_element("css selector", ".readout").text
    assert readout.startswith("epoch 1: ") and readout.count("%") == count
    assert browser.get_log("browser") == []
