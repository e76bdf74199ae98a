"""The report as a person uses it, in a headless Chromium; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawncomparison import drawn_comparison, drawn_slide
from drawnreport import drawn_map, drawn_picture, write_drawn_report

from hnscc_qp.review.comparison import Comparison
from hnscc_qp.review.report import slide_cards, write_report
from hnscc_qp.review.reportpictures import bytes_per_slide

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    path = tmp_path_factory.mktemp("browser") / "report.html"
    return path, write_drawn_report(path)


@pytest.fixture
def page(browser: Any, report: tuple[Path, Comparison]) -> Iterator[Any]:
    with opened(browser, report[0]) as found:
        yield found


class opened:  # noqa: N801
    """A page that fails its test if it complains or asks for anything beyond itself."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, height: int = 900) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: object, *_: object) -> None:
        self.context.close()
        if kind is None:
            # That one is about the tests, which read the overlays back.
            assert [text for text in self.complaints if "willReadFrequently" not in text] == []
            assert [url for url in self.requests[1:] if not url.startswith("data:")] == []


def set_slider(page: Any, votes: int) -> None:
    page.evaluate(
        "votes => { const s = document.getElementById('threshold'); s.value = votes;"
        " s.dispatchEvent(new Event('input', {bubbles: true})); }",
        votes,
    )


def painted(page: Any, card: int) -> int:
    """Pixels of a card's overlay that are not transparent, once it shows the slider's threshold."""
    canvas = f"[data-card='{card}'] canvas"
    page.locator(canvas).scroll_into_view_if_needed()
    page.wait_for_function(
        "selector => (document.querySelector(selector).dataset.state ?? '').startsWith("
        "document.getElementById('threshold').value + '/')",
        arg=canvas,
    )
    page.wait_for_timeout(60)  # the picture of votes is decoded in the background
    count: int = page.evaluate(
        """selector => {
          const c = document.querySelector(selector);
          const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
          let n = 0;
          for (let i = 3; i < d.length; i += 4) n += d[i] > 0;
          return n;
        }""",
        canvas,
    )
    return count


def test_pictures_load(page: Any) -> None:
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every(image => image.complete)")
    sizes = page.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    assert len(sizes) == 3 and all(width >= 160 and height >= 100 for width, height in sizes)


@pytest.mark.parametrize("votes", [1, 3, 4, 11, 13, 16])
def test_the_slider_updates_counts_and_overlays(
    page: Any, report: tuple[Path, Comparison], votes: int
) -> None:
    comparison = report[1]
    set_slider(page, votes)
    for name in ("development", "test"):
        slides = [slide for slide in comparison.slides if (slide.side == "test") == (name == "test")]
        wanted = {
            "tp": sum(slide.truth == "positive" and slide.max_votes >= votes for slide in slides),
            "fn": sum(slide.truth == "positive" and slide.max_votes < votes for slide in slides),
            "fp": sum(slide.truth == "negative" and slide.max_votes >= votes for slide in slides),
            "tn": sum(slide.truth == "negative" and slide.max_votes < votes for slide in slides),
        }
        for key, value in wanted.items():
            cell = page.locator(f"[data-count={key}][data-of={name}]")
            assert cell.text_content() == str(value), (name, key)
        level = next(one for one in comparison.sweep if one.set == name and one.votes == votes)
        assert level.specificity is not None
        assert (
            f"({level.specificity.count}/{level.specificity.of})"
            in page.locator(f"[data-count=specificity][data-of={name}]").text_content()
        )
    assert page.locator("[data-level-text]").text_content() == f"{votes}/16 = {votes / 16:.4f}"
    for number, card in enumerate(slide_cards(comparison, {})):
        # The drawn pictures are small enough to have a pixel for each block.
        scored = drawn_map(400, 320, max_votes=card.slide.max_votes).votes
        assert painted(page, number) == int((scored >= votes).sum()), card.slide.image
        called = "positive" if card.slide.max_votes >= votes else "negative"
        assert page.locator(f"[data-card='{number}'] [data-call]").text_content() == f"AI: {called}"


def test_overlays_go_and_come_back(page: Any) -> None:
    def shown(selector: str) -> bool:
        seen: str = page.evaluate(
            "selector => getComputedStyle(document.querySelector(selector)).visibility", selector
        )
        return seen == "visible"

    assert shown(".gallery canvas") and shown(".gallery .outlines")
    page.locator("#show-ai").uncheck()
    assert not shown(".gallery canvas") and shown(".gallery .outlines")
    page.locator("#show-ai").check()
    page.locator("#show-truth").uncheck()
    assert shown(".gallery canvas") and not shown(".gallery .outlines")
    set_slider(page, 16)
    before = painted(page, 0)
    page.locator("#show-low").check()
    page.wait_for_timeout(100)
    assert painted(page, 0) > before


