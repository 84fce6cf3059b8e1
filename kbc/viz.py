"""Pictures of matches with matplotlib (`pip install "kbc[viz]"`): functions that take Axes and return them.

Conventions:
    Right points are blue circles, wrong ones vermilion crosses (Okabe and Ito's colours, which colour-blind people tell
    apart; the shapes say the same without colour), points without a known truth green circles. A thin line leads from
    a wrong point to where it should be, a hollow diamond. Windows are yellow, dashed; object boxes white, dotted.
    Axes show points at their own coordinates: pixel (0, 0)'s centre is at (0, 0).
Whole pictures get small markers, so that a small object can be seen under them; insets get larger ones with numbers.
Nothing here uses pyplot or shows a window; `save` writes a file whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kbc.errors import InputError, must_be, require
from kbc.files import output_file, written_whole
from kbc.geometry import Box, Points, Window, as_points, defined
from kbc.images import Image, ImageLike, image_hw, load_image, require_cv2
from kbc.support import object_box
from kbc.tuning import TUNING
from kbc.types import Match, MatchResult, Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG, PLAIN = "#0072B2", "#D55E00", "#009E73"
WINDOW, BOX, TRUTH = "#F0E442", "#FFFFFF", "#FFFFFF"
SMALL, LARGE = 14.0, 70.0  # areas of markers, points squared
Mask = npt.NDArray[np.bool_]

SHOWN_PIXELS = 6_000_000
"""Of an image in a figure: matplotlib takes some forty bytes for each, and no figure is that fine. Our choice."""


def new_axes(
    rows: int = 1,
    columns: int = 1,
    *,
    size: tuple[float, float] = (6.0, 4.0),
    widths: Sequence[float] | None = None,
    dpi: float = 110.0,
) -> tuple[Figure, list[Axes]]:
    """A figure with its own Agg canvas (no pyplot, no display) and its rows × columns Axes, row by row.

    Args:
        rows, columns: of the grid.
        size: width and height of one Axes, inches.
        widths: of the columns, in units of `size[0]`; by default all 1.
        dpi: dots per inch.
    """
    figure_class, canvas_class = _require_matplotlib()
    widths = list(widths or [1.0] * columns)
    figure = figure_class(figsize=(sum(widths) * size[0], rows * size[1]), dpi=dpi, layout="constrained")
    canvas_class(figure)
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    return figure, list(grid.flat)


def comparison_axes(answers: int, rows: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure for `rows` calls of `draw_comparison` with so many answers each, and its rows of Axes."""
    figure, axes = new_axes(rows, 2 + answers, size=(2.9, 2.9), widths=[2.4, *[1.0] * (1 + answers)])
    step = 2 + answers
    return figure, [axes[i : i + step] for i in range(0, len(axes), step)]


