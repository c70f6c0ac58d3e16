"""The page in a real browser: values under the pointer, zooming, keys, and no request."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import gridjax
from gridjax import drawing, plot
from gridjax.feeder import Bus, Feeder, Line, Load, SequenceCode, Source

pytestmark = pytest.mark.browser


def feeder() -> Feeder:
    """Three buses in a row and one beside the middle, with coordinates; bus names are markup."""
    bases = 4.16 / 3**0.5
    places = {"src": (0.0, 0.0), "<b>m</b>": (4.0, 0.0), "end": (8.0, 1.0), "lat": (4.0, 4.0)}
    return Feeder(
        name="<img src=x onerror=alert(1)>",
        frequency_hz=60.0,
        buses=tuple(Bus(name, bases, (2,) if name == "lat" else (1, 2, 3), x, y) for name, (x, y) in places.items()),
        sources=(Source("grid", "src.1.2.3", 4.16),),
        codes=(
            SequenceCode("seq", 3, 0.2, 0.4, 0.5, 1.2, 10.0, 5.0),
            SequenceCode("one", 1, 0.3, 0.6, 0.3, 0.6, 0.0, 0.0),
        ),
        lines=(
            Line("l1", "src.1.2.3", "<b>m</b>.1.2.3", "seq", 1.0, rating_a=200.0),
            Line("l2", "<b>m</b>.1.2.3", "end.1.2.3", "seq", 1.0),
            Line("l3", "<b>m</b>.2", "lat.2", "one", 0.7),
        ),
        loads=(
            Load("s1", "end.1.2.3.0", 3, "wye", 1, 4.16, 500.0, 200.0),
            Load("s2", "lat.2.0", 1, "wye", 1, 2.4, 90.0, 20.0),
        ),
    )


@functools.cache
def solved():
    grid = gridjax.compile(feeder())
    return grid, jax.jit(gridjax.solve)(grid, grid.nominal)


@pytest.fixture
def page(browser, tmp_path):
    grid, flow = solved()
    plot.page(feeder(), grid, grid.nominal, flow, tmp_path / "page.html")
    browser.get_log("browser")
    browser.get((tmp_path / "page.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def point_at(page, selector, along=0.0):
    """Moves the pointer to an element's middle, whatever its size."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    script = (
        "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2]"
    )
    x, y = page.execute_script(script, selector)
    actions = ActionBuilder(page)
    actions.pointer_action.move_to_location(round(x), round(y))
    actions.perform()
    return actions


def rows(page):
    script = "return [...document.querySelectorAll('#details tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    return page.execute_script(script)


def heading(page):
    return page.execute_script("return document.querySelector('#details h3').textContent")


def view(page):
    return [
        float(x)
        for x in page.execute_script("return document.getElementById('oneline').getAttribute('viewBox')").split()
    ]


def test_pointing_at_a_bus_shows_its_voltages(page):
    grid, flow = solved()
    v, volts = np.asarray(flow.v), np.asarray(gridjax.voltages(grid, flow))
    first = 0
    for i, bus in enumerate(feeder().buses):
        point_at(page, f'[data-bus="{i}"]')
        assert heading(page) == f"bus {bus.name}"
        shown = rows(page)
        assert [row[0] for row in shown] == [str(n) for n in bus.nodes]
        assert [row[1] for row in shown] == ["-ABC"[n] for n in bus.nodes]
        here = slice(first, first + len(bus.nodes))
        np.testing.assert_allclose([float(row[2]) for row in shown], abs(volts[here]), atol=0.006)
        np.testing.assert_allclose([float(row[3]) for row in shown], abs(v[here]), atol=6e-6)
        np.testing.assert_allclose([float(row[4]) for row in shown], np.degrees(np.angle(v[here])), atol=0.006)
        first += len(bus.nodes)