def test_everything_can_be_done_by_keyboard(page: Any) -> None:
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("[data-level-text]").text_content().startswith("10/16")
    assert page.locator("#threshold").get_attribute("aria-valuetext") == "10 of 16, a score of 0.6250"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "show-ai"
    page.keyboard.press("Space")
    assert not page.locator("#show-ai").is_checked()
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "reset"
    page.keyboard.press("Enter")
    assert page.locator("#threshold").input_value() == "11"
    page.locator("[data-enlarge='0']").focus()
    page.keyboard.press("Enter")
    first = page.locator("[data-large-name]").text_content()
    assert page.locator("#large").is_visible() and first == "S3.tif"
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-large-name]").text_content() != first
    page.keyboard.press("Escape")
    assert not page.locator("#large").is_visible()
    assert page.evaluate("document.activeElement.dataset.enlarge") == "0"


def test_the_filter_shows_wrong_calls_alone(page: Any) -> None:
    page.locator("input[value=wrong]").check()
    names = page.locator(".card:visible h3").all_text_contents()
    assert names == ["S3.tif"]
    set_slider(page, 13)  # above the false alarm's highest score
    assert page.locator(".card:visible").count() == 0
    assert page.locator("[data-shown]").text_content() == "0 of 3 slides"


def test_a_place_can_be_copied_for_qupath(page: Any) -> None:
    card = page.locator(".card", has_text="S3.tif")
    card.locator("summary").click()
    card.locator("button", has_text="Copy place").click()
    page.wait_for_selector("[data-toast]:has-text('Copied')")
    place = page.evaluate("navigator.clipboard.readText()")
    assert place == "S3.tif @ 100, 120 · 6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a11"
    card.locator("button", has_text="Copy script").click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text.startsWith('getCurrentViewer'))")
    assert page.evaluate("navigator.clipboard.readText()") == (
        "getCurrentViewer().setCenterPixelLocation(100, 120); "
        "selectObjects { it.getID().toString() == '6f0c9b54-3c5e-4f0e-9a3b-6f5b1b0d7a11' }"
    )


def test_nothing_sticks_out_at_the_width_of_a_phone(browser: Any, report: tuple[Path, Comparison]) -> None:
    with opened(browser, report[0], width=375, height=740) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        bar = page.locator(".bar").bounding_box()
        assert bar["height"] < 740 / 4 and bar["width"] <= 375
        page.locator("#threshold").scroll_into_view_if_needed()
        assert page.locator("#threshold").bounding_box()["width"] > 120


def test_on_paper_all_thresholds_and_all_overlays_are_there(page: Any) -> None:
    page.emulate_media(media="print")
    # In the same turn: the browser lays the pages out as soon as its listeners are through.
    assert page.evaluate(
        "(dispatchEvent(new Event('beforeprint')),"
        " [...document.querySelectorAll('.gallery canvas')].every(canvas => canvas.dataset.state))"
    )
    assert not page.locator(".bar").is_visible() and not page.locator("nav").is_visible()
    assert page.locator(".sweep tr").last.is_visible()
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000


def test_five_hundred_slides_open_and_paint_only_what_is_seen(browser: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    slides = tuple(drawn_slide(number, tumor=number % 2 == 1, max_votes=number % 17) for number in range(500))
    few = [
        drawn_picture(width=1000, height=900, max_votes=16, max_bytes=bytes_per_slide(500), seed=seed)
        for seed in range(2)
    ]
    pictures = {slide.entry_id: few[number % 2] for number, slide in enumerate(slides)}
    path = tmp_path / "report.html"
    write_report(path, replace(drawn_comparison(), slides=slides), pictures)
    with opened(browser, path) as page:
        assert page.locator(".card").count() == 500
        set_slider(page, 5)
        page.locator("[data-card='250']").scroll_into_view_if_needed()
        assert painted(page, 250) > 0
        done = page.evaluate("document.querySelectorAll('.gallery canvas[data-state]').length")
        assert 1 <= done < 100
        counts = [
            int(page.locator(f"[data-count={key}][data-of=test]").text_content()) for key in ("tp", "fn")
        ]
        positive = [slide.max_votes for slide in slides if slide.side == "test" and slide.truth == "positive"]
        assert counts == [int(np.sum(np.array(positive) >= 5)), int(np.sum(np.array(positive) < 5))]