def save(axes: Axes | Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure that holds these Axes; the format follows the suffix (.png, .pdf, .svg, …).

    Raises:
        InputError: as `picture_file`.
    """
    figure: Any = axes if hasattr(axes, "savefig") else axes.get_figure()
    path = picture_file(path)
    with written_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())
    return path


def picture_file(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The path of a picture that `save` can write; to be asked before the work that the picture shows.

    Raises:
        InputError: the suffix is none that matplotlib writes, or the folder cannot be written to.
        MissingDependencyError: matplotlib is not installed.
    """
    _, canvas_class = _require_matplotlib()
    if Path(path).suffix[1:].lower() not in canvas_class.get_supported_filetypes():
        hint = "use .png, .pdf or .svg"
        raise InputError(must_be(argument, "a picture's name such as out.png", repr(str(path)), hint))
    return output_file(path, argument)


def draw_image(ax: Axes, image: ImageLike, *, title: str = "") -> Axes:
    """Show an image without ticks, points at their own pixel coordinates."""
    image = load_image(image)
    _imshow(ax, image, (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5))
    ax.set_xticks([])
    ax.set_yticks([])
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def _imshow(ax: Axes, image: Image, extent: tuple[float, float, float, float]) -> None:
    """Show an image over left, right, bottom, top; a huge one is shrunk first, its coordinates stay."""
    height, width = image_hw(image)
    factor = (SHOWN_PIXELS / (height * width)) ** 0.5
    if factor < 1:
        size = max(int(width * factor), 1), max(int(height * factor), 1)
        image = require_cv2().resize(image, size, interpolation=require_cv2().INTER_AREA)
    ax.imshow(image, extent=extent, interpolation="nearest")


def draw_points(
    ax: Axes, points: Points, *, right: Mask | None = None, numbers: bool | Sequence[str] = False, size: float = 36.0
) -> Axes:
    """Mark points (N, 2); NaN rows are left out.

    Args:
        ax: where.
        points: pixels of the image shown.
        right: (N,) which are right: circles, the others crosses. None: all green circles.
        numbers: write each point's index beside it, or what is given for each.
        size: area of a marker, points squared.

    Raises:
        InputError: `right` does not have one entry per point.
    """
    points = as_points(points, "points")
    if right is not None and np.shape(right) != points.shape[:1]:
        raise InputError(must_be("right", f"of shape {points.shape[:1]}", f"shape {np.shape(right)}"))
    known = defined(points)
    groups = [(known, PLAIN, "o")] if right is None else [(known & right, RIGHT, "o"), (known & ~right, WRONG, "X")]
    for mask, colour, marker in groups:
        if mask.any():
            x, y = points[mask].T
            area = size * 1.6 if marker == "X" else size  # a cross has less ink than a circle as wide
            edge = 0.9 if size > SMALL else 0.5
            ax.scatter(x, y, s=area, c=colour, marker=marker, edgecolors="white", linewidths=edge, zorder=5)
    if numbers:
        labels = [str(index) for index in range(len(points))] if isinstance(numbers, bool) else list(numbers)
        for index in np.flatnonzero(known):
            _label(ax, labels[index], points[index], offset=(4, 4))
    return ax


def draw_truth(
    ax: Axes, truth: Points, points: Points | None = None, right: Mask | None = None, *, size: float = 26.0
) -> Axes:
    """Hollow diamonds where points should be, with a thin line from each wrong one."""
    truth = as_points(truth, "truth")
    x, y = truth[defined(truth)].T
    for ink, width in (("black", 1.8), (TRUTH, 0.9)):
        ax.scatter(x, y, s=size, facecolors="none", edgecolors=ink, marker="D", linewidths=width, zorder=4)
    if points is not None:
        both = defined(truth) & defined(points) & (True if right is None else ~right)
        for p, q in zip(points[both], truth[both], strict=True):
            ax.plot(*zip(p, q, strict=True), color=WRONG, lw=0.9, zorder=3)
    return ax


def draw_box(ax: Axes, box: Box | Window | None, *, label: str = "", colour: str | None = None) -> Axes:
    """Outline a `Box` (white, dotted) or a `Window` (yellow, dashed); None draws nothing."""
    if box is not None:
        _outline(ax, _edges(box), isinstance(box, Window), label, colour)
    return ax


def draw_match(
    pair: Pair,
    result: Match,
    *,
    ax: Axes | None = None,
    truth: Points | None = None,
    tolerance: float | None = None,
    lines: bool = True,
    title: str = "",
) -> Axes:
    """Both images side by side at one height, with windows, points and lines between them.

    Args:
        pair: what was matched.
        result: the answer; the windows of a `MatchResult` are drawn.
        ax: where; by default on a new figure.
        truth: (N, 2) the right answer in the target, NaN where unknown.
        tolerance: how far off a right point may be, target pixels; by default 0.1 of the longest side of the true
            points' box (PCK@0.1).
        lines: draw a line from each source point to its answer.
        title: above the images.
    """
    _require_answer(result, pair)
    if ax is None:
        ax = new_axes(size=(9.0, 3.8))[1][0]
    height, width = image_hw(pair.source)
    factor = height / pair.target.shape[0]
    gap = 0.02 * width
    right = right_points(result.keypoints, truth, tolerance)
    right_side = _Placed(ax, width + gap, factor)
    draw_image(ax, pair.source, title=title)
    right_side.image(pair.target)
    draw_points(ax, pair.keypoints, right=right, size=SMALL)
    draw_box(ax, pair.source_box)
    right_side.box(pair.target_box)
    if isinstance(result, MatchResult):
        draw_box(ax, result.source_window)
        right_side.box(result.target_window)
    answer = right_side.points(result.keypoints)
    if truth is not None:
        draw_truth(ax, right_side.points(truth), answer, right, size=SMALL)
    draw_points(ax, answer, right=right, size=SMALL)
    if lines:
        for i in np.flatnonzero(defined(pair.keypoints) & defined(answer)):
            ink = PLAIN if right is None else RIGHT if right[i] else WRONG
            ax.plot(*zip(pair.keypoints[i], answer[i], strict=True), color=ink, lw=0.6, alpha=0.6, zorder=3)
    _show_part(ax, Box(0.0, 0.0, width + gap + pair.target.shape[1] * factor, height))
    ax.set_frame_on(False)
    return ax


def draw_inset(
    ax: Axes,
    image: ImageLike,
    around: Box | Window,
    points: Points,
    *,
    right: Mask | None = None,
    truth: Points | None = None,
    numbers: bool | Sequence[str] = False,
    title: str = "",
) -> Axes:
    """A part of an image, enlarged to fill the Axes, with the points that lie there.

    Points keep the whole image's coordinates: the Axes zoom, nothing is resampled.

    Args:
        ax: where.
        image: the whole image.
        around: the part to show.
        points: (N, 2) in the whole image's pixels.
        right, numbers: as in `draw_points`.
        truth: (N, 2) where they should be.
        title: above.
    """
    draw_image(ax, image, title=title)
    edges = _edges(around)
    points = as_points(points, "points")
    shown = np.where(edges.contains(points)[:, None], points, np.nan)
    if truth is not None:
        draw_truth(ax, truth, points, right)
    draw_points(ax, shown, right=right, numbers=numbers, size=LARGE)
    _show_part(ax, edges)
    return ax


def draw_comparison(
    pair: Pair,
    answers: Mapping[str, Match],
    *,
    truth: Points | None = None,
    tolerance: float | None = None,
    row: Sequence[Axes] | None = None,
) -> list[Axes]:
    """One row: the pair with the last answer, the source's object enlarged, and the target's object per answer.

    Args:
        pair: what was matched.
        answers: title → answer, e.g. {"without KBC": coarse, "with KBC": result}; the last one's windows are drawn.
        truth, tolerance: as in `draw_match`; with a truth the titles count the right points.
        row: 2 + len(answers) Axes, see `comparison_axes`; by default on a new figure.

    Raises:
        InputError: no answers, or another number of Axes.
    """
    if not answers:
        raise InputError(must_be("answers", "at least one answer", "none"))
    row = list(row) if row is not None else comparison_axes(len(answers))[1][0]
    if len(row) != 2 + len(answers):
        raise InputError(must_be("row", f"{2 + len(answers)} Axes", len(row)))
    for answer in answers.values():
        _require_answer(answer, pair)
    *_, last = answers.values()
    draw_match(pair, last, ax=row[0], truth=truth, tolerance=tolerance, lines=False)
    near = _surroundings(pair.source, pair.source_box, pair.keypoints)
    plain = truth is None  # then colours say nothing, and numbers tell which point is which
    draw_inset(row[1], pair.source, near, pair.keypoints, numbers=plain, title="source")
    shown = truth if truth is not None else last.keypoints
    around = _surroundings(pair.target, pair.target_box, shown)
    for ax, (title, answer) in zip(row[2:], answers.items(), strict=True):
        right = right_points(answer.keypoints, truth, tolerance)
        if right is not None and truth is not None:
            title += f": {int(right.sum())} of {int(defined(truth).sum())} right"
        numbers = with_confidence(answer) if plain else False
        draw_inset(ax, pair.target, around, answer.keypoints, right=right, truth=truth, numbers=numbers, title=title)
    return row


def with_confidence(answer: Match) -> list[str]:
    """A label for each point: its number and, where it is known, how sure it is, e.g. "3: 0.82"."""
    sure = answer.confidence if isinstance(answer, MatchResult) else None
    if sure is None:
        return [str(index) for index in range(len(answer.keypoints))]
    return [f"{index}: {value:.2f}" if value == value else str(index) for index, value in enumerate(sure)]


def draw_answer(pair: Pair, result: MatchResult, *, title: str = "") -> dict[str, Axes]:
    """A new figure about one answer: above, both images without and with KBC; below, the objects enlarged.

    Args:
        pair: what was matched.
        result: the answer; its `coarse` points are the matcher's without KBC.
        title: above all.

    Returns:
        The Axes "coarse", "kbc" (above), "source zoom", "coarse zoom" and "kbc zoom" (below).
    """
    figure_class, canvas_class = _require_matplotlib()
    width = 13.0
    aspect = 1.02 * pair.source.shape[1] / pair.source.shape[0] + pair.target.shape[1] / pair.target.shape[0]
    heights = (width / 2 / aspect + 0.35, width / 3 + 0.35)  # inches; both rows fill the figure's width
    figure = figure_class(figsize=(width, sum(heights) + (0.35 if title else 0.0)), dpi=110, layout="constrained")
    canvas_class(figure)
    above = ["coarse"] * 3 + ["kbc"] * 3
    below = ["source zoom"] * 2 + ["coarse zoom"] * 2 + ["kbc zoom"] * 2
    axes: dict[str, Axes] = figure.subplot_mosaic([above, below], height_ratios=heights)
    if title:
        figure.suptitle(title, fontsize=11)
    draw_match(pair, Match(result.coarse), ax=axes["coarse"], title="without KBC")
    windows = "; dashed: its windows" if result.target_window else ""
    draw_match(pair, result, ax=axes["kbc"], title=f"with KBC{windows}")
    near = _surroundings(pair.source, pair.source_box, pair.keypoints)
    seen = _surroundings(pair.target, pair.target_box, result.keypoints)
    draw_inset(axes["source zoom"], pair.source, near, pair.keypoints, numbers=True, title="source")
    for name, label, points in (("coarse", "without", result.coarse), ("kbc", "with", result.keypoints)):
        beyond = int((~seen.contains(points[defined(points)])).sum())
        missing = int((defined(pair.keypoints) & ~defined(points)).sum())
        said = [f"{n} {what}" for n, what in ((beyond, "outside this part"), (missing, "without an answer")) if n]
        shown = f"target, {label} KBC" + (f" ({', '.join(said)})" if said else "")
        numbers = with_confidence(result) if name == "kbc" else True
        draw_inset(axes[f"{name} zoom"], pair.target, seen, points, numbers=numbers, title=shown)
    return axes


def draw_cells(
    ax: Axes, image: ImageLike, points: Points, *, grid_hw: tuple[int, int] = (16, 16), around: Box | None = None
) -> Axes:
    """Why small objects fuse (the paper's Figure 1): a matcher's cells over the keypoints.

    Cells that hold one keypoint are blue, cells in which several fuse are vermilion with their number.

    Args:
        ax: where.
        image: the image the matcher sees.
        points: (N, 2) keypoints in it.
        grid_hw: rows and columns of the matcher's feature grid over the whole image.
        around: show only this part.
    """
    from matplotlib.patches import Rectangle

    image = load_image(image)
    draw_image(ax, image)
    size_hw = image_hw(image)
    cells = Window.whole(size_hw, grid_hw)
    step_x, step_y = 1 / cells.scale_xy[0], 1 / cells.scale_xy[1]
    for i in range(grid_hw[0] + 1):
        ax.axhline(i * step_y - 0.5, color="white", lw=0.5, alpha=0.55)
    for j in range(grid_hw[1] + 1):
        ax.axvline(j * step_x - 0.5, color="white", lw=0.5, alpha=0.55)
    occupied, counts = np.unique(cell_of(points, size_hw, grid_hw), axis=0, return_counts=True)
    for (row, column), count in zip(occupied.tolist(), counts.tolist(), strict=True):
        ink = WRONG if count > 1 else RIGHT
        corner = (column * step_x - 0.5, row * step_y - 0.5)
        ax.add_patch(Rectangle(corner, step_x, step_y, fc=ink, ec=ink, alpha=0.45, lw=1.2, zorder=2))
        if count > 1:
            _label(ax, str(count), np.array(corner), offset=(2, -9))
    draw_points(ax, points, size=18)
    _show_part(ax, around or Box.whole(size_hw))
    return ax


def cell_of(points: Points, size_hw: tuple[int, int], grid_hw: tuple[int, int]) -> npt.NDArray[np.int64]:
    """(M, 2) row and column of the feature cell that holds each defined point of an image of (height, width)."""
    points = as_points(points, "points")
    inside = Window.whole(size_hw, grid_hw).to_window(points[defined(points)])
    last = np.array(grid_hw[::-1]) - 1
    return np.asarray(np.clip(np.floor(inside + 0.5), 0, last)[:, ::-1], dtype=np.int64)


def right_points(points: Points, truth: Points | None, tolerance: float | None = None) -> Mask | None:
    """(N,) True where a point lies within `tolerance` pixels of the truth; None without a truth.

    The default tolerance is 0.1 of the longest side of the true points' box, at least one pixel.
    """
    if truth is None:
        return None
    truth = as_points(truth, "truth")
    if len(truth) != len(points):
        raise InputError(must_be("truth", f"{len(points)} points, as the answer has", len(truth)))
    if tolerance is None:
        extent = Box.around(truth)
        tolerance = max(0.1 * extent.longest, 1.0) if extent else 1.0
    with np.errstate(invalid="ignore"):
        near: Mask = np.linalg.norm(points - truth, axis=1) <= tolerance
    return near


def _require_answer(result: object, pair: Pair) -> None:
    if not isinstance(result, Match):
        raise InputError(must_be("answer", "a Match, such as kbc.Match(points)", f"a {type(result).__name__}"))
    if len(result.keypoints) != len(pair.keypoints):
        raise InputError(must_be("answer", f"{len(pair.keypoints)} points, as the pair has", len(result.keypoints)))


class _Placed:
    """A second image in the same Axes, shifted to the right and scaled; geometry in its own pixels comes in."""

    def __init__(self, ax: Axes, shift: float, factor: float) -> None:
        self.ax, self.shift, self.factor = ax, shift, factor

    def image(self, image: Image) -> None:
        height, width = image_hw(image)
        x0, y1 = self.shift - 0.5, height * self.factor - 0.5
        _imshow(self.ax, image, (x0, x0 + width * self.factor, y1, -0.5))

    def points(self, points: Points) -> Points:
        return np.asarray((points + 0.5) * self.factor - 0.5 + (self.shift, 0.0))

    def box(self, box: Box | Window | None) -> None:
        if box is not None:
            edges, f, s = _edges(box), self.factor, self.shift
            placed = Box(edges.x0 * f + s, edges.y0 * f, edges.x1 * f + s, edges.y1 * f)
            _outline(self.ax, placed, isinstance(box, Window))


def _edges(box: Box | Window) -> Box:
    return box.box if isinstance(box, Window) else box


def _show_part(ax: Axes, edges: Box) -> None:
    """Let the Axes end at pixel edges, which lie half a pixel before the pixel's centre."""
    ax.set_xlim(edges.x0 - 0.5, edges.x1 - 0.5)
    ax.set_ylim(edges.y1 - 0.5, edges.y0 - 0.5)


def _outline(ax: Axes, edges: Box, is_window: bool, label: str = "", colour: str | None = None) -> None:
    from matplotlib.patches import Rectangle

    corner = (edges.x0 - 0.5, edges.y0 - 0.5)  # pixel edges lie half a pixel before the pixel's centre
    for ink, width in (("black", 2.6), (colour or (WINDOW if is_window else BOX), 1.4)):
        style = "--" if is_window else ":"
        ax.add_patch(Rectangle(corner, edges.width, edges.height, fill=False, ec=ink, lw=width, ls=style, zorder=2))
    if label:
        _label(ax, label, np.array(corner), offset=(2, 3))


def _surroundings(image: Image, box: Box | None, points: Points) -> Box:
    """What an inset shows: the object with room around it, square. A few points far from the others do not widen it."""
    size_hw = image_hw(image)
    around = Box.around(_together(points))
    if box is None and 0 < int(defined(points).sum()) < TUNING.min_points_for_extent:
        box = object_box(points, None, size_hw)  # too few to show how large it is
    both = [edges for edges in (box, around) if edges is not None]
    if not both:
        return Box.whole(size_hw)
    box = Box(min(b.x0 for b in both), min(b.y0 for b in both), max(b.x1 for b in both), max(b.y1 for b in both))
    side = max(box.longest * 1.6, 16.0)
    return Window.fit(Box.centered(box.center, side, side), size_hw).box


def _together(points: Points) -> Points:
    """The points without those that lie four times as far from the middle as the median point does."""
    known = points[defined(points)]
    if len(known) < 4:
        return known
    away = np.abs(known - np.median(known, axis=0)).max(axis=1)
    return np.asarray(known[away <= 4 * np.median(away)])


def _label(ax: Axes, text: str, at: npt.NDArray[np.float64], *, offset: tuple[float, float]) -> None:
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=2, foreground="black")]
    ax.annotate(text, (float(at[0]), float(at[1])), xytext=offset, textcoords="offset points", color="white",
                fontsize=8, path_effects=outline, zorder=6)  # fmt: skip


def _require_matplotlib() -> tuple[Any, Any]:
    figure, canvas = (
        require(f"matplotlib.{name}", "kbc.viz needs matplotlib", "viz") for name in ("figure", "backends.backend_agg")
    )
    return figure.Figure, canvas.FigureCanvasAgg
