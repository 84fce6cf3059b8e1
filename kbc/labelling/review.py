"""A page to look at what was transferred: the most doubtful objects first, the exemplar beside the target."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from kbc.errors import InputError, counted
from kbc.files import absolute
from kbc.geometry import Box, Points, Window, defined
from kbc.images import Image, image_hw, load_image, require_cv2
from kbc.labelling.combine import by_name
from kbc.labelling.labels import Exemplar
from kbc.labelling.pipeline import FoundObject, Transferred
from kbc.support import object_box
from kbc.types import Scores

MOST = 200
"""Objects on a page at most, the most doubtful ones: about 50 kB each."""
SURE, LIKELY = 0.8, 0.5
"""Points at least so confident are drawn as sure, or as likely; the others as doubtful."""
_PANEL, _WHOLE = 420, 300  # longer side of a close-up and of a whole picture, pixels
_NEUTRAL = "known"

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --soft: #8886; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; } }
body { margin: 1.5rem auto; max-width: 84rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--soft); padding: 1rem 0; }
.panels { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; } figcaption { font-size: .8rem; opacity: .75; }
svg.picture { display: block; max-width: 100%; height: auto; }
circle, .dot { stroke: #fff; stroke-width: 1.5; } .dot { display: inline-block; width: .75em; height: .75em;
  border-radius: 50%; margin-right: .4em; }
.sure { fill: #0072b2; background: #0072b2; } .likely { fill: #e69f00; background: #e69f00; }
.doubtful { fill: #d55e00; background: #d55e00; } .known { fill: #009e73; background: #009e73; }
text { font: bold 13px system-ui, sans-serif; fill: #fff; stroke: #000; stroke-width: 3px; paint-order: stroke; }
rect { fill: none; stroke-width: 2; } rect.window { stroke: #f0e442; stroke-dasharray: 6 4; }
rect.object { stroke: #fff; stroke-dasharray: 2 3; }
ol { columns: 2; column-gap: 2.5rem; margin: .6rem 0 0; padding-left: 1.8rem; width: 26rem; max-width: 100%;
  box-sizing: border-box; font-size: .85rem; }
li b { float: right; font-variant-numeric: tabular-nums; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1.2rem; font-size: .85rem; }
.error { color: #d55e00; }
"""


def review_page(results: Sequence[Transferred], exemplars: Sequence[Exemplar], most: int = MOST) -> Iterator[str]:
    """A self-contained HTML page, in pieces: the least sure objects first; pictures are opened one at a time.

    Args:
        results: what came of the pictures, those that have labels of their own left out.
        exemplars: those that were asked.
        most: objects shown at most; the others are counted.
    """
    cards = [(one.sureness, picture, one) for picture in results for one in picture.objects]
    cards.sort(key=lambda card: card[0])
    names = dict(zip(map(id, results), _names([one.path for one in results]), strict=True))
    yield _head(len(cards), len(results), min(most, len(cards)))
    empty = [one for one in results if not one.objects]
    if empty:
        yield f"<section><h2>{counted(len(empty), 'picture')} without an object</h2><ul>\n"
        for one in empty:
            said = one.error or ". ".join(one.problems)
            why = f' <span class="error">{escape(said)}</span>' if said else ""
            yield f"<li>{escape(names[id(one)])}{why}</li>\n"
        yield "</ul></section>\n"
    shown: dict[int, str] = {}  # exemplar → the size of its picture on the page
    for rank, (_, picture, found) in enumerate(cards[:most], 1):
        title = f"{rank}. {escape(names[id(picture)])} · {escape(found.category)}"
        yield _card(f"{title} · mean confidence {found.sureness:.2f}", picture, found, exemplars, shown)
    yield "</body></html>\n"


