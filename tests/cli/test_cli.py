"""The command line: what is printed, what is written, which exit code, and how fast help comes."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest

from kbc import cli
from kbc.cli.completion import SHELLS
from kbc.cli.match import MEANING, NEXT
from kbc.cli.matchers import details
from kbc.cli.options import key_values, parse_box
from kbc.cli.points import parse_points, typed_points
from kbc.data.scenes.render import scene_pair
from kbc.errors import InputError, MatcherError, MissingDependencyError
from kbc.files import write_json, written_whole
from kbc.types import Origin


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A drawn pair on disk, its points as a string and its true target box."""
    folder = tmp_path_factory.mktemp("photos")
    scene = scene_pair(3, size_hw=(240, 320), object_fraction=(0.2, 0.2))
    for name, image in (("a", scene.source.image), ("b", scene.target.image)):
        cv2.imwrite(str(folder / f"{name}.png"), image[:, :, ::-1])
    points = " ".join(f"{x:.3f},{y:.3f}" for x, y in scene.source.keypoints)
    box = ",".join(f"{edge:.2f}" for edge in scene.target_box.xyxy)
    return {"a": str(folder / "a.png"), "b": str(folder / "b.png"), "points": points, "box": box}


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(args)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_terminal_of_few_signs_is_written_to() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-m", "kbc", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage: kbc COMMAND" in done.stdout


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2", [[1, 2]]),
        ("1,2 3.5,-4", [[1, 2], [3.5, -4]]),
        (" 1 , 2 ;3,4\n", [[1, 2], [3, 4]]),
        ("1e2,.5", [[100, 0.5]]),
    ],
)
def test_points_are_read_from_text(text: str, expected: list[list[float]]) -> None:
    assert parse_points(text).points.tolist() == typed_points(text).tolist() == expected


