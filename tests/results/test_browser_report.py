"""The report in a browser, as a person reads it: ``make test-browser``.

Screenshots go to the folder that the variable SCREENSHOTS names, where it is set.
"""

import base64
import json
import os
from pathlib import Path

import numpy as np
import pytest

from onecycle.records import EpochRecord, History, StepRecord
from onecycle.results.evaluation import evaluate_predictions
from onecycle.results.grad_cam import ErrorMaps
from onecycle.results.report import build_report

CLASSES = ("cat", "dog", "<script>document.title = 'hacked'</script>", "猫")
NUM_ERRORS = 150
WIDTHS_PX = (360, 800, 1400)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def evaluation():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    said = labels.copy()
    said[:NUM_ERRORS] = (labels[:NUM_ERRORS] + rng.integers(1, 4, NUM_ERRORS)) % 4
    probabilities = rng.dirichlet(np.ones(4), 400) * 0.4
    probabilities[np.arange(400), said] += 0.6
    return evaluate_predictions(probabilities, labels, CLASSES)


@pytest.fixture(scope="module")
def file(evaluation, tmp_path_factory):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (400, 32, 32, 3), dtype=np.uint8)
    heat = rng.random((3, 32, 32))
    lrs = np.geomspace(1e-5, 0.1, 40).tolist()
    smoothed = (2 - np.sin(np.linspace(0, 2, 40))).tolist()
    run = {
        "recipe": {"epochs": 5, "seed": 0},
        "data": {"source": "made up", "mean": (0.5,) * 3, "std": (0.2,) * 3},
        "learning_rate": {
            "lrs": lrs, "losses": smoothed, "smoothed": smoothed, "lr_max": 0.01, "lr_min": 0.0005,
            "rule": "so",
        },
        "machine": {"device": "cpu", "versions": {"torch": "2.14.1"}},
    }  # fmt: skip
    history = History(
        epochs=[
            EpochRecord(
                epoch=e, lr=0.01, train_loss=2 / e, train_accuracy=1 - 0.5 / e,
                test_loss=2.2 / e, test_accuracy=0.9 - 0.4 / e, train_seconds=1.0, test_seconds=0.1,
            )
            for e in range(1, 6)
        ],
        steps=[StepRecord(i, 0.001 * (i + 1), 1.0) for i in range(100)],
    )  # fmt: skip
    html = build_report(
        run, evaluation, images, title="A run", history=history,
        samples=(np.zeros((4, 3, 32, 32)), [0, 1, 2, 3]),
        maps=ErrorMaps("layer3", evaluation.wrong[:3], heat, heat), command="onecycle train",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("it's a folder") / "report.html"
    path.write_text(html, "utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """The report, just opened; afterwards it must have asked for nothing and not complained."""
    resize(browser, 1400)
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(file.as_uri())
    yield browser
    assert browser.title == "A run"
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and not event["params"]["documentURL"].startswith("chrome:")  # the browser's own tab
    ]
    # The file itself is there, so the watch works.
    assert {url.split("#")[0] for url in asked if not url.startswith("data:")} == {file.as_uri()}


def resize(browser, width, height=900):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def find(page, selector):
    return page.find_element("css selector", selector)


def shown_tiles(page):
    """True and predicted class of the pictures that can be seen."""
    return page.execute_script(
        "return [...document.querySelectorAll('#errors .tile')].filter(t => t.offsetParent)"
        ".map(t => [+t.dataset.true, +t.dataset.predicted])"
    )


def choose(page, name, label):
    """By the keyboard alone."""
    find(page, f"select[name={name}]").send_keys(label)


def test_opens_with_the_first_errors_and_shows_more_on_request(page, evaluation):
    expected = [[evaluation.labels[i], evaluation.predicted[i]] for i in evaluation.wrong]
    assert shown_tiles(page) == expected[:60]
    assert find(page, ".count").text == f"60 of {NUM_ERRORS} errors shown"
    find(page, ".more").click()
    assert shown_tiles(page) == expected
    assert find(page, ".count").text == f"{NUM_ERRORS} errors"
    assert not find(page, ".more").is_displayed()


def test_of_a_cut_gallery_a_number_says_what_it_is_taken_from(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("onecycle.results.report.failures.MOST_ERRORS", 5)
    monkeypatch.setattr("onecycle.results.report.page.MOST_ERRORS", 5)
    probabilities = np.tile([0.1, 0.6, 0.3], (9, 1))
    evaluation = evaluate_predictions(probabilities, np.arange(9) % 3, ("a", "b", "c"))
    images = np.zeros((9, 32, 32, 3), np.uint8)
    path = tmp_path / "report.html"
    path.write_text(build_report({}, evaluation, images, title="Cut"), "utf-8")
    browser.get(path.as_uri())
    assert find(browser, ".count").text == "5 errors among the 5 most confident"
    find(browser, ".confusion a[data-true='2'][data-predicted='1']").click()
    assert find(browser, ".count").text == "2 errors among the 5 most confident"


def test_filter_works_by_the_keyboard_and_is_taken_back(page, evaluation):
    choose(page, "true", "cat")
    right = int((evaluation.labels[evaluation.wrong] == 0).sum())
    assert len(shown_tiles(page)) == min(right, 60) > 0
    assert all(label == 0 for label, _ in shown_tiles(page))
    choose(page, "predicted", "猫")
    assert shown_tiles(page) == [[0, 3]] * evaluation.confusion[0, 3]
    find(page, ".filter button").send_keys("\ue007")  # Enter
    page.execute_async_script("setTimeout(arguments[0], 50)")
    assert len(shown_tiles(page)) == 60
    assert find(page, "select[name=true]").get_attribute("value") == ""


def test_filter_works_by_the_mouse(page, evaluation):
    find(page, "select[name=predicted]").click()
    find(page, "select[name=predicted] option[value='1']").click()
    expected = int((evaluation.predicted[evaluation.wrong] == 1).sum())
    assert find(page, ".count").text.startswith(
        f"{expected} errors" if expected <= 60 else f"60 of {expected} errors"
    )
    assert all(predicted == 1 for _, predicted in shown_tiles(page))


@pytest.mark.parametrize("how", ["click", "keyboard"])
def test_cell_of_the_confusion_matrix_leads_to_its_errors(page, evaluation, how):
    cell = find(page, ".confusion a[data-true='1'][data-predicted='2']")
    cell.click() if how == "click" else cell.send_keys("\ue007")
    count = evaluation.confusion[1, 2]
    assert cell.text.split()[0] == str(count) and shown_tiles(page) == [[1, 2]] * count
    assert find(page, "select[name=true]").get_attribute("value") == "1"
    assert page.switch_to.active_element.get_attribute("id") == "errors-title"
    top = page.execute_script("return document.activeElement.getBoundingClientRect().top")
    assert -1 <= top < 900


def test_class_of_the_table_leads_to_all_its_errors(page):
    find(page, "th a[data-true='3']").click()
    assert {label for label, _ in shown_tiles(page)} == {3}
    assert find(page, "select[name=predicted]").get_attribute("value") == ""


def test_chart_tells_the_values_under_the_pointer_and_no_longer_without_it(page):
    actions = pytest.importorskip("selenium.webdriver").ActionChains(page)
    plot = find(page, "#curves .plot")
    readout = find(page, "#curves .readout")
    hint = readout.text
    left = -plot.size["width"] // 2 + 3
    actions.scroll_to_element(plot).move_to_element_with_offset(plot, left, 0).perform()
    assert readout.text == "epoch 1: test 50.00%, train 50.00%"
    assert find(page, "#curves .cross").is_displayed()
    actions.move_to_element_with_offset(plot, -left, 0).perform()
    assert readout.text == "epoch 5: test 82.00%, train 90.00%"
    actions.move_to_element(find(page, "h1")).perform()
    assert readout.text == hint and not find(page, "#curves .cross").is_displayed()


def test_chart_is_read_by_the_arrow_keys(page):
    plot = find(page, "#curves .plot")
    left, home = "\ue012", "\ue011"
    plot.send_keys(left)
    assert plot.get_attribute("aria-valuetext") == "epoch 4: test 80.00%, train 87.50%"
    assert find(page, "#curves .readout").text == plot.get_attribute("aria-valuetext")
    plot.send_keys(home, left)  # no further than the first
    assert plot.get_attribute("aria-valuenow") == "0"


def test_everything_that_is_operated_is_reached_by_the_tabulator_and_shows_it(page):
    keys = pytest.importorskip("selenium.webdriver").Keys
    reached = set()
    for _ in range(60):
        page.switch_to.active_element.send_keys(keys.TAB)
        kind, outline = page.execute_script(
            "const e = document.activeElement; return [e.className || e.name || e.tagName,"
            " getComputedStyle(e).outlineStyle]"
        )
        assert outline != "none" or kind == "BODY", kind
        reached.add(kind)
    assert {"A", "plot", "scroll", "true", "predicted", "BUTTON", "more"} <= reached


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_the_width_and_its_texts_have_contrast(page, width, scheme, tmp_path):
    resize(page, width)
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    for colour, least in (("--ink", 7), ("--soft", 4.5), ("--first", 4.5), ("--second", 4.5)):
        assert contrast(page, colour, "--paper") >= least, (colour, scheme)
    assert contrast(page, "--ink", "--wrong", share=0.75) >= 4.5
    assert contrast(page, "--ink", "--right", share=0.65) >= 4.5
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    height = page.execute_script("return document.documentElement.scrollHeight")
    picture = page.execute_cdp_cmd(
        "Page.captureScreenshot",
        {"captureBeyondViewport": True,
         "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}},
    )  # fmt: skip
    file = folder / f"report-{width}-{scheme}.png"
    file.write_bytes(base64.b64decode(picture["data"]))
    assert file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 50_000


def contrast(page, front, back, share=1.0):
    """WCAG's contrast ratio of two colours of the page; ``back`` mixed into the cards' colour."""
    name = lambda variable: page.execute_script(  # noqa: E731
        "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0])", variable
    )
    colour = (
        lambda variable: np.array(  # noqa: E731
            [int(name(variable).strip()[i : i + 2], 16) for i in (1, 3, 5)]
        )
    )
    mixed = share * colour(back) + (1 - share) * colour("--card")

    def luminance(rgb):
        rgb = rgb / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(colour(front)), luminance(mixed)))
    return (high + 0.05) / (low + 0.05)


def test_page_is_printed_with_all_its_parts_and_without_what_only_a_screen_can(page):
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not find(page, ".filter").is_displayed() and not find(page, "nav").is_displayed()
        assert all(part.is_displayed() for part in page.find_elements("tag name", "section"))
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_page_can_be_read_without_its_script(browser, file):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(file.as_uri())
        tiles = browser.find_elements("css selector", "#errors .tile")
        assert len(tiles) == NUM_ERRORS and tiles[-1].is_displayed()
        assert not find(browser, ".filter").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_large_matrix_scrolls_under_its_names(browser, tmp_path):
    labels = np.arange(120) % 40
    evaluation = evaluate_predictions(np.eye(40)[labels], labels, [f"class {k}" for k in range(40)])
    path = tmp_path / "report.html"
    images = np.zeros((120, 32, 32, 3), np.uint8)
    path.write_text(build_report({}, evaluation, images, title="Large"), "utf-8")
    resize(browser, 390)
    browser.get(path.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    left, top, names, heads = browser.execute_script(
        "const area = document.querySelector('.confusion').parentElement;"
        "area.scrollTo(200, 200);"
        "const place = (e) => e.getBoundingClientRect(), box = place(area);"
        "return [box.left, box.top, place(area.querySelector('tbody th')).left,"
        " place(area.querySelector('thead th')).top]"
    )
    assert (names, heads) == pytest.approx((left, top), abs=1)