def _head(objects: int, pictures: int, shown: int) -> str:
    kinds = (("sure", f"at least {SURE:g}"), ("likely", f"at least {LIKELY:g}"), ("doubtful", f"below {LIKELY:g}"))
    legend = "".join(f'<li><span class="dot {kind}"></span>{kind}: confidence {text}</li>' for kind, text in kinds)
    more = "" if shown == objects else f", the {shown} most doubtful shown"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Transferred points to review</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head><body>\n<h1>Transferred points to review</h1>\n"
        f"<p>{counted(objects, 'object')} in {counted(pictures, 'picture')}{more}; the most doubtful first. "
        "Confidence is the probability that a point lies within a tenth of the object's size of the right place.</p>\n"
        f'<ul class="legend">{legend}<li><span class="dot known"></span>labelled</li>'
        "<li>dashed yellow: the window that was searched</li><li>dotted white: the object's box</li></ul>\n"
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """What pictures are called: their files' names, with their folders where two have one name."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    whole = [absolute(path) for path in paths]
    base = os.path.commonpath([path.parent for path in whole])
    return [path.relative_to(base).as_posix() for path in whole]


def _card(
    title: str, picture: Transferred, found: FoundObject, exemplars: Sequence[Exemplar], shown: dict[int, str]
) -> str:
    """One object: the exemplar, the target close up, the whole of it, and the points by name."""
    try:
        image = load_image(picture.image)
    except InputError as error:  # it has gone since it was done
        return f'<section><h2>{title}</h2><p class="error">{escape(str(error))}</p></section>\n'
    panels = []
    if found.exemplar is not None:
        one = exemplars[found.exemplar]
        if found.exemplar not in shown:
            drawn, shown[found.exemplar] = _exemplar(one, f"exemplar-{found.exemplar}", found.names)
        else:  # its picture is on the page already
            drawn = f'<svg class="picture" {shown[found.exemplar]}><use href="#exemplar-{found.exemplar}"/></svg>'
        panels.append(_figure(drawn, _caption(one)))
    close = _close_up(found.box, image)
    points = _points(close.to_window(found.keypoints), found.names, found.confidence)
    panels.append(_figure(_svg(close.cut(image), points), "the picture, close up"))
    whole = _fitted(Window.whole(image_hw(image)), _WHOLE)
    boxes = _rectangle(whole, found.box, "object")
    if found.window is not None:
        boxes += _rectangle(whole, found.window, "window")
    panels.append(f"<div>{_figure(_svg(whole.cut(image), boxes), 'the whole picture')}{_list(found)}</div>")
    return f'<section><h2>{title}</h2><div class="panels">{"".join(panels)}</div></section>\n'


def _caption(one: Exemplar) -> str:
    name = Path(one.image).name if isinstance(one.image, (str, Path)) else "the exemplar"
    return f"labelled: {escape(name)}"


def _exemplar(one: Exemplar, identity: str, names: Sequence[str]) -> tuple[str, str]:
    """The labelled picture, close up, and the size by which further cards show it again."""
    image = load_image(one.image)
    window = _close_up(object_box(one.keypoints, one.box, image_hw(image)), image)  # of few points, as KBC takes it
    places = by_name(names, one.names, window.to_window(one.keypoints))
    return _svg(window.cut(image), _points(places, names, None), identity), _size(window.size_hw)


def _size(size_hw: tuple[int, int]) -> str:
    height, width = size_hw
    return f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'


def _close_up(box: Box, image: Image) -> Window:
    """The object with a third of its size around it."""
    return _fitted(Window.fit(box.grown(0.35 * box.longest + 4), image_hw(image)), _PANEL)


def _fitted(window: Window, side: int) -> Window:
    """The window resampled so that its longer side is `side`, its aspect kept."""
    scale = side / window.box.longest
    return window.resized((max(round(window.box.height * scale), 1), max(round(window.box.width * scale), 1)))


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _svg(image: Image, marks: str, identity: str = "") -> str:
    """A picture with marks over it; pixel (0, 0)'s centre is at (0.5, 0.5) of the drawing."""
    cv2 = require_cv2()
    height, width = image_hw(image)
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    uri = "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
    group = f'<g id="{identity}">' if identity else "<g>"
    return (
        f'<svg class="picture" {_size((height, width))}>{group}'
        f'<image href="{uri}" width="{width}" height="{height}"/>{marks}</g></svg>'
    )


def _points(places: Points, names: Sequence[str], confidence: Scores | None) -> str:
    """Numbered points, coloured by confidence; without it, as labelled."""
    marks = []
    for index, (x, y) in enumerate(places + 0.5):
        if np.isnan(x) or np.isnan(y):
            continue
        kind, said = _NEUTRAL, ""
        if confidence is not None:
            kind, said = _kind(float(confidence[index])), f" {confidence[index]:.2f}"
        title = f"<title>{escape(names[index])}{said}</title>"
        marks.append(
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5">{title}</circle>'
            f'<text x="{x + 7:.1f}" y="{y - 5:.1f}">{index + 1}</text>'
        )
    return "".join(marks)


def _kind(confidence: float) -> str:
    return "sure" if confidence >= SURE else "likely" if confidence >= LIKELY else "doubtful"


def _rectangle(window: Window, box: Box, kind: str) -> str:
    seen = window.box_to_window(box)
    place = f'x="{seen.x0:.1f}" y="{seen.y0:.1f}" width="{seen.width:.1f}" height="{seen.height:.1f}"'
    return f'<rect class="{kind}" {place}/>'


def _list(found: FoundObject) -> str:
    """The points by number and name; a dash where there is none."""
    rows = []
    for name, known, value in zip(found.names, defined(found.keypoints), found.confidence, strict=True):
        sure = float(np.nan_to_num(value))
        dot, said = (f'<span class="dot {_kind(sure)}"></span>', f"{sure:.2f}") if known else ("", "–")
        rows.append(f"<li><b>{said}</b>{dot}{escape(name)}</li>")
    return f"<ol>{''.join(rows)}</ol>"
