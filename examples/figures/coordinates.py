"""Where pixels, points and boxes lie: `python examples/figures/coordinates.py docs/images/coordinates.png`."""

from __future__ import annotations

import sys

import cv2
import numpy as np

from kbc import viz
from kbc.geometry import Box, resize_points


def main(path: str) -> None:
    """Draw a picture of 6 × 4 pixels with points and a box, and the same twice: enlarged right and naively."""
    image = np.full((4, 6, 3), 235, np.uint8)
    image[::2, ::2] = image[1::2, 1::2] = 205
    image[1, 4] = (240, 150, 60)
    spot = np.array([[4.0, 1.0]])
    enlarged = cv2.resize(image, (24, 16), interpolation=cv2.INTER_NEAREST)
    right = resize_points(spot, (4, 6), (16, 24))

    figure, axes = viz.new_axes(1, 2, size=(5.2, 4.3))
    viz.draw_image(axes[0], image, title="6 × 4 pixels; the whole image is the box (0, 0, 6, 4)")
    viz.draw_box(axes[0], Box(4, 1, 5, 2), label="box (4, 1, 5, 2)", colour="tab:blue")
    for point, text in (((0, 0), "(0, 0)"), ((4, 1), "(4, 1)"), ((5, 3), "(5, 3)")):
        axes[0].plot(*point, "o", color="black", markersize=4)
        axes[0].annotate(text, point, (6, -12), textcoords="offset points", fontsize=9)
    viz.draw_image(axes[1], enlarged, title="enlarged 4 times: the spot is at (17.5, 5.5)")
    for x, y, colour, text in (
        (*right[0], "black", f"(4 + 0.5) · 4 − 0.5 = {right[0, 0]:g}"),
        (16, 4, "tab:red", "4 · 4 = 16: off by 1.5 px"),
    ):
        axes[1].plot(x, y, "o", color=colour, markersize=5)
        offset = (-90, -34) if colour == "black" else (-150, 14)
        axes[1].annotate(text, (x, y), offset, textcoords="offset points", fontsize=9, color=colour)
    for ax, (width, height), step in ((axes[0], (6, 4), 1), (axes[1], (24, 16), 4)):
        ax.set_xlim(-0.5 - 0.4 * step, width - 0.5 + 0.4 * step)
        ax.set_ylim(height - 0.5 + 0.4 * step, -0.5 - 0.4 * step)
        ax.set_axis_on()
        ax.set_xticks(range(0, width, step))
        ax.set_yticks(range(0, height, step))
    viz.save(figure, path)


if __name__ == "__main__":
    main(sys.argv[1])