@pytest.mark.parametrize("text", ["", "1", "1 2", "1,2,3", "1,2 x", "a,b", "1,2 3"])
def test_text_that_is_not_points_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="`--points` must be"):
        parse_points(text)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", "[[1, 2], null, [3.5, 4]]"),
        ("p.json", '{"keypoints": [[1, 2], [null, null], [3.5, 4]], "score": null}'),
        ("p.json", '{"points": [[1, 2], null, [3.5, 4]]}'),
        ("p.csv", "1,2\n,\n3.5,4\n"),
        ("p.csv", "x,y\n1,2\n,\n3.5,4\n"),
        ("p.csv", "name,y,x\nnose,2,1\ntail,,\near,4,3.5\n"),
        ("p.csv", "\ufeffx,y\n1,2\n,\n3.5,4\n\n"),
        ("p.csv", "id,X, Y\n7,1,2\n8,,\n9,3.5,4\n"),
        ("p.csv", ",x,y\n0,1,2\n1,,\n2,3.5,4\n"),  # as pandas writes an index
        ("p.csv", "1,2\nnan,nan\n3.5,4\n"),
        ("p.csv", "x,y,v\n1,2,2\n9,9,0\n3.5,4,1\n"),
        ("p.csv", "visible,x,y\nTrue,1,2\nFalse,9,9\ntrue,3.5,4\n"),
        ("p.csv", "x,y,v\n1,2,2.0\n,,\n3.5,4,1.0\n"),
        ("p.json", "[[1, 2, 2], [0, 0, 0], [3.5, 4, 1]]"),
        ("p.json", '{"keypoints": [[1, 2, 2], [null, null, 0], [3.5, 4]]}'),
    ],
)
def test_points_are_read_from_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    expected = [[1.0, 2.0], [np.nan, np.nan], [3.5, 4.0]]
    np.testing.assert_array_equal(parse_points(str(tmp_path / name)).points, expected)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "[[1, 2", r"p\.json: must be JSON"),
        ("p.json", "[]", "a JSON list of points"),
        ("p.json", "[[1, 2, 3]]", r"the entry \[1, 2, 3\]"),
        ("p.json", "[1, 2]", "the entry 1"),
        ("p.json", '{"boxes": []}', r'"keypoints" or "points", .*received the keys \[\'boxes\'\]'),
        ("p.json", '[["a", "b"]]', "numbers, received the coordinate 'a'"),
        ("p.csv", "", "no rows"),
        ("p.csv", "x,y\n", "no rows"),
        ("p.csv", "1\n2\n", "two columns"),
        ("p.csv", "1,2\n3,four\n", "two columns"),
        ("p.csv", "id,px,py\n1,2,3\n", "one column x and one y, received the columns id, px, py in"),
        ("p.csv", "nose,1,2\ntail,3,4\n", "one column x and one y, received the columns nose, 1, 2 in"),
        ("p.csv", "0,412,300\n1,460,310\n", "first line that names more, such as id,x,y, received the row '0,412,300'"),
        ("p.csv", "1,2\n3\n", "received the row '3'"),
        ("p.csv", "name,x,y\nnose, left,1,2\n", "the columns name, x, y, received the row 'nose,left,1,2'"),
        ("p.csv", "x,y,v\n1,2,0.93\n", r"the entry \[1.0, 2.0, 0.93\] in .*; v is the visibility 0, 1 or 2"),
        ("p.csv", "x,y,v\n1,2,\n", r"the entry \[1.0, 2.0, None\]"),
        ("p.csv", "x,y,v\n1,2,yes\n", "received the row '1,2,yes'"),
        ("p.json", "", "must be a JSON file, received an empty one"),
        ("p.json", "[1, 2, 2, 3, 4, 2]", "the entry 1 in .*grouped"),
        ("p.json", "[" * 100_000, "recursion limit"),
        ("p.json", "[[" + "9" * 5000 + ", 1]]", "out of range"),
        ("p.json", "[[1" + "0" * 400 + ", 1]]", "numbers, received the coordinate 1000"),
        ("p.json", "[[true, 1]]", "numbers, received the coordinate True"),
        ("p.json", "[[1e999, 1]]", "finite"),
        ("p.json", '{"points": [[1, 2]], "names": ["a", "b"]}', '"names" for its 1 points'),
        ("p.csv", "x,y,x\n1,2,3\n", "one column x and one y"),
        ("p.csv", "1," + "2" * 200_000 + "\n", "field larger than field limit"),
        ("p.csv", "1,\x002\n", "one column x and one y"),
        ("p.csv", "x;y\n1,5;2,5\n", "received the row '1,5;2,5'"),
        ("p.json", "[[1, 2, 0.93]]", r"the entry \[1, 2, 0.93\] in .*; v is the visibility 0, 1 or 2"),
    ],
)
def test_broken_points_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        parse_points(str(tmp_path / name))


def test_points_files_of_another_encoding(tmp_path: Path) -> None:
    for name, content in (("p.csv", "name,x,y\nœil,1,2\n"), ("p.json", '{"points": [[1, 2]], "names": ["œil"]}')):
        (tmp_path / name).write_text(content, encoding="utf-16")
        assert parse_points(str(tmp_path / name)).names == ("œil",)
        (tmp_path / name).write_bytes(content.replace("œ", "é").encode("latin-1"))
        with pytest.raises(InputError, match=r"must be text in UTF-8, received byte 0xE9 at"):
            parse_points(str(tmp_path / name))


def test_points_files_with_semicolons_or_tabs(tmp_path: Path) -> None:
    for sign in ";\t":
        (tmp_path / "p.csv").write_text("y,x\n2,1\n".replace(",", sign))
        assert parse_points(str(tmp_path / "p.csv")).points.tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["p\0.json", "a" * 300 + ".csv", "a" * 5000 + ".json", "pipe.json", "folder.csv"])
def test_what_is_no_points_file_is_refused_and_never_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"`--points` must be .*(cannot be read|a regular file)"):
        parse_points(str(tmp_path / name))


def test_points_keep_their_names(photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.csv").write_text("bodypart,y,x\nleft ear,80,100\ntail,90,120\n")
    given = ("match", photos["a"], photos["b"], "--points", str(tmp_path / "p.csv"), "--no-kbc")
    assert json.loads(run(capsys, *given, "--json", "-")[1])["names"] == ["left ear", "tail"]
    lines = run(capsys, *given)[1].splitlines()
    assert [line[:24] for line in lines[1:3]] == ["left ear   100.0    80.0", "    tail   120.0    90.0"]
    (tmp_path / "p.json").write_text('{"points": [[100, 80]], "names": ["nose"]}')
    assert parse_points(str(tmp_path / "p.json")).names == ("nose",)


def test_a_points_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"p\.json: cannot be read \(No such file"):
        parse_points("/nowhere/p.json")


