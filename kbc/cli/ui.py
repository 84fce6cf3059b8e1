"""`kbc ui`: a page to click points on (`pip install "kbc[ui]"`). Runs on this machine; nothing is uploaded anywhere."""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from kbc.cli.match import match, origins, sure
from kbc.cli.options import add_matcher_options, key_values, parse_box
from kbc.cli.points import typed_points
from kbc.cli.text import markdown_table
from kbc.cli.ui_guard import MAX_UPLOAD, guarded, without_folders
from kbc.data.scenes.render import scene_pair
from kbc.errors import InputError, KBCError, must_be, require, width_by_height
from kbc.evaluation.outcomes import rows
from kbc.files import read_bytes, write_json
from kbc.headers import stated_size
from kbc.images import require_cv2
from kbc.types import MatchResult, Pair

HELP = """Open a page in the browser: choose two images, click points on the left one, and see where a matcher finds
them on the right one, with and without KBC. Needs pip install "kbc[ui]". With --labels, a page to put right what
`kbc transfer` found, the most doubtful first; needs no extra."""

TITLE = "kbc: keypoints on small objects"
COLUMNS = ["point", "source x", "source y", "coarse x", "coarse y", "KBC x", "KBC y", "sure", "origin"]


MAX_PIXELS = 50_000_000
"""Of an image, before it is decoded: three bytes each, and several times that while it is matched. Our choice."""
KEPT_FILES = 40
"""Pictures and results of the last matches and examples that are kept for download."""


@dataclass(frozen=True)
class Server:
    """What the page is given at the start.

    Attributes:
        folder: where pictures and results are written.
        matcher: chosen at first; its options come from the command line.
        options: of that matcher.
    """

    folder: Path
    matcher: str = "hog"
    options: dict[str, Any] = field(default_factory=dict)

    def matchers(self) -> list[str]:
        """Matchers that can be built here without further options."""
        from kbc.cli.matchers import details
        from kbc.matchers.registry import GROUP

        usable = [e for e in map(details, entry_points(group=GROUP)) if not e["about"].startswith("not usable here")]
        ready = [e["name"] for e in usable if not any(option.get("required") for option in e["options"].values())]
        return sorted({self.matcher, *ready})


