"""The drawing pad in a real browser: JupyterLab runs the notebook, real pointer events draw digits."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest

from conftest import ROOT

CHROME = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
if not (CHROME and shutil.which("chromedriver")):
    pytest.skip("needs a browser: chromium and chromedriver", allow_module_level=True)
NEEDS = "needs `pip install selenium jupyterlab`"
pytest.importorskip("jupyterlab", reason=NEEDS)
webdriver = pytest.importorskip("selenium.webdriver", reason=NEEDS)
By = pytest.importorskip("selenium.webdriver.common.by").By
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait

# Strokes as points on the canvas, its middle at (0, 0), in pixels of 280 × 280
DRAWINGS = {
    7: [[(-60, -90), (0, -90), (60, -90), (30, -30), (0, 30), (-20, 95)]],
    4: [[(-40, -90), (-50, -40), (-55, 5), (0, 5), (60, 5)], [(35, -50), (35, 20), (35, 95)]],
}
FLAGS = "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"
NOTEBOOK_IS_IDLE = "//*[contains(@class, 'jp-Notebook-ExecutionIndicator') and @data-status='idle']"
CELL_HAS_STARTED = "//*[contains(@class, 'jp-InputPrompt') and translate(text(), '[]: ', '') != '']"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of JupyterLab on a copy of the project, in smoke mode."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT, folder / "project", ignore=shutil.ignore_patterns(".*", "runs", "trials", "__pycache__"))
    notebook = folder / "project" / "A6.ipynb"  # the pad is to read with trained weights
    smoke, trained = r"RUNS / \"weights.pt\")", r"\"results/weights.pt\")"
    source = notebook.read_text(encoding="utf-8")
    assert smoke in source
    notebook.write_text(source.replace(f"device), {smoke}", f"device), {trained}"), encoding="utf-8")
    settings = folder / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}', encoding="utf-8")  # keeps cells in the page that are out of sight
    command = "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token="
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=folder / "project", env=environment, stderr=subprocess.PIPE, text=True
    )
    address = next(filter(None, (re.search(r"http://localhost:\d+/lab", line) for line in process.stderr)))[0]
    threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would wait once the pipe is full
    yield address
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def page(server):
    """A browser in which all cells of the notebook have been run."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    for flag in FLAGS:
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))) as browser:
        browser.get(f"{server}/tree/A6.ipynb")
        wait_for(browser, By.XPATH, NOTEBOOK_IS_IDLE)
        for _ in range(10):  # a kernel that does not listen yet drops what it is told
            for kind, text in (("MenuBar", "Run"), ("Menu", "Run All Cells")):
                place = By.XPATH, f"//div[contains(@class, 'lm-{kind}-itemLabel') and text()='{text}']"
                wait_for(browser, *place).click()
            time.sleep(5)
            if browser.find_elements(By.XPATH, CELL_HAS_STARTED):
                break
        wait_for(browser, By.CSS_SELECTOR, ".drawing-pad canvas")
        yield browser


def wait_for(page, *place):
    """The element at `place`, once it is there."""
    return WebDriverWait(page, 300).until(lambda _: page.find_elements(*place))[0]


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
    page.find_element(By.CSS_SELECTOR, ".drawing-pad button").click()
    WebDriverWait(page, 20).until(lambda _: shown(page) == "")


def test_what_was_drawn_meanwhile_is_sent_too(page):
    draw(page, [DRAWINGS[7][0][:3]])
    draw(page, [DRAWINGS[7][0][2:]])
    WebDriverWait(page, 20).until(lambda _: shown(page) == "7")