def test_pointing_at_a_branch_shows_its_flows(page):
    grid, flow = solved()
    edges = drawing.branches(feeder())
    values = drawing.branch_values(grid, grid.nominal, flow, edges)
    b = next(i for i, edge in enumerate(edges) if edge.name == "l1")
    point_at(page, f'[data-branch="{b}"]')
    assert heading(page) == "line.l1"
    shown = np.array([[float(cell) for cell in row[1:]] for row in rows(page)])
    np.testing.assert_allclose(shown[:, 0], values.amps[b], atol=0.006)
    np.testing.assert_allclose(shown[:, 1] + 1j * shown[:, 2], values.kva[b], atol=0.01)
    text = page.execute_script("return document.getElementById('details').textContent")
    assert f"loss {values.loss_kva[b].real:.3f} kW" in text and f"loading {100 * values.loading[b]:.1f} %" in text


def test_wheel_zooms_drag_moves_and_the_button_shows_all(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.by import By

    whole = view(page)
    svg = page.find_element(By.ID, "oneline")
    ActionChains(page).scroll_from_origin(ScrollOrigin.from_element(svg), 0, -300).perform()
    zoomed = view(page)
    assert zoomed[2] == pytest.approx(whole[2] / np.e) and zoomed[3] == pytest.approx(whole[3] / np.e)
    ActionChains(page).move_to_element(svg).click_and_hold().move_by_offset(60, 30).release().perform()
    moved = view(page)
    assert moved[0] < zoomed[0] and moved[1] < zoomed[1] and moved[2] == zoomed[2]
    page.find_element(By.ID, "whole").click()
    assert view(page) == whole


def test_keys_walk_and_the_search_finds(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    svg = page.find_element(By.ID, "oneline")
    page.execute_script("document.getElementById('oneline').focus()")
    svg.send_keys(Keys.ARROW_DOWN)
    assert heading(page) in ("bus src", "bus <b>m</b>")
    svg.send_keys(Keys.ARROW_DOWN)
    svg.send_keys(Keys.ARROW_UP)
    assert heading(page) in ("bus src", "bus <b>m</b>")
    find = page.find_element(By.ID, "find")
    find.send_keys("end", Keys.ENTER)
    assert heading(page) == "bus end"
    point_at(page, '[data-bus="0"]')
    assert heading(page) == "bus end"  # it is kept
    find.clear()
    find.send_keys("l3", Keys.ENTER)
    assert heading(page) == "line.l3"
    svg.send_keys(Keys.ESCAPE)
    assert "Point at" in page.execute_script("return document.getElementById('details').textContent")


def test_nothing_is_requested_and_names_stay_text(page):
    loaded = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert loaded == []
    assert page.execute_script("return document.querySelectorAll('img, b').length") == 0
    assert page.execute_script("return document.querySelector('h1').textContent") == feeder().name
    blocked = (
        "const i = new Image(); return new Promise(done => {"
        "i.onerror = () => done('blocked'); i.onload = () => done('loaded');"
        "i.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw='; })"
    )
    assert page.execute_script(blocked) == "blocked"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_the_page_looks_like_something(page, tmp_path):
    from matplotlib.image import imread

    page.save_screenshot(str(tmp_path / "page.png"))
    image = imread(tmp_path / "page.png")
    diagram = page.execute_script(
        "const r = document.getElementById('oneline').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
    )
    x, y, w, h = (round(a) for a in diagram)
    inside = image[y : y + h, x : x + w, :3].reshape(-1, 3)
    assert len(np.unique(np.round(inside * 255).astype(int), axis=0)) > 20
    assert inside.std() > 0.02


def test_an_unconverged_flow_has_its_banner(browser, tmp_path):
    from selenium.webdriver.common.by import By

    grid, flow = solved()
    bad = dataclasses.replace(flow, converged=np.asarray(False), v=flow.v.at[0].set(np.nan))
    plot.page(feeder(), grid, grid.nominal, bad, tmp_path / "bad.html")
    browser.get((tmp_path / "bad.html").as_uri())
    assert "Not converged" in browser.find_element(By.CLASS_NAME, "banner").text
    point_at(browser, '[data-bus="0"]')
    assert rows(browser)[0][2:] == ["\u2013"] * 3
    assert browser.get_log("browser") == []
