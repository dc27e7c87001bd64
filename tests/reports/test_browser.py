"""The page in a real browser: Debian's chromium, driven by playwright. Skipped where one lacks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.reports.run_files import write_run
from unigame.reports.page.write import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium here (Debian: apt-get install chromium)", allow_module_level=True)
sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

QUIET = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Ratio of each text's colour to the background that it really has, by WCAG 2.
LOW_CONTRAST = """
() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const lum = (c) => { const [r, g, b] = c.slice(0, 3).map((v) => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; }
    return [255, 255, 255]; };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e.namespaceURI.endsWith("svg");
    const one = lum(parse(svg ? style.fill : style.color)), two = lum(behind(e));
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) low.push(e.tagName + " " + e.textContent.trim().slice(0, 30) + " " + ratio);
  }
  return low;
}
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    finding = {"symptom": "C dead", "says": "rate is 0", "knob": "raise it", "figures": {}}
    run = write_run(tmp_path_factory.mktemp("run") / "game", findings=[finding], examples=6)
    return write_report([run]).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page on a phone; any error or any request that leaves the file fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 844})
    opened, faults = context.new_page(), []
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda asked: asked.url.startswith("http") and faults.append(asked.url))
    opened.goto(address)
    yield opened
    context.close()
    assert faults == []


def shown(page: Any) -> int:
    return page.locator(".card:visible").count()


def test_pictures_load_and_nothing_is_wider_than_a_phone(page: Any) -> None:
    loaded = page.evaluate("[...document.images].map((i) => i.complete && i.naturalWidth > 0)")
    assert len(loaded) == 36 and all(loaded)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_filters_filter_by_mouse_and_by_keyboard(page: Any) -> None:
    assert shown(page) == 6
    page.get_by_label("the attack broke it").check()
    assert shown(page) == 1 and "1 of 6" in page.locator("[role=status]").text_content()
    page.get_by_label("the attack broke it").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".card:visible").first.get_attribute("data-kind") == "redrawn"
    page.get_by_label("all (").check()
    assert shown(page) == 6


def test_the_slider_moves_by_mouse_and_by_keyboard(page: Any) -> None:
    compare = page.locator(".compare").first
    slider, top = compare.locator("input"), compare.locator(".top")

    def cut() -> str:
        return str(top.evaluate("(e) => getComputedStyle(e).clipPath"))

    before = cut()
    slider.focus()
    page.keyboard.press("ArrowRight")
    moved = cut()
    assert moved != before and slider.input_value() == "51"
    box = slider.bounding_box()
    slider.click(position={"x": 0.9 * box["width"], "y": box["height"] / 2})
    assert int(slider.input_value()) > 80 and cut() != moved


def test_every_control_is_reached_by_tab_and_shows_focus(page: Any) -> None:
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        where = page.evaluate(
            "(() => { const e = document.activeElement; return [e.tagName, e.type || '', "
            "getComputedStyle(e).outlineStyle]; })()"
        )
        if where[0] != "BODY":
            reached.add((where[0], where[1]))
            assert where[2] != "none", where
    assert {("A", ""), ("INPUT", "radio"), ("INPUT", "range"), ("SUMMARY", "")} <= reached


@pytest.mark.parametrize("media", ["light", "dark", "print"])
def test_text_contrast(page: Any, media: str) -> None:
    if media == "print":
        page.emulate_media(media="print", color_scheme="dark")
    else:
        page.emulate_media(color_scheme=media)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate(LOW_CONTRAST) == []


def test_print_shows_the_settings_and_no_sliders(page: Any) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("pre").is_visible() and not page.locator(".compare").first.is_visible()