def test_options_keep_their_types() -> None:
    found = key_values(["size=320", "weights=a=b.pth", "layers=[2,3]", "fast=true", "half-size=1.5"])
    assert found == {"size": 320, "weights": "a=b.pth", "layers": [2, 3], "fast": True, "half_size": 1.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("False", False),
        ("false", False),
        ("True", True),
        ("None", None),
        ("null", None),
        ("2,3", (2, 3)),
        ("(2, 3)", (2, 3)),
        ("[2,3]", [2, 3]),
        ("facebook/dinov2-base", "facebook/dinov2-base"),
        ("weights/a-1.pth", "weights/a-1.pth"),
        ("no", "no"),
        ("", ""),
        ("{[]: 1}", "{[]: 1}"),
        ("(" * 400, "(" * 400),
    ],
)
def test_values_are_read_as_people_write_them(text: str, value: object) -> None:
    (found,) = key_values([f"key={text}"]).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("given", [["size"], ["=3"], ["a=1", "a=2"]])
def test_options_without_a_key_or_given_twice_are_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match="`--option` must be"):
        key_values(given)


def test_boxes_are_xyxy() -> None:
    assert parse_box("1,2,30,40", "--target-box").xyxy == (1, 2, 30, 40)
    assert parse_box("1 2 30 40", "--target-box").xyxy == (1, 2, 30, 40)
    assert parse_box(None, "--target-box") is None
    for text in ("1,2,3", "30,2,1,40", "a,b,c,d", ""):
        with pytest.raises(InputError, match="`--target-box` must be four numbers x0,y0,x1,y1"):
            parse_box(text, "--target-box")


# Files ----------------------------------------------------------------------------------------------------------------


