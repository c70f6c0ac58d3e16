"""The page of an episode in a real browser: the slider, its keys, clicks into timelines, colours, print, no request."""

import numpy as np
import pytest
from feeders_for_tests import two_bus_feeder
from test_episode import STEPS, Params, episode

from gridjax.episode import write_episode

pytestmark = pytest.mark.browser


def shown(browser):
    """The table of the step: values by name."""
    script = "return [...document.querySelectorAll('#step tr')].map(r => [...r.cells].map(c => c.textContent))"
    return dict(browser.execute_script(script))


def test_the_slider_shows_each_step(browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    env, rows = episode(unsolved=(2,))
    write_episode(tmp_path / "e.html", env, Params(), rows, two_bus_feeder(), title="<img src=x onerror=alert(1)>")
    browser.get_log("browser")
    browser.get((tmp_path / "e.html").as_uri())
    assert browser.find_element(By.TAG_NAME, "h1").text == "<img src=x onerror=alert(1)>"
    slider, now = browser.find_element(By.ID, "time"), browser.find_element(By.ID, "now")
    browser.execute_script("arguments[0].focus()", slider)
    cursors = []
    for k in range(STEPS):
        assert now.text.startswith(f"step {k + 1} of {STEPS}")
        values = shown(browser)
        assert float(values["reward"]) == rows.reward[k]
        assert values["loss kw"] == ("\u2013" if k == 2 else f"{1.5 * k:g}")
        assert values["tap <b>r</b>"] == f"{round(rows.next_observation[k, 6], 5):g}"
        assert ("not solved" in now.text) == (k == 2)
        script = "return [...document.querySelectorAll('.buses path')].map(e => e.className.baseVal)"
        classes = browser.execute_script(script)
        assert (classes == ["none", "none"]) == (k == 2)
        cursors.append(browser.execute_script("return document.querySelector('.cursor').getAttribute('d')"))
        slider.send_keys(Keys.ARROW_RIGHT)
    assert len(set(cursors)) == STEPS
    slider.send_keys(Keys.HOME)
    assert now.text.startswith("step 1 of")
    # A click into a timeline goes to its step.
    chart = browser.find_element(By.ID, "timeline-voltage")
    width = chart.size["width"]
    from selenium.webdriver.common.action_chains import ActionChains

    at = (78 + (990 - 78) * (4 + 0.5) / STEPS) / 1000 * width - width / 2
    ActionChains(browser).move_to_element_with_offset(chart, round(at), 0).click().perform()
    assert now.text.startswith("step 5 of")
    browser.find_element(By.ID, "play").click()
    assert browser.find_element(By.ID, "play").text == "Stop"
    assert browser.get_log("browser") == []


def test_what_is_printed_has_no_controls(browser, tmp_path):
    from matplotlib.image import imread
    from selenium.webdriver.common.by import By

    write_episode(tmp_path / "e.html", *episode()[:1], Params(), episode()[1], two_bus_feeder())
    browser.get((tmp_path / "e.html").as_uri())
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert len(np.unique(np.round(imread(tmp_path / "page.png")[..., :3] * 255).reshape(-1, 3), axis=0)) > 20
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not browser.find_element(By.ID, "play").is_displayed()
        assert not browser.find_element(By.ID, "time").is_displayed()
        assert browser.find_element(By.ID, "timeline-voltage").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
