"""A report's page in a real browser: from a file, at three widths, in light and dark, and without a mouse."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from runs import run

from regraft.cli import main

pytestmark = pytest.mark.engines

ENGINE = Path(__file__).parents[2] / "scripts" / "engines" / "chromium"
QUIET = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
QUIET += ["disable-component-update", "disable-sync"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a sweep of three axes, 48 runs in 16 rows."""
    root, draw = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for depth in (1, 2):
        for lr in (1e-4, 1e-3, 1e-2, 1e-1):
            for dropout in (0.0, 0.5):
                for seed in range(3):
                    skill = 0.4 + 0.1 * depth + lr
                    says = {f"{letter}{n}": letter if draw.uniform() < skill else "h" for letter in "abcdefgh" for n in range(10)}
                    config = {"model": {"name": "mlp", "depth": depth}, "optimizer": {"name": "sgd", "lr": lr}}
                    config |= {"head": {"name": "linear", "dropout": dropout}, "seed": seed}
                    overrides = [f"model.depth={depth}", f"optimizer.lr={lr}", f"head.dropout={dropout}", f"seed={seed}"]
                    run(root / f"{depth}-{lr}-{dropout}-{seed}", says, config, overrides=overrides, command="regraft train -m x")
    assert main(["report", str(root)]) == 0
    return root / "report" / "index.html"


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    subprocess.run([ENGINE], check=True, timeout=400)
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for word in QUIET:
        options.add_argument(f"--{word}")
    with webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver")) as driver:
        yield driver


def opened(browser, page, width=1400, scheme="light"):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.set_window_size(width, 1000)
    metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page.as_uri())
    WebDriverWait(browser, 20).until(rows)  # a busy machine may still be reading it
    return browser


def rows(browser):
    return browser.execute_script("return [...document.querySelectorAll('.board tbody tr:not(.more)')].map(r => r.innerText)")


def drawn(browser):
    """All figures are scrolled to, and drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    browser.execute_script("document.querySelectorAll('.chart').forEach(c => c.scrollIntoView())")
    for chart in browser.find_elements("css selector", ".chart"):
        browser.execute_script("arguments[0].scrollIntoView()", chart)
        WebDriverWait(browser, 20).until(lambda _, chart=chart: chart.find_elements("css selector", "svg"))
    return browser.find_elements("css selector", ".chart svg")


@pytest.mark.parametrize("width", [360, 900, 1800])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_every_width_in_light_and_dark(browser, page, width, scheme):
    opened(browser, page, width, scheme)
    assert len(drawn(browser)) == 11
    wide, seen = browser.execute_script("return [document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen, "the page itself never scrolls sideways"
    over = browser.execute_script(
        "return [...document.querySelectorAll('.chart svg')].filter(s => s.getBoundingClientRect().width > innerWidth).length"
    )
    assert over == 0
    ink, paper, text = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor,"
        " getComputedStyle(document.querySelector('.chart svg .mark-text text')).fill]"
    )
    light = [sum(map(int, colour[colour.index("(") + 1 : -1].split(",")[:3])) for colour in (ink, paper, text)]
    assert abs(light[0] - light[1]) > 450
    assert abs(light[2] - light[1]) > 450, "a figure's words stand out from the page too"
    assert (light[1] > 600) == (scheme == "light")
    troubles = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert troubles == []


def test_it_asks_nobody_for_anything(browser, page):
    browser.get_log("performance")
    opened(browser, page)
    drawn(browser)
    sent = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert sent, "the page itself is told of"
    assert [message for message in sent if '"url":"http' in message] == []


def test_it_is_used_without_a_mouse(browser, page):
    from selenium.webdriver import ActionChains, Keys

    opened(browser, page)
    keys = ActionChains(browser)
    whole = rows(browser)
    assert len(whole) == 16
    assert whole[0].startswith("★")

    def to(wanted):
        """Tab on until the focus is there."""
        for _ in range(60):
            keys.send_keys(Keys.TAB).perform()
            if browser.execute_script("return document.activeElement.matches(arguments[0])", wanted):
                return
        raise AssertionError(f"no way to {wanted} by the keyboard")

    to("a.skip")
    assert browser.execute_script("return document.activeElement.getBoundingClientRect().left >= 0"), "the way past the head shows itself"
    to("input[type=search]")
    keys.send_keys("0.1").perform()
    assert 0 < len(rows(browser)) < 16
    keys.send_keys(Keys.BACKSPACE * 3).perform()
    assert len(rows(browser)) == 16
    to("select")
    keys.send_keys(Keys.ARROW_DOWN).perform()
    assert len(rows(browser)) == 8
    keys.send_keys(Keys.ARROW_UP).perform()
    to("details > summary")
    keys.send_keys(Keys.ENTER).perform()
    to(".columns input")
    before = len(browser.find_elements("css selector", ".board thead th"))
    keys.send_keys(Keys.SPACE).perform()
    assert len(browser.find_elements("css selector", ".board thead th")) == before - 1
    keys.send_keys(Keys.SPACE).perform()
    to("th button")
    keys.send_keys(Keys.ENTER).perform()
    head = browser.execute_script("return document.activeElement.closest('th').getAttribute('aria-sort')")
    assert head == "ascending", "the focus stays, and what is sorted is said"
    to("td button")
    keys.send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.getAttribute('aria-expanded')") == "true"
    told = browser.find_element("css selector", "tr.more").text
    assert told.count("seed") >= 3
    links = browser.execute_script("return [...document.querySelectorAll('tr.more a')].map(a => a.href)")
    assert all(Path(link.removeprefix("file://")).is_dir() for link in links)