def write_and_stop(path: Path) -> None:
    with written_whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]
    with written_whole(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_text() == "new"


def test_json_refuses_nan_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json({"x": float("nan")}, tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


# The command ----------------------------------------------------------------------------------------------------------


def test_help_imports_neither_torch_nor_cv2() -> None:
    code = "import sys, kbc.cli; assert kbc.cli.main(['--help']) == 0; assert not {'torch', 'cv2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in cli.COMMANDS)
    assert "exit codes" in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_examples_and_exit_codes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert f"kbc {name}" in out
    assert "example" in out.lower()
    assert "130  interrupted" in out


@pytest.mark.parametrize("example", [e for command in cli.COMMANDS.values() for e in command.examples])
def test_every_example_is_understood(example: str) -> None:
    words = shlex.split(example.split(" > ")[0])[1:]
    args = cli.command_parser(words[0], cli.COMMANDS[words[0]].load()).parse_args(words[1:])
    assert vars(args)


def test_no_command_shows_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    assert "commands:" in out


def test_an_unknown_command_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "mach")
    assert (code, out) == (cli.WRONG_INPUT, "")
    assert "'match'" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import kbc

    assert run(capsys, "--version") == (0, f"kbc {kbc.__version__}\n", "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("`x` must be y"), 2),
        (MatcherError("it broke"), 1),
        (MissingDependencyError("install it"), 3),
        (KeyboardInterrupt(), 130),
        (PermissionError(13, "no", "a.json"), 1),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(args: object) -> int:
        raise error

    monkeypatch.setattr("kbc.cli.env.run", fail)
    found, out, err = run(capsys, "env")
    assert (found, out) == (code, "")
    assert err.startswith("kbc: ")
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("kbc.cli.env.run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["env"])


def test_env_names_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "env", "--json", "-")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["numpy"] == np.__version__
    assert facts["python"].startswith(sys.version.split()[0])
    assert {"torch", "cv2", "platform", "gradio"} <= set(facts)
    assert facts["numpy"] in run(capsys, "env")[1]


def test_matchers_are_listed_with_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "matchers", "--json", "-")
    found = {entry["name"]: entry for entry in json.loads(out)}
    assert code == 0
    assert found["hog"]["options"]["size"]["default"] == 256
    assert found["hog"]["options"]["votes"]["default"] is False
    assert found["resnet18"]["options"]["layers"]["default"] == [2, 3]
    assert found["resnet18"]["options"]["weights"]["required"] is True
    assert "torchvision" in found["resnet18"]["options"]["weights"]["help"]
    assert run(capsys, "matchers", "hog")[1].startswith("hog\n    Dense gradient")
    code, _, err = run(capsys, "matchers", "hogg")
    assert code == 2
    assert "did you mean 'hog'" in err


def test_matchers_options_are_explained_and_shown_as_one_types_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    everything, hog = run(capsys, "matchers")[1], run(capsys, "matchers", "hog")[1]
    assert "    needs: weights\n    options: layers=2,3  size=256  votes=false  device=cpu\n" in everything
    assert "    votes   let the surrounding matches vote" in hog
    assert "(default false)" in hog
    assert "False" not in everything + hog
    for name in ("chm", "dhpf", "scot", "cats", "mmnet"):
        builder = EntryPoint(name, f"kbc_adapters.{name}:load", "kbc.matchers")
        options = details(builder)["options"]
        upstream = inspect.get_annotations(builder.load(), eval_str=True)["return"].upstream
        licence = "no licence" if upstream.licence == "none" else upstream.licence
        assert upstream.repository in options["checkout"]["help"]
        assert licence in options["checkout"]["help"]
        assert all(option["help"] for option in options.values())


def strange(*, given: object = Path("a"), **others: object) -> None: ...


def test_a_third_partys_builder_needs_no_documentation() -> None:
    found = details(EntryPoint("strange", f"{__name__}:strange", "kbc.matchers"))
    assert found == {"name": "strange", "about": "no description", "options": {"given": {"help": "", "default": "a"}}}


def test_output_and_help_fit_eighty_columns(
    photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = ["matchers", "matchers hog dino cats", "data check --help", *(f"{name} --help" for name in cli.COMMANDS)]
    examples = {f"  {example}" for command in cli.COMMANDS.values() for example in command.examples}
    for line in ["--help", *shown]:
        text = run(capsys, *line.split())[1]
        assert [row for row in text.splitlines() if len(row) > 80 and row not in examples] == []
    text = run(capsys, "match", photos["a"], photos["b"], "--points", photos["points"])[1]
    assert max(map(len, text.splitlines())) <= 80


def test_match_explains_each_kind_of_answer_that_occurs_and_says_what_to_try(
    photos: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    given = ("match", photos["a"], photos["b"], "--points")
    assert (
        "\ncoarse: off  the matcher's own (KBC is off)\n"
        in run(capsys, *given, photos["points"], "--set", "passes=0")[1]
    )
    out = run(capsys, *given, "5,5 310,5 5,230 310,230")[1]
    assert "\ncoarse: refused  the matcher's own (no window was surely better)" in out
    assert "--target-box" in out
    assert "coarse: off" not in out
    assert set(MEANING) == set(get_args(Origin))
    assert set(NEXT) <= set(MEANING)
    helped = " ".join(run(capsys, "match", "--help")[1].split())
    assert all(f"{kept} {meaning}" in helped for kept, meaning in MEANING.items())
    assert "[[x, y, v], ...]" in helped


def test_match_notes_points_outside_and_pictures_that_were_turned(
    photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow comes with matplotlib, an extra")
    code, _, err = run(capsys, "match", photos["a"], photos["b"], "--points", "100,100 319,20 -3,4 330,20", "--no-kbc")
    assert code == 0
    assert err == "note: 2 of 4 points outside the source image (320×240), e.g. -3,4\n"
    exif = pillow.Exif()
    exif[0x0112] = 8
    pillow.open(photos["a"]).save(tmp_path / "turned.png", exif=exif)
    turned = str(tmp_path / "turned.png")
    code, _, err = run(capsys, "match", turned, photos["b"], "--points", "100,300", "--no-kbc", "--json", "-")
    assert (code, err.count("\n")) == (0, 1)
    assert "turned.png was turned upright, as its EXIF tag says: points are pixels of the 240×320 picture" in err


def test_match_prints_json_and_nothing_else(photos: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "match", photos["a"], photos["b"], "--points", photos["points"], "--json", "-")
    assert code == 0, err
    result = json.loads(out)
    count = len(photos["points"].split())
    assert len(result["keypoints"]) == len(result["coarse"]) == len(result["source_keypoints"]) == count
    assert all(0 <= x < 320 and 0 <= y < 240 for x, y in result["keypoints"])
    assert result["matcher"] == "hog"


def test_match_with_a_target_box_says_so_and_stays_near_it(
    photos: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys, "match", photos["a"], photos["b"], "--points", photos["points"], "--target-box", photos["box"],
        "--localizer", "given", "--json", "-",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["given"] == ["target"]


def test_match_writes_a_picture_and_a_table(
    photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    code, out, err = run(
        capsys, "match", photos["a"], photos["b"], "--points", photos["points"], "--plot", str(tmp_path / "m.png"),
        "--json", str(tmp_path / "m.json"), "--budget", "fast", "--option", "size=128",
    )  # fmt: skip
    assert code == 0, err
    assert cv2.imread(str(tmp_path / "m.png")).shape[1] > 500
    answer = json.loads((tmp_path / "m.json").read_text())["keypoints"][0]
    assert f"{answer[0]:8.1f}{answer[1]:8.1f}" in out


def test_match_without_kbc_is_the_matcher_alone(photos: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    given = ("match", photos["a"], photos["b"], "--points", photos["points"], "--json", "-")
    alone = json.loads(run(capsys, *given, "--no-kbc")[1])
    with_kbc = json.loads(run(capsys, *given)[1])
    np.testing.assert_allclose(alone["keypoints"], with_kbc["coarse"], atol=1e-4)
    assert "target_window" not in alone
    code, _, err = run(capsys, *given, "--no-kbc", "--budget", "fast")
    assert code == 2
    assert "`--no-kbc` must be" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--points", "1"), "`--points` must be"),
        (("--points", "1,1", "--matcher", "hogg"), "did you mean 'hog'"),
        (("--points", "1,1", "--option", "sise=3"), "did you mean 'size'"),
        (("--points", "1,1", "--set", "margn=3"), "did you mean 'margin'"),
        (("--points", "1,1", "--set", "margin=-3"), "margin"),
        (("--points", "1,1", "--set", "budget=fast", "--budget", "thorough"), "`--set` must be without budget"),
        (("--points", "1,1", "--target-box", "9,9,1,1"), "`--target-box` must be"),
        (("--points", "1,1", "--min-confidence", "2"), "`--min-confidence` must be in [0, 1]"),
        (("--points", "1,1", "--min-confidence", "0.5", "--localizer", "predicted"), "`min_confidence` must be 0 with"),
    ],
)
def test_match_names_what_is_wrong(
    change: tuple[str, ...], message: str, photos: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "match", photos["a"], photos["b"], *change)
    assert (code, out) == (2, "")
    assert message in err


def test_match_refuses_an_output_before_it_matches(
    photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    monkeypatch.setattr("kbc.cli.match.match", lambda *_: pytest.fail("it matched"))
    for name, value, message in (
        ("--json", str(tmp_path / "no" / "out.json"), "`--json` must be in a folder that can be written to"),
        ("--json", str(tmp_path), "`--json` must be a file's name, received the folder"),
        ("--plot", str(tmp_path / "no" / "out.png"), "`--plot` must be in a folder that can be written to"),
        ("--plot", str(tmp_path / "out.xyz"), "`--plot` must be a picture's name such as out.png"),
        ("--plot", "-", "`--plot` must be a picture's name such as out.png, received '-'"),
    ):
        code, out, err = run(capsys, "match", photos["a"], photos["b"], "--points", "1,1", name, value)
        assert (code, out) == (2, "")
        assert message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("match", "a", "b"), "`--points` must be given, received nothing; see `kbc match --help`"),
        (("match", "a", "b", "--points", "-5,1"), "`--points` must be followed by a value, received none; "),
        (("match", "a", "b", "--points", "1,1", "--budgt", "fast"), "received '--budgt fast'; did you mean '--budget'"),
        (("match", "a", "b", "--points", "1,1", "--budget", "fest"), "`--budget` must be one of fast, balanced, thoro"),
        (("eval", "--alpha", "0.1", "--alpha", "0.2"), "`--alpha` must be given once, received '0.1' and '0.2'; "),
        (("eval", "--jobs", "1", "--jobs", "2"), "`--jobs` must be given once, received 1 and 2; "),
        (
            ("data", "check", "a", "--kind", "coco", "--kind", "coco"),
            "`--kind` must be given once, received 'coco' and",
        ),
        (("demo", "--pairs", "x"), "`--pairs` must be a whole number, received 'x'; see `kbc demo --help`"),
        (("demo", "--out", __file__), "`--out` must be a folder that can be written to, received "),
        (("data", "chek"), "`action` must be one of check, sources, received 'chek'; did you mean 'check'?"),
        (("ui", "--host", ""), "`--host` must be an address, received ''; 0.0.0.0 is every one of this machine"),
        (("ui", "--port", "99999"), "`--port` must be between 1 and 65535, received 99999"),
        (("ui", "--matcher", "hogg"), "did you mean 'hog'?"),
    ],
)
def test_wrong_options_are_one_line_with_what_to_do(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("option", ["--json", "--plot"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_match_writes_into_no_picture_that_it_reads(
    photos: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, side: str
) -> None:
    mine = {name: str(tmp_path / f"{name}.png") for name in "ab"}
    for name, path in mine.items():
        shutil.copy(photos[name], path)
    code, _, said = run(capsys, "match", mine["a"], mine["b"], "--points", photos["points"], option, mine[side])
    assert (code, f"`{option}` must be a file of its own" in said) == (2, True)
    for name, path in mine.items():
        assert Path(path).read_bytes() == Path(photos[name]).read_bytes()


def test_match_names_a_file_that_is_not_there(photos: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "match", "nowhere.jpg", photos["b"], "--points", "1,1")
    assert code == 2
    assert "`source` must be an existing image file, received 'nowhere.jpg'" in err


# Completion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["kbc", "ma"], {"match", "matchers"}),
        (["kbc", "match", "--targ"], {"--target-box"}),
        (["kbc", "match", "--budget", ""], {"fast", "balanced", "thorough"}),
        (["kbc", "completion", "f"], {"fish"}),
        (["kbc", "match", "--matcher", "ho"], {"hog"}),
        (["kbc", "matchers", "ho"], {"hog"}),
        (["kbc", "data", "check", "--ki"], {"--kind"}),
        (["kbc", "match", "pho"], {"photo.jpg"}),
    ],
)
def test_bash_completes(
    line: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    script = run(capsys, "completion", "bash")[1]
    words = " ".join(f"'{word}'" for word in line)
    ask = (
        f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(line) - 1}; _shtab_kbc; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    (tmp_path / "photo.jpg").touch()
    done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, cwd=tmp_path)
    assert set(done.stdout.split()) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    code, script, err = run(capsys, "completion", shell)
    assert (code, err) == (0, "")
    assert all(word in script for word in [*cli.COMMANDS, "target-box"])


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run(capsys, "completion", "bash") == (
        3,
        "",
        'kbc: kbc completion needs shtab; run: pip install "kbc[completion]"\n',
    )


# Interruption and pipes -----------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path) -> None:
    """The real process, interrupted while it matches: exit code 130, one line, no files."""
    command = [sys.executable, "-m", "kbc", "demo", "--pairs", "24", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("hog"):  # the first matcher is through; while modules load, Python can lose an interrupt
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    finally:
        process.kill()
    assert (process.returncode, out) == (130, "")
    assert err.strip().splitlines()[-1] == "kbc: interrupted"
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(f"'{sys.executable}' -m kbc matchers | head -n 1", shell=True, capture_output=True, text=True)
    assert done.stdout.strip() == "cats"
    assert done.stderr == ""
