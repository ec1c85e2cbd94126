"""The report's drawings as SVG files, for documents that cannot use the page's style sheet.

    python -m fourstage.report.drawings docs/images

writes each drawing twice, such as pipeline-light.svg and pipeline-dark.svg. Colours, fonts and line widths come from
page.css and are written into each element: outside the page its variables have no value.
"""

import argparse
import re
from pathlib import Path
from xml.etree import ElementTree

from fourstage.report import TEMPLATES, template_environment

# The macros of drawings.svg.jinja, and the files they become.
DRAWINGS = {
    "pipeline": "pipeline",
    "pretrain": "stage-pretrain",
    "sft": "stage-sft",
    "reward": "stage-reward",
    "ppo": "stage-ppo",
    "grpo": "stage-grpo",
}
_MARGIN = 10  # units around a drawing. A card fills them, so that the drawing reads on any background
# A rule of page.css for drawings: `.drawing text`, `.drawing .soft` or `.drawing rect.bar`, with its declarations.
_RULE = re.compile(r"\.drawing (?=[tr.])(text|rect)?(?:\.(\w+))? \{ ([^}]*) \}")


def export_drawings(folder: Path) -> list[Path]:
    """Writes every drawing to `folder`, for light and for dark backgrounds.

    Returns:
        The paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, stem in DRAWINGS.items():
        for theme, palette in palettes().items():
            path = folder / f"{stem}-{theme}.svg"
            path.write_text(standalone(name, palette), encoding="utf-8")
            paths.append(path)
    return paths


def palettes() -> dict[str, dict[str, str]]:
    """The colours of page.css by theme, such as {"light": {"ink": "#1d2129", ...}, "dark": {...}}."""
    light, dark = re.findall(r":root \{(.*?)\}", _style_sheet(), re.DOTALL)
    return {
        theme: dict(re.findall(r"--([\w-]+): (#\w+)", rules)) for theme, rules in (("light", light), ("dark", dark))
    }


def standalone(name: str, palette: dict[str, str]) -> str:
    """The drawing `name` (a key of DRAWINGS) as the text of an SVG file, in the colours of `palette`."""
    drawings = template_environment().get_template("drawings.svg.jinja").module
    root = ElementTree.fromstring(getattr(drawings, name)())
    _paint(root, palette | {"c": palette.get(name, palette["ink-soft"])})
    _, _, width, height = root.attrib["viewBox"].split()
    frame = {"width": str(int(width) + 2 * _MARGIN), "height": str(int(height) + 2 * _MARGIN)}
    view = f"{-_MARGIN} {-_MARGIN} {frame['width']} {frame['height']}"
    root.attrib.update(frame, xmlns="http://www.w3.org/2000/svg", viewBox=view)
    corner = {"x": str(-_MARGIN), "y": str(-_MARGIN), "rx": "12"}
    root.insert(2, ElementTree.Element("rect", corner | frame | {"fill": palette["card"]}))  # behind title and desc
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _paint(element: ElementTree.Element, colours: dict[str, str]) -> None:
    """Replaces the classes of an element and of all in it by the attributes that page.css gives them.

    `colours` maps the style sheet's variables to values; a class such as `c-sft` makes "sft" the colour "c".
    """
    classes = element.attrib.pop("class", "").split()
    for stage in (name.removeprefix("c-") for name in classes if name.startswith("c-")):
        colours = colours | {"c": colours[stage]}
    for tag, class_name, declarations in _RULE.findall(_style_sheet()):
        if tag in ("", element.tag) and (not class_name or class_name in classes):
            for declaration in declarations.split(";"):
                key, value = declaration.split(":")
                element.set(key.strip(), re.sub(r"var\(--([\w-]+)\)", lambda match: colours[match[1]], value.strip()))
    for child in element:
        _paint(child, colours)


def _style_sheet() -> str:
    return (TEMPLATES / "page.css").read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the report's drawings as SVG files.")
    parser.add_argument("folder", type=Path, help="where to write them, such as docs/images")
    for path in export_drawings(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
