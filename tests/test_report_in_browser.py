"""The page about a run in a browser: the clip objective moves; nothing breaks or is asked of a network."""

import re
import shutil

import numpy as np
import pytest

from sb3_trust import PPO, TRPO
from sb3_trust.report.page import write_report
from sb3_trust.trust_region.record import read_trust_region
from tests.runs import make_run, write_yaml

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium with a chromedriver")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
ATTACK = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "ppo", PPO)
    write_report(folder)
    return folder


@pytest.fixture
def page(browser, recorded):
    return opened(browser, recorded)


def opened(browser, folder, width=1280, scheme="light"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get((folder / "report.html").as_uri())
    return browser


def drawn(page):
    """What of the figure depends on the controls."""
    names = ("clipped", "flat", "bars-moved", "bars-stopped")
    return {name: page.find_element(By.ID, name).get_attribute("d") for name in names}


def stopped(page):
    """Samples of the chosen sign, and of both, where the gradient is zero, by the label."""
    text = page.find_element(By.ID, "clip-share").text
    one, both = (int(found.replace(",", "")) for found in re.findall(r"% \(([\d,]+)\)", text))
    return one, both


def by_script(page, epsilon):
    page.execute_script(
        "const s = document.getElementById('epsilon'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        epsilon,
    )


def choose_sign(page, sign):
    page.find_element(By.CSS_SELECTOR, f'input[name="advantage"][value="{sign}"]').click()


def test_the_slider_moves_the_curve_by_keyboard_and_by_script(page):
    slider = page.find_element(By.ID, "epsilon")
    assert slider.get_attribute("value") == "0.2"  # the run's own
    before = drawn(page)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert slider.get_attribute("value") == "0.205"
    moved = drawn(page)
    assert moved["clipped"] != before["clipped"] and moved["flat"] != before["flat"]
    assert page.find_element(By.ID, "epsilon-value").text == "0.205"
    slider.send_keys(Keys.ARROW_LEFT)
    assert drawn(page) == before
    by_script(page, 0.01)
    assert drawn(page)["clipped"] not in (before["clipped"], moved["clipped"])
    assert "1.010" in page.find_element(By.ID, "clip-description").get_attribute("textContent")
    page.find_element(By.ID, "own-epsilon").send_keys(Keys.ENTER)
    assert drawn(page) == before


def test_the_kink_is_where_the_clip_range_ends(page):
    for sign in (1, -1):
        choose_sign(page, sign)
        for epsilon in (0.1, 0.5):
            by_script(page, epsilon)
            left, right = (x_of(page, ratio) for ratio in (0, 2))
            kink = [float(x) for x in re.findall(r"[ML]([\d.]+),", drawn(page)["clipped"])][1]
            assert kink == pytest.approx(left + (right - left) * (1 + sign * epsilon) / 2, abs=0.02)
            region = page.find_element(By.ID, "clip-region")
            edge, width = (float(region.get_attribute(name)) for name in ("x", "width"))
            assert (edge if sign > 0 else edge + width) == pytest.approx(kink, abs=0.02)


def x_of(page, ratio):
    """Where a ratio is in the picture: the unclipped objective goes from 0 to 2."""
    ends = re.findall(r"[ML]([\d.]+),", page.find_element(By.ID, "unclipped").get_attribute("d"))
    return float(ends[0 if ratio == 0 else -1])


def test_the_share_is_that_of_the_runs_own_samples(page, recorded):
    record = read_trust_region(recorded)
    chooser = Select(page.find_element(By.ID, "update"))
    labels = set()
    for index in (0, 4):
        chooser.select_by_index(index)
        update = record.updates[index]
        for sign in (1, -1):
            choose_sign(page, sign)
            for epsilon in (0.01, 0.03, 0.2):
                by_script(page, epsilon)
                flat = (update.ratios.astype(float) - 1) * np.sign(update.advantages) > epsilon
                own = int((flat & (np.sign(update.advantages) == sign)).sum())
                assert stopped(page) == (own, int(flat.sum()))
                labels.add(page.find_element(By.ID, "clip-share").text)
    assert len(labels) == 12


def test_flipping_the_sign_and_choosing_an_update_change_the_figure(page):
    first = drawn(page)
    choose_sign(page, -1)
    flipped = drawn(page)
    assert all(flipped[name] != first[name] for name in ("clipped", "flat", "bars-moved"))
    Select(page.find_element(By.ID, "update")).select_by_index(3)
    other = drawn(page)
    assert other["clipped"] == flipped["clipped"] and other["bars-moved"] != flipped["bars-moved"]


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_breaks_at_any_width_in_light_and_dark(width, scheme, browser, recorded):
    browser.get_log("browser"), browser.get_log("performance")
    page = opened(browser, recorded, width, scheme)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    sides = "return [...document.images].map(i => [i.complete, i.naturalWidth > 100, i.currentSrc === i.src])"
    images = page.execute_script(sides)
    assert len(images) > 10 and all(image == [True, True, scheme == "light"] for image in images)
    ground = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    plot = page.find_element(By.ID, "clip-plot").rect
    assert plot["x"] >= 0 and plot["x"] + plot["width"] <= width
    assert page.get_log("browser") == []
    requests = re.findall(r'"url":"(\w+):', str(page.get_log("performance")))
    assert set(requests) <= {"file", "data", "about"}


def test_without_recorded_ratios_only_the_objective_is_drawn(browser, tmp_path):
    folder = make_run(tmp_path / "trpo", TRPO, records=False)
    write_yaml(folder, "args.yml", {"algo": "trpo", "env": ATTACK})
    write_report(folder)
    browser.get_log("browser")
    page = opened(browser, folder)
    before = page.find_element(By.ID, "clipped").get_attribute("d")
    page.find_element(By.ID, "epsilon").send_keys(Keys.ARROW_RIGHT)
    assert page.find_element(By.ID, "clipped").get_attribute("d") != before
    assert not page.find_elements(By.ID, "bars-moved") and not page.find_elements(By.ID, "update")
    assert page.find_element(By.ID, "clip-share").text == (
        "With A > 0 the gradient is zero where the ratio is above 1.205."
    )
    # what the run's environment is called is text, here as in the title
    assert page.title == f"TRPO on {ATTACK}" and page.find_element(By.TAG_NAME, "h1").text == page.title
    assert page.execute_script("return window.pwned") is None and page.get_log("browser") == []
