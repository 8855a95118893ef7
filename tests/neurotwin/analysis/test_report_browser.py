"""The page of a report in a real browser: sorting, filtering, cards, both widths, light and dark, no errors.

Needs Chromium, its driver and the package selenium; where one is missing, these tests are skipped.
"""

import pytest

from neurotwin.analysis.report import load_run
from neurotwin.analysis.report_page import html_page

CSS = "css selector"


@pytest.fixture(scope="module")
def pages(made_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    one, two, big = (load_run(made_runs / name) for name in ("a", "b", "big"))
    for name, runs in {"one": [one], "two": [one, two], "big": [big]}.items():
        (folder / f"{name}.html").write_text(html_page(runs, compare=name == "two"), encoding="utf-8")
    return folder


@pytest.fixture
def show(chromium, pages):
    """Open a page at a width, in light or dark; what the console said must be nothing when the test ends."""

    def show(name, width=1400, scheme="light"):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.get(f"file://{pages / name}.html")
        return chromium

    yield show
    assert [entry for entry in chromium.get_log("browser") if entry["level"] != "DEBUG"] == []


def column(browser, title):
    """What the visible rows of the table of units show under a heading."""
    return browser.execute_script(
        """const heads = [...document.querySelectorAll("#units thead th")].map(h => h.textContent);
        const index = heads.indexOf(arguments[0]);
        return [...document.querySelectorAll("#units tbody tr:not(.open)")].filter(r => !r.hidden)
            .map(r => r.cells[index].textContent);""",
        title,
    )


def head(browser, title):
    return next(b for b in browser.find_elements(CSS, "#units thead button") if b.text == title)


def test_headings_sort_and_what_is_nan_stays_last(show):
    browser = show("one")
    for expected_down in (True, False):
        head(browser, "BPS").click()
        shown = column(browser, "BPS")
        assert shown[-2:] == ["NaN", "NaN"]
        numbers = [float(text) for text in shown[:-2]]
        assert numbers == sorted(numbers, reverse=expected_down) and len(set(numbers)) > 5
    head(browser, "session").click()
    assert column(browser, "session") == ["ada_0"] * 10 + ["bea_1"] * 10


def test_ids_sort_as_numbers(show):
    browser = show("big")
    head(browser, "unit").click()
    shown = [int(text) for text in column(browser, "unit")]
    assert shown == sorted(shown) and len(shown) == 1000


def test_filters_narrow_and_clear(show):
    browser = show("one")
    count = browser.find_element(CSS, "#count")
    assert count.text == "20 of 20 units"
    browser.find_element(CSS, "#f-text").send_keys("ada v1")
    assert count.text == "5 of 20 units" and set(column(browser, "area")) == {"V1"}
    browser.find_element(CSS, "#f-session option[value=bea_1]").click()
    assert count.text == "0 of 20 units"
    browser.find_element(CSS, "button[type=reset]").click()
    browser.execute_async_script("setTimeout(arguments[0], 0)")
    assert count.text == "20 of 20 units"
    browser.find_element(CSS, "#f-least").send_keys("0.3")
    assert all(float(text) >= 0.2995 for text in column(browser, "BPS")) and 0 < len(column(browser, "BPS")) < 18


def test_a_row_opens_its_card_and_closes_it(show):
    browser = show("one")
    row = browser.find_elements(CSS, "#units tbody tr")[3]
    button = row.find_element(CSS, "button")
    button.click()
    card = browser.find_element(CSS, "#units tr.open .card")
    assert "Unit 3 of ada_0, V1" in card.text and "bits per spike" in card.text and "size_deg" in card.text
    assert len(card.find_elements(CSS, "svg.chart path.told")) == 2  # a trace and a PSTH
    pictures = card.find_elements(CSS, ".pictures img")
    assert [picture.get_attribute("naturalWidth") for picture in pictures] == ["40", "40"]
    assert button.get_attribute("aria-expanded") == "true"
    button.send_keys("\ue007")  # the Enter key
    assert not browser.find_elements(CSS, "#units tr.open") and button.get_attribute("aria-expanded") == "false"
    row.click()
    head(browser, "BPS").click()  # a card must not stay behind under another row
    assert not browser.find_elements(CSS, "#units tr.open")


def test_best_median_and_worst_are_drawn_and_lead_to_their_cards(show):
    browser = show("one")
    drawn = browser.find_elements(CSS, ".typical .drawn")
    assert [len(part.find_elements(CSS, "svg")) for part in drawn[:3]] == [2, 2, 2]
    folded = browser.find_element(CSS, "details:has(.typical)")
    assert not folded.find_elements(CSS, "svg")
    folded.find_element(CSS, "summary").click()
    browser.execute_async_script("setTimeout(arguments[0], 50)")
    assert len(folded.find_elements(CSS, "svg")) == 6
    jump = browser.find_element(CSS, "[data-go]")
    unit = jump.text.removeprefix("unit ")
    jump.click()
    assert browser.find_element(CSS, "#units tr.open .card h3").text.startswith(f"Unit {unit} of ")


def test_changed_units_are_marked_and_found(show):
    browser = show("two")
    assert len(browser.find_elements(CSS, "#units tr.changed")) == 2
    browser.find_element(CSS, "#f-changed").click()
    assert column(browser, "run") == ["net (b)"] * 2 and all("→" in text for text in column(browser, "change"))


@pytest.mark.parametrize("name", ["one", "two", "big"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_page(show, name, width):
    browser = show(name, width)
    browser.find_elements(CSS, "#units tbody tr")[1].find_element(CSS, "button").click()
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    card = browser.find_element(CSS, "#units .card").rect
    assert card["width"] <= width - 40
    cut = browser.execute_script(
        """return [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest(".wide") && !e.closest("pre")).map(e => e.outerHTML.slice(0, 80));"""
    )
    assert cut == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper(show, scheme):
    browser = show("one", scheme=scheme)
    browser.find_elements(CSS, "#units tbody tr")[1].find_element(CSS, "button").click()
    colors = browser.execute_script(
        """const of = (element, key) => getComputedStyle(element)[key].match(/[\\d.]+/g).slice(0, 3).map(Number);
        const first = selector => document.querySelector(selector);
        return {paper: of(document.body, "backgroundColor"), ink: of(document.body, "color"),
            note: of(first(".note"), "color"), link: of(first("td button"), "color"),
            axis: of(first(".chart text"), "fill"),
            recorded: of(first("path.seen"), "stroke"), twin: of(first("path.told"), "stroke"),
            curve: of(first("path.c0"), "stroke")};"""
    )
    paper = luminance(colors.pop("paper"))
    assert (paper > 0.5) == (scheme == "light")
    least = {"ink": 7, "note": 4.5, "link": 4.5, "axis": 4.5}  # text; lines need 3 (WCAG 2.2, 1.4.3 and 1.4.11)
    for name, color in colors.items():
        bright, dark = sorted([paper, luminance(color)], reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= least.get(name, 3), name


def luminance(color):
    """Relative luminance of an sRGB color (WCAG 2.2)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_nothing_is_asked_of_a_network(show):
    browser = show("one")
    browser.get_log("performance")
    browser.refresh()
    asked = [
        entry["message"] for entry in browser.get_log("performance") if "Network.requestWillBeSent" in entry["message"]
    ]
    assert asked and not [message for message in asked if '"url":"http' in message or '"url":"ws' in message]
