"""The exported drawings: up to date, whole SVG files, readable on light and dark, nothing cut off or overlapping."""

import functools
import itertools
import re
from xml.etree import ElementTree

import pytest
from helpers import ROOT
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from fourstage.report.drawings import DRAWINGS, export_drawings, palettes

SVG = "{http://www.w3.org/2000/svg}"
IMAGES = sorted((ROOT / "docs" / "images").glob("*.svg"))


def name(path):
    return path.stem


def number(element, key, default=0.0):
    return float(element.get(key, default))


def rgb(colour):
    assert re.fullmatch("#[0-9a-f]{6}", colour), colour
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def contrast(first, second):
    """The contrast ratio of WCAG 2.2. Example: contrast([0, 0, 0], [1, 1, 1]) -> 21."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@functools.cache
def width_of(text, size, family, weight):
    return TextPath((0, 0), text, size=size, prop=FontProperties(family=family, weight=weight)).get_extents().width


def extent(element):
    """Left, top, right and bottom of a shape, or of a text in DejaVu Sans, which is wider than most fonts."""
    if element.tag == f"{SVG}rect":
        x, y = number(element, "x"), number(element, "y")
        return x, y, x + number(element, "width"), y + number(element, "height")
    if element.tag == f"{SVG}circle":
        x, y, r = (number(element, key) for key in ("cx", "cy", "r"))
        return x - r, y - r, x + r, y + r
    size = float(element.get("font-size").removesuffix("px"))
    family = "DejaVu Sans Mono" if "monospace" in element.get("font-family") else "DejaVu Sans"
    width = width_of(element.text, size, family, int(element.get("font-weight", 400)))
    left = number(element, "x") - {"middle": width / 2, "end": width}.get(element.get("text-anchor"), 0)
    return left, number(element, "y") - 0.75 * size, left + width, number(element, "y") + 0.2 * size


def texts_and_shapes(path):
    """Every text with the shapes that were drawn before it and lie under its middle, the top one last."""
    shapes, texts = [], []
    for element in ElementTree.parse(path).iter():
        if element.tag in (f"{SVG}rect", f"{SVG}circle"):
            shapes.append(element)
        if element.tag == f"{SVG}text":
            left, top, right, bottom = extent(element)
            x, y = (left + right) / 2, (top + bottom) / 2
            under = [s for s in shapes if extent(s)[0] <= x <= extent(s)[2] and extent(s)[1] <= y <= extent(s)[3]]
            texts.append((element, under))
    assert texts
    return texts


def test_the_committed_drawings_are_what_the_exporter_writes(tmp_path):
    written = export_drawings(tmp_path)
    assert len(written) == 2 * len(DRAWINGS) and sorted(path.name for path in written) == [p.name for p in IMAGES]
    for path in written:
        assert path.read_bytes() == (ROOT / "docs" / "images" / path.name).read_bytes(), (
            f"{path.name} is out of date; run python -m fourstage.report.drawings docs/images"
        )


@pytest.mark.parametrize("path", IMAGES, ids=name)
def test_a_drawing_is_a_whole_file_that_needs_no_other(path):
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    described = [root.find(f"*[@id='{reference}']") for reference in root.get("aria-labelledby").split()]
    assert [element.tag for element in described] == [f"{SVG}title", f"{SVG}desc"]
    assert all(element.text.strip() for element in described)
    text = path.read_text()
    assert not re.search(r"var\(|class=|<style|<script|<image|<foreignObject|href|url\(|\bon\w+=", text)
    assert re.findall('https?://[^"]*', text) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("path", IMAGES, ids=name)
def test_texts_stand_out_from_what_is_under_them(path):
    palette = palettes()[path.stem.rpartition("-")[2]]
    for text, under in texts_and_shapes(path):
        for paper in (palette["card"], palette["paper"]):  # on its own card, and on the page
            ground = rgb(paper)
            for shape in (shape for shape in under[1:] if shape.get("fill") != "none"):
                opacity = number(shape, "fill-opacity", 1.0)
                ground = [opacity * a + (1 - opacity) * b for a, b in zip(rgb(shape.get("fill")), ground, strict=True)]
            ratio = contrast(rgb(text.get("fill")), ground)
            assert ratio >= 4.5, f"{text.text!r}: {ratio:.2f}"  # level AA


@pytest.mark.parametrize("path", IMAGES, ids=name)
def test_texts_fit_and_do_not_overlap(path):
    texts = texts_and_shapes(path)
    for text, under in texts:
        (left, _, right, _), box = extent(text), extent(under[-1])
        assert box[0] + 1 <= left and right <= box[2] - 1, f"{text.text!r} is wider than its box"
    for (first, _), (second, _) in itertools.combinations(texts, 2):
        a, b = extent(first), extent(second)
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"{first.text!r} overlaps {second.text!r}"


def test_contrast_is_that_of_the_standard():
    assert contrast([0, 0, 0], [1, 1, 1]) == pytest.approx(21)
    assert contrast(rgb("#767676"), [1, 1, 1]) == pytest.approx(4.54, abs=0.01)  # the palest grey that passes on white
