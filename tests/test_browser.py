"""The drawing pad in a real browser: JupyterLab runs the notebook, real pointer events draw digits."""

import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
if not (CHROME and shutil.which("chromedriver")):
    pytest.skip("needs a browser: chromium and chromedriver", allow_module_level=True)
NEEDS = "needs `pip install selenium jupyterlab`"
pytest.importorskip("jupyterlab", reason=NEEDS)
webdriver = pytest.importorskip("selenium.webdriver", reason=NEEDS)
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

# Strokes as points on the canvas, its middle at (0, 0), in pixels of 280 × 280
CIRCLE = [(55 * math.sin(t / 12 * math.pi), -90 * math.cos(t / 12 * math.pi)) for t in range(25)]
DRAWINGS = {
    0: [CIRCLE],
    1: [[(0, -95), (0, 0), (0, 95)]],
    7: [[(-60, -90), (0, -90), (60, -90), (30, -30), (0, 30), (-20, 95)]],
    4: [[(-40, -90), (-50, -40), (-55, 5), (0, 5), (60, 5)], [(35, -50), (35, 20), (35, 95)]],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory, copy_project):
    """A browser on a copy of the project, opened in JupyterLab, with all its cells run in smoke mode."""
    folder = tmp_path_factory.mktemp("lab")
    copy_project(folder / "project")
    settings = folder / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # keeps cells in the page that are out of sight
    log = open(folder / "log", "w")  # noqa: SIM115
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token="],
        cwd=folder / "project",
        env=os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "A6_SMOKE": "1"},
        stdout=log,
        stderr=log,
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        address = None
        for _ in range(120):
            found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/lab", (folder / "log").read_text())
            if found:
                address = f"http://localhost:{found[1]}/lab/tree/A6.ipynb"
                break
            time.sleep(0.5)
        assert address, (folder / "log").read_text()
        browser.get(address)
        wait = WebDriverWait(browser, 300)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"))
        wait.until(
            lambda b: (
                "Idle"
                in b.find_element(By.CSS_SELECTOR, ".jp-Notebook-ExecutionIndicator")
                .get_attribute("data-status")
                .title()
            )
        )
        browser.find_element(By.XPATH, "//div[contains(@class, 'lm-MenuBar-itemLabel') and text()='Run']").click()
        wait.until(
            lambda b: b.find_elements(
                By.XPATH, "//div[contains(@class, 'lm-Menu-itemLabel') and text()='Run All Cells']"
            )
        )
        browser.find_element(
            By.XPATH, "//div[contains(@class, 'lm-Menu-itemLabel') and text()='Run All Cells']"
        ).click()
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".drawing-pad canvas"))
        yield browser
    finally:
        browser.quit()
        server.terminate()
        server.wait(30)
        log.close()


def draw(page, strokes) -> None:
    canvas = page.find_element(By.CSS_SELECTOR, ".drawing-pad canvas")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    for points in strokes:
        actions = webdriver.ActionChains(page, duration=30)
        actions.move_to_element_with_offset(canvas, *map(round, points[0])).click_and_hold()
        for x, y in points[1:]:
            actions.move_to_element_with_offset(canvas, round(x), round(y))
        actions.release().perform()


def shown(page) -> str:
    return page.find_element(By.CSS_SELECTOR, ".drawing-pad").get_attribute("data-digit")


def test_no_cell_failed(page):
    assert not page.find_elements(By.CSS_SELECTOR, "[data-mime-type='application/vnd.jupyter.error']")


@pytest.mark.parametrize("digit", DRAWINGS)
def test_a_drawn_digit_is_read_and_cleared(page, digit):
    draw(page, DRAWINGS[digit])
    WebDriverWait(page, 20).until(lambda _: shown(page) == str(digit))
    bars = page.find_elements(By.CSS_SELECTOR, ".drawing-pad .bar")
    assert len(bars) == 10
    widths = [bar.size["width"] for bar in bars]
    assert max(widths) == widths[digit] > 90
    if "A6_SCREENSHOT" in os.environ and digit == 4:
        page.find_element(By.CSS_SELECTOR, ".drawing-pad").screenshot(os.environ["A6_SCREENSHOT"])
    page.find_element(By.CSS_SELECTOR, ".drawing-pad button").click()
    WebDriverWait(page, 20).until(lambda _: shown(page) == "")


def test_what_was_drawn_meanwhile_is_sent_too(page):
    draw(page, [DRAWINGS[7][0][:3]])
    draw(page, [DRAWINGS[7][0][2:]])
    WebDriverWait(page, 20).until(lambda _: shown(page) == "7")


def test_the_copy_in_the_repository_is_untouched():
    assert "drawing-pad" in Path("A6.ipynb").read_text()
