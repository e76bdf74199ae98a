from __future__ import annotations

import base64
import io
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from drawncomparison import drawn_comparison, drawn_figures, drawn_slide
from drawnreport import drawn_map, drawn_picture, write_drawn_report
from PIL import Image

from hnscc_qp.review.comparison import Comparison
from hnscc_qp.review.report import slide_cards, write_report
from hnscc_qp.review.reportpictures import bytes_per_slide

VOID = {"meta", "link", "img", "input", "br", "path", "polyline", "circle", "line"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; notes tags that are closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.crossed.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_drawn_report(path)
    return path.read_text(encoding="utf-8")


def test_the_report_is_well_formed_and_its_ids_are_unique(written: str) -> None:
    page = Page(written)
    assert page.crossed == [] and page.open == []
    ids = page.values("id")
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    named = page.values("for", "aria-labelledby") + [
        value[1:] for value in page.values("href") if value.startswith("#")
    ]
    assert set(named) <= set(ids)


def test_the_report_asks_for_nothing_from_elsewhere(written: str) -> None:
    page = Page(written)
    assert {value.split(":")[0] for value in page.values("src", "data-votes")} == {"data"}
    assert all(value.startswith(("#", "data:")) for value in page.values("href"))
    without_pictures = re.sub(r'"data:[^"]*"', '""', written)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", without_pictures)
    policy = [value for value in page.values("content") if value.startswith("default-src")]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    ]


def test_every_picture_and_control_has_a_name(written: str) -> None:
    page = Page(written)
    assert page.tags["img"] == 3 and sorted(page.values("alt")) == ["S1.tif", "S2.tif", "S3.tif"]
    assert '<label for="threshold">' in written and 'lang="en"' in written
    for button in re.findall(r"<button[^>]*>(.*?)</button>", written):
        assert button.strip()


def test_names_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}.tif"
    drawn = drawn_comparison()
    comparison = replace(
        drawn,
        study=evil,
        slides=tuple(replace(slide, image=evil, patient=evil) for slide in drawn.slides),
        lesions=tuple(replace(lesion, image=evil, id="x'); evil('") for lesion in drawn.lesions),
        disagreements=tuple(replace(one, image=evil, detail=evil) for one in drawn.disagreements),
        notes=(evil,),
    )
    write_report(tmp_path / "report.html", comparison, {}, settings={evil: {evil: evil}})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags["script"] == 2 and page.tags["img"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert evil in page.text


def test_shares_print_with_counts_and_intervals(written: str) -> None:
    # Tang et al. 2022: 22 of 29 negative test slides.
    text = " ".join(" ".join(Page(written).text).split())
    assert "Specificity 75.9 % 22 of 29 95 %: 56.5 to 89.7 %" in text
    assert "Research use only: not for diagnosis." in text
    assert "<S4> & co.tif" in text


def test_slides_come_worst_disagreement_first() -> None:
    drawn = drawn_comparison()
    right = replace(drawn_slide(1, tumor=True, max_votes=16), image="right")
    far = replace(right, image="right, but outlined otherwise", overlap_um2=(0.0,) * 16)
    missed = replace(drawn_slide(5, tumor=True, max_votes=3), image="missed")
    alarm = replace(drawn_slide(7, tumor=False, max_votes=16), image="false alarm")
    empty = replace(drawn_slide(9, tumor=False, max_votes=0), image="no tissue", call="no tissue")
    comparison = replace(drawn, slides=(empty, right, alarm, far, missed))
    names = [card.slide.image for card in slide_cards(comparison, {})]
    assert names == ["missed", "false alarm", "right, but outlined otherwise", "right", "no tissue"]
    assert [card.wrong for card in slide_cards(comparison, {})] == [True, True, False, False, False]


@pytest.mark.parametrize("lacking", ["positive slides", "negative slides", "everything"])
def test_a_study_that_lacks_a_class_has_a_report_that_says_so(tmp_path: Path, lacking: str) -> None:
    drawn = drawn_comparison()
    test = replace(
        drawn_figures("test"),
        sensitivity=None,
        accuracy=None,
        auc=None,
        dice=None,
        iou=None,
        lesion_sensitivity=None,
        lesions=(),
        roc=(),
        froc=None,
    )
    keep = {"positive slides": "negative", "negative slides": "positive"}.get(lacking)
    comparison = replace(
        drawn,
        figures=(test,) if keep else (),
        slides=tuple(slide for slide in drawn.slides if slide.truth == keep),
        truth_lesions=(),
        sweep=tuple(
            replace(
                level,
                sensitivity=None,
                specificity=None,
                false_um2_per_mm2=None,
                false_regions_per_slide=None,
                dice=None,
            )
            for level in drawn.sweep
            if keep
        ),
        readers=None,
        disagreements=(),
    )
    write_report(tmp_path / "report.html", comparison, {slide.entry_id: "gone" for slide in drawn.slides})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert page.crossed == []
    assert "No curve: positive or negative slides are missing." in text
    assert text.count("No picture: gone") == len(comparison.slides)


def test_the_votes_picture_holds_the_largest_vote_of_its_blocks() -> None:
    picture = drawn_picture(width=1600, height=640, max_votes=13, max_bytes=60_000)
    data = base64.b64decode(picture.votes.partition("base64,")[2])
    grey = np.asarray(Image.open(io.BytesIO(data)))
    assert (grey % picture.grey_step == 0).all()
    found = grey // picture.grey_step
    votes = drawn_map(1600, 640, max_votes=13).votes
    assert found.max() == 13 and max(found.shape) <= max(picture.width, picture.height)
    factor = -(-max(votes.shape) // max(found.shape))
    for (row, column), value in np.ndenumerate(found):
        block = votes[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert value == block.max(initial=0)


@pytest.mark.parametrize("levels", [4, 64])
def test_slides_of_other_strides_have_other_levels(levels: int) -> None:
    from hnscc_qp.review.reportpictures import draw_slide

    pixels = np.full((320, 400, 3), 200, np.uint8)
    score_map = drawn_map(400, 320, max_votes=levels // 2, levels=levels)
    picture = draw_slide(pixels, score_map, [], max_bytes=60_000)
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.votes.partition("base64,")[2]))))
    assert picture.levels == levels and grey.max() // picture.grey_step == levels // 2


def test_five_hundred_slides_stay_under_fifty_megabytes(tmp_path: Path) -> None:
    drawn = drawn_comparison()
    slides = tuple(drawn_slide(number, tumor=number % 2 == 1, max_votes=number % 17) for number in range(500))
    # Noise is the worst there is to compress; a few different ones stand for all.
    few = [
        drawn_picture(width=1000, height=900, max_votes=16, max_bytes=bytes_per_slide(500), seed=seed)
        for seed in range(3)
    ]
    assert all(picture.bytes * 3 / 4 <= bytes_per_slide(500) * 1.05 for picture in few)
    pictures = {slide.entry_id: few[number % 3] for number, slide in enumerate(slides)}
    write_report(tmp_path / "report.html", replace(drawn, slides=slides), pictures)
    assert (tmp_path / "report.html").stat().st_size < 50e6


def test_the_same_comparison_gives_the_same_bytes(tmp_path: Path, written: str) -> None:
    again: Comparison = write_drawn_report(tmp_path / "again.html")
    assert again.study == "drawn"
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == written
