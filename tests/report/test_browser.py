"""The page in headless Chromium: no errors, no requests, and the map answers pointer and keyboard."""

import json

import pytest


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("width", [380, 1280])
def test_the_page_opens_without_errors_or_requests(browser, pages, number, width):
    browser.set_window_size(width, 900)
    browser.get_log("performance")
    browser.get(pages[number].as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {pages[number].as_uri()}
    sections = [element.get_attribute("id") for element in browser.find_elements("css selector", "main section")]
    assert sections == ["comparison"] * number + ["training", "figures", "confusions", "retrieval", "map", "gap"]
    assert "owned" not in browser.title
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page scrolls sideways"
    blank = "return [...document.images].filter(i => !i.complete || (i.src && !i.naturalWidth)).length"
    assert browser.execute_script(blank) == 0


def test_the_map_answers(browser, pages):
    from selenium.webdriver import ActionChains, Keys

    browser.get(pages[0].as_uri())
    plot = browser.find_element("css selector", ".plot")
    tip = plot.find_element("css selector", ".tip")
    assert not tip.is_displayed()
    point = plot.find_elements("css selector", ".pt")[5]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    assert tip.is_displayed()
    shown = tip.find_element("css selector", "p").text
    assert shown
    on = plot.find_element("css selector", ".pt.on").get_attribute("aria-label")
    assert " ".join(shown.split()) == " ".join(on.split())
    assert tip.find_element("css selector", "img").size["width"] > 0
    svg = plot.find_element("css selector", "svg")
    browser.execute_script("arguments[0].focus()", svg)
    svg.send_keys(Keys.ARROW_RIGHT)
    labels = [mark.get_attribute("aria-label") for mark in plot.find_elements("css selector", ".pt")]
    moved = plot.find_element("css selector", ".pt.on").get_attribute("aria-label")
    assert moved in labels
    svg.send_keys(Keys.ESCAPE)
    assert not tip.is_displayed()
