"""The page in a real browser, with a camera that shows a photograph."""

import csv
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest

from tests.server.running import JPEG, PHOTO, Server, run_server

selenium = pytest.importorskip("selenium")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="Chromium is not installed"),
]
TOKEN = "a-token-of-more-than-16-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with run_server() as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    video = folder / "camera.mjpeg"
    image = cv2.imread(str(PHOTO))
    assert image is not None
    frame = cv2.imencode(".jpg", cv2.resize(image, (640, 480)))[1].tobytes()
    video.write_bytes(frame * 30)
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--no-first-run", "--window-size=1100,900", f"--user-data-dir={folder / 'profile'}"),
        *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
        f"--use-file-for-fake-video-capture={video}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def wait(browser: Any, condition: Callable[[Any], Any]) -> Any:
    return WebDriverWait(browser, 60).until(condition)


def text(browser: Any, name: str) -> str:
    return browser.find_element(By.ID, name).text


def open_page(browser: Any, server: Server) -> None:
    browser.get("http://{}:{}/".format(*server.address))
    wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#model option"))


def test_photos(server: Server, browser: Any, tmp_path: Path) -> None:
    open_page(browser, server)
    broken = tmp_path / "=broken.jpg"
    broken.write_bytes(b"no image")
    files = browser.find_element(By.ID, "files")
    files.send_keys(f"{PHOTO}\n{broken}")
    wait(browser, lambda b: "1 face in 1 photo" in text(b, "status"))
    (face,) = server.ask(body=PHOTO.read_bytes(), headers=JPEG).json["images"][0]["faces"]
    cells = [c.text for c in browser.find_elements(By.CSS_SELECTOR, "#rows td")]
    low, high = face["age_interval"]
    assert cells[:5] == [PHOTO.name, "1", f"{face['age']:g}", f"{low}–{high}", face["age_group"]]
    assert cells[5] == face["gender"]
    captions = [c.text for c in browser.find_elements(By.TAG_NAME, "figcaption")]
    assert captions[0] == f"{PHOTO.name}: 1 face" and captions[1].startswith("=broken.jpg: ")
    # The box lies over the face that is seen.
    drawn = browser.find_element(By.CSS_SELECTOR, "#photos .over").rect
    shown = browser.find_element(By.CSS_SELECTOR, "#photos img").rect
    width = cv2.imread(str(PHOTO)).shape[1]
    left = (drawn["x"] - shown["x"]) / shown["width"] * width
    assert left == pytest.approx(face["box"][0], abs=0.02 * width)
    lines = [*csv.reader(io.StringIO(browser.execute_script("return toCsv()")))]
    assert lines[1][0] == PHOTO.name and float(lines[1][7]) == face["age"]
    assert lines[2][0] == "'=broken.jpg" and lines[2][-1]  # No formula.
    assert '"age_interval"' in browser.execute_script("return toJson()")
    browser.find_element(By.ID, "clear").click()
    assert not browser.find_elements(By.TAG_NAME, "figure")


def test_camera(server: Server, browser: Any) -> None:
    open_page(browser, server)
    browser.find_element(By.ID, "camera").click()
    wait(browser, lambda b: "1 face" in text(b, "rate"))
    # In one call: each frame draws them anew.
    labels = browser.execute_script("return document.getElementById('overlay').textContent")
    assert "female" in labels
    browser.find_element(By.TAG_NAME, "body").send_keys(Keys.ESCAPE)
    wait(browser, lambda b: text(b, "camera") == "Start the camera")
    assert not browser.find_element(By.ID, "live").is_displayed()


def test_nothing_from_elsewhere_and_no_errors(server: Server, browser: Any) -> None:
    browser.get_log("browser")  # of the tests before
    open_page(browser, server)
    script = "return performance.getEntriesByType('resource').map(e => e.name)"
    names = browser.execute_script(script)
    origin = "http://{}:{}/".format(*server.address)
    assert names and all(name.startswith(origin) for name in names)
    logged = [line for line in browser.get_log("browser") if "favicon" not in line["message"]]
    assert not logged
    answer = server.ask("/")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert b"http" not in answer.body + server.ask("/page.css").body


def test_fits_a_phone_and_works_by_keyboard(server: Server, browser: Any) -> None:
    browser.set_window_size(390, 800)
    try:
        open_page(browser, server)
        inside, whole = browser.execute_script(
            "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
        )
        assert whole <= inside
        seen = []
        for _ in range(6):
            webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
            seen.append(browser.switch_to.active_element.get_attribute("id"))
        assert seen[:5] == ["model", "groups", "size", "files", "camera"]
    finally:
        browser.set_window_size(1100, 900)


def test_token(browser: Any) -> None:
    with run_server(AGENET_TOKEN=TOKEN) as server:
        browser.get("http://{}:{}/".format(*server.address))
        field = wait(browser, lambda b: b.find_element(By.ID, "token"))
        wait(browser, lambda b: field.is_displayed())
        field.send_keys(TOKEN, Keys.ENTER)
        wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#model option"))
        assert not field.is_displayed()
        browser.find_element(By.ID, "camera").click()
        wait(browser, lambda b: "frames a second" in text(b, "rate"))
        browser.find_element(By.ID, "camera").click()
