"""The page in a real browser: Debian's chromium, driven by playwright. Skipped where one lacks.

``UNIGAME_SCREENSHOTS=runs/demo pytest tests/reports/test_browser.py -k screenshots`` writes the
pictures of docs/report.md anew, of that run.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.imports import PACKAGE
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


def test_two_filters_hold_together(page: Any) -> None:
    page.get_by_label("yes or no (1)").check()
    assert shown(page) == 1
    assert page.locator(".card:visible").first.get_attribute("data-kind") == "wrong"
    page.get_by_label("the attack broke it").check()
    assert shown(page) == 0 and "0 of 6" in page.locator("[role=status]").text_content()
    page.get_by_label("any", exact=True).check()
    assert shown(page) == 1


def test_maps_and_timeline_are_drawn_within_their_frames(page: Any) -> None:
    outside = page.evaluate(
        """() => [...document.querySelectorAll('.chart > svg')].flatMap((svg) => {
          const frame = svg.getBoundingClientRect();
          return [...svg.querySelectorAll('.mark, .stop, .bar, .line, text')].filter((e) => {
            const b = e.getBoundingClientRect();
            return b.left < frame.left - 1 || b.right > frame.right + 1 ||
              b.top < frame.top - 1 || b.bottom > frame.bottom + 1; })
            .map((e) => svg.getAttribute('aria-label').slice(0, 20) + ' ' + e.outerHTML); })"""
    )
    assert outside == []
    assert page.locator(".chart .mark[transform]").count() == 48
    assert page.locator(".chart .stop").count() == 5 and page.locator(".chart rect.bar").count()


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
    settings = page.get_by_role("region", name="Settings of game")
    assert settings.is_visible() and not page.locator(".compare").first.is_visible()
    assert not page.locator(".filters").is_visible()


# ---- pictures for docs/report.md -----------------------------------------------------------------
VIEWS = {  # file -> (width, height, colours, what is at the top)
    "report.webp": (1100, 760, "light", "header"),
    "report-gallery.webp": (1100, 760, "light", ".gallery"),
    "report-dynamics.webp": (1100, 900, "light", "[id$=-dynamics]"),
    "report-phone-dark.webp": (390, 844, "dark", "[id$=-dynamics] .charts"),
}
MOST_BYTES = 150_000


@pytest.mark.skipif("UNIGAME_SCREENSHOTS" not in os.environ, reason="UNIGAME_SCREENSHOTS=RUN")
def test_screenshots(browser: Any, tmp_path: Path) -> None:
    run = Path(os.environ["UNIGAME_SCREENSHOTS"])
    written = write_report([run], tmp_path / "report.html")
    for name, (width, height, colours, top) in VIEWS.items():
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=colours
        )
        opened = context.new_page()
        opened.goto(written.as_uri())
        opened.locator(top).first.evaluate("(e) => e.scrollIntoView({behavior: 'instant'})")
        picture = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
        context.close()
        out = PACKAGE.parent / "docs" / "images" / name
        picture.save(out, "WEBP", quality=82, method=6)
        assert picture.size == (width, height) and out.stat().st_size < MOST_BYTES