@dataclass(frozen=True)
class View:
    """What the page shows after a match."""

    picture: str
    table: list[list[str]]
    summary: str
    download: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kbc ui`."""
    add = parser.add_argument
    add_matcher_options(parser, None)
    add("--labels", metavar="FILE", help="COCO keypoints to put right; saved to the same file")
    add("--root", metavar="DIR", help="folder that the file names of --labels start from")
    add("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    add("--port", type=int, default=None, help="port (default: the first free one from 7860)")
    add("--no-browser", action="store_true", help="do not open a browser")


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from kbc.matchers.registry import load_matcher

    if args.port is not None and not 1 <= args.port <= 65535:
        raise InputError(must_be("--port", "between 1 and 65535", args.port))
    if not args.host.strip():  # a shell's variable that is not set
        raise InputError(must_be("--host", "an address", repr(args.host), "0.0.0.0 is every one of this machine"))
    if args.labels is not None:
        from kbc.cli import label_ui

        return label_ui.run(args)
    if args.root is not None:
        raise InputError(must_be("--root", "given together with --labels", repr(args.root)))
    options, matcher = key_values(args.option), args.matcher or "hog"
    load_matcher(matcher, **options)  # what is wrong with it is said here, not on the page
    _require_gradio()
    with _own_folder() as folder:
        page = build(Server(folder, matcher, options))
        _, url, _ = page.launch(
            server_name=args.host, server_port=args.port, inbrowser=not args.no_browser, **launch_options(args.host)
        )
        print(f"kbc ui: {url} ; Ctrl-C ends it", file=sys.stderr)
        page.block_thread()
    return 0


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder for everything that the page is given or writes, uploads too; gone at the end, also after a signal."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.default_int_handler)  # as Ctrl-C: the page closes and the folder goes
    with tempfile.TemporaryDirectory(prefix="kbc-ui-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # Gradio has no argument for it; this process is the page's alone
        yield Path(folder)


def build(server: Server) -> Any:
    """The page as a `gradio.Blocks`.

    Raises:
        MissingDependencyError: Gradio is not installed.
    """
    gr = _require_gradio()
    from kbc.config import KBCConfig

    fields = KBCConfig.model_json_schema()["properties"]
    defaults = KBCConfig.model_fields

    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(300, 3600)) as page:
        gr.Markdown(
            "## kbc\n**1.** Choose two images, or draw an example. **2.** Click points on the left one. "
            "**3.** Match. If the right object is not found, drag a box around it on the right image and match again."
        )
        with gr.Row():
            source = gr.Image(label="source: click points", type="filepath", sources=["upload", "clipboard"],
                              image_mode=None, buttons=[], height=360, elem_id="kbc-source")  # fmt: skip
            target = gr.Image(label="target: drag a box (optional)", type="filepath", sources=["upload", "clipboard"],
                              image_mode=None, buttons=[], height=360, elem_id="kbc-target")  # fmt: skip
        with gr.Row():
            undo = gr.Button("Undo point", elem_id="kbc-undo", size="sm", min_width=90)
            clear = gr.Button("Clear", elem_id="kbc-clear", size="sm", min_width=90)
            example = gr.Button("Draw an example", elem_id="kbc-example", size="sm", min_width=140)
        with gr.Row():
            points = gr.Textbox(label="points in the source, x,y x,y …", elem_id="kbc-points", scale=3, max_lines=3,
                                placeholder="click on the source, or type")  # fmt: skip
            box = gr.Textbox(label="target box, x0,y0,x1,y1", elem_id="kbc-box", scale=2, placeholder="none: KBC looks")
        with gr.Row(equal_height=True):
            matcher = gr.Dropdown(server.matchers(), value=server.matcher, label="matcher", elem_id="kbc-matcher")
            localizer = gr.Dropdown([n for n in fields["localizer"]["enum"] if n != "given"], label="localizer",
                                    value=defaults["localizer"].default)  # fmt: skip
            budget = gr.Radio(fields["budget"]["enum"], value="thorough", label="budget: how much a match may cost",
                              elem_id="kbc-budget", min_width=400)  # fmt: skip
            go = gr.Button("Match", variant="primary", elem_id="kbc-match", min_width=140)
        summary = gr.Markdown(elem_id="kbc-summary")
        picture = gr.Image(label="answers", show_label=False, format="png", interactive=False,
                           buttons=["download", "fullscreen"], elem_id="kbc-picture")  # fmt: skip
        download = gr.DownloadButton("Download JSON", interactive=False, elem_id="kbc-download", size="sm")
        numbers = gr.Markdown(elem_id="kbc-table")
        count = gr.State(0)

        inputs = [source, target, points, box, matcher, localizer, budget]
        go.click(partial(_on_match, server), inputs, [summary, picture, numbers, download], scroll_to_output=True)
        undo.click(lambda text: " ".join(text.split()[:-1]), points, points)
        clear.click(lambda: ("", ""), None, [points, box])
        source.input(lambda: "", None, points)
        target.input(lambda: "", None, box)
        example.click(lambda n: (*draw_example(server, n), "", n + 1), count, [source, target, points, box, count])
    return page


def _on_match(server: Server, *values: Any) -> tuple[Any, ...]:
    """What the button shows: summary, picture, table and download."""
    gr = _require_gradio()
    try:
        view = answer(server, *values)
    except KBCError as error:
        raise gr.Error(without_folders(str(error)), print_exception=False) from error
    table = markdown_table(COLUMNS, view.table)
    return view.summary, view.picture, table, gr.DownloadButton(value=view.download, interactive=True)


def answer(
    server: Server, source: str | None, target: str | None, points: str, box: str, matcher: str,
    localizer: str, budget: str,
) -> View:  # fmt: skip
    """Match and write what the page shows.

    Args:
        server: where to write, and the options of the matcher from the command line.
        source, target: image files.
        points: "x,y x,y …" in the source.
        box: "x0,y0,x1,y1" in the target, or empty.
        matcher, localizer, budget: as in `kbc match`.

    Raises:
        InputError: something is missing or wrong; the message is shown on the page.
    """
    from kbc import viz

    for name, image in (("source", source), ("target", target)):
        if not image:
            raise InputError(must_be(name, "an image", "none", "choose one, or press 'Draw an example'"))
        _check_pixels(name, image)
    if not points.strip():
        raise InputError(must_be("points", "at least one point", "none", "click on the source image"))
    pair = Pair(source or "", target or "", typed_points(points), None, parse_box(box.strip() or None, "target box"))
    options = server.options if matcher == server.matcher else {}
    result = match(pair, matcher, options, {"localizer": localizer, "budget": budget})
    assert isinstance(result, MatchResult)
    stem = server.folder / secrets.token_hex(6)
    picture = viz.save(viz.draw_answer(pair, result)["kbc"], stem.with_suffix(".png"))
    data = {"matcher": matcher, "source_keypoints": rows(pair.keypoints), **result.to_dict()}
    write_json(data, stem.with_suffix(".json"))
    _keep_newest(server.folder)
    return View(str(picture), table(pair, result), describe(result), str(stem.with_suffix(".json")))


def _check_pixels(name: str, path: str) -> None:
    """Refuse an image by what its header says, before it fills the memory; what states no size is refused later."""
    size = stated_size(read_bytes(Path(path)))
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise InputError(must_be(name, f"at most {MAX_PIXELS:,} pixels", width_by_height(size), "scale it down"))


def _keep_newest(folder: Path) -> None:
    """Delete the page's own pictures and results but for the newest `KEPT_FILES`."""
    files = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime)
    for path in files[:-KEPT_FILES]:
        path.unlink(missing_ok=True)


def table(pair: Pair, result: MatchResult) -> list[list[str]]:
    """The rows of the page's table; undefined coordinates are dashes."""
    values = [pair.keypoints, result.coarse, result.keypoints]
    return [
        [
            str(i),
            *(f"{v:.1f}" if v == v else "–" for points in values for v in points[i].tolist()),
            sure(result, i),
            result.origin[i],
        ]
        for i in range(len(pair.keypoints))
    ]


def describe(result: MatchResult) -> str:
    """What happened, in a sentence or two."""
    text = (
        f"**{origins(result)}**; localizer {result.localizer or 'none'}, "
        f"{result.cost:.1f} × the plain matcher's cost, {result.seconds.get('total', 0.0):.2f} s."
    )
    if "target" in result.given:
        text += " The target box was given."
    return " ".join([text, *result.notes])


def draw_example(server: Server, number: int) -> tuple[str, str, str]:
    """Two drawn scenes on disk and the points of the first."""
    scene = scene_pair([2404, 2678, number], variation=0.2, turn=5.0, mirror=0.0, object_fraction=(0.15, 0.25))
    names = []
    for side in (scene.source, scene.target):
        path = server.folder / f"{secrets.token_hex(6)}.png"
        require_cv2().imwrite(str(path), side.image[:, :, ::-1])
        names.append(str(path))
    return names[0], names[1], " ".join(f"{x:.1f},{y:.1f}" for x, y in scene.source.keypoints)


def script() -> str:
    """The page's script: clicks and drags on the images become text in the fields, and markers over the images."""
    return (files("kbc.cli") / "ui.js").read_text(encoding="utf-8")


def launch_options(host: str = "127.0.0.1") -> dict[str, Any]:
    """What `gradio.Blocks.launch` is told besides the address: the page's script and looks, who may ask, how much."""
    return {
        "app_kwargs": {"middleware": guarded(host)}, "max_file_size": MAX_UPLOAD,
        "head": f"<script>{script()}</script>", "css": STYLE, "theme": _theme(), "footer_links": [],
        "share": False, "quiet": True, "ssr_mode": False, "prevent_thread_lock": True,
    }  # fmt: skip


STYLE = "#kbc-source img, #kbc-target img { cursor: crosshair; user-select: none; -webkit-user-drag: none; }"


def _theme() -> Any:
    fonts = ["system-ui", "sans-serif"]  # named fonts would be fetched from the network
    return _require_gradio().themes.Default(font=fonts, font_mono=["monospace"])


def _require_gradio() -> Any:
    return require("gradio", "kbc ui needs Gradio", "ui")
