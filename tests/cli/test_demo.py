"""`kbc demo`: what it prints and writes, and that it shows what it is there to show."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import kbc
from kbc import cli
from kbc.cli.demo import by_gain, draw_scenes, plan, play, table
from kbc.config import KBCConfig
from kbc.evaluation.pck import correct


def test_the_demo_prints_a_table_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    pytest.importorskip("matplotlib", reason="matplotlib is an extra")
    out = tmp_path / "new" / "folder"
    code = cli.main(["demo", "--pairs", "1", "--matcher", "hog", "--out", str(out), "--budget", "fast"])
    printed, progress = capsys.readouterr()
    assert code == 0
    report = json.loads((out / "demo.json").read_text())
    shown = report["matchers"][0]
    assert f"{100 * shown['pck_with_kbc']['0.1']:7.1f}" in printed
    assert " ".join(progress.split()).startswith(
        "drawing 1 pair and matching them with hog, without KBC and with it at budget 'fast' (at most 2 times the "
        "matcher alone); about 10 seconds on two idle cores"
    )
    assert "1 drawn pair," in " ".join(printed.split())
    assert all(len(line) <= 80 for line in printed.splitlines() if str(tmp_path) not in line)
    picture = cv2.imread(str(out / "demo.png"))
    assert picture.shape[1] > 1000
    assert picture.std() > 20


def test_without_matplotlib_the_table_is_shown_and_the_line_to_run_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo", "--pairs", "1", "--matcher", "hog", "--out", str(tmp_path)]) == 0
    printed, said = capsys.readouterr()
    assert said.startswith("note: no demo.png, the table alone:")
    assert 'pip install "kbc[viz]"' in " ".join(said.split())
    assert "hog with KBC" in printed
    assert "written:" in printed
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]


def test_the_demo_says_beforehand_how_long_it_takes() -> None:
    bundled: list[tuple[str, dict[str, object]]] = [("hog", {}), ("kbcnet", {})]
    assert plan(8, bundled, KBCConfig()).endswith("; about 30 seconds on two idle cores")
    assert plan(8, bundled, KBCConfig(budget="thorough")).endswith("; at most 3 minutes on two idle cores")
    assert plan(8, [("mine", {})], KBCConfig()).endswith("(at most 2 times the matcher alone)")


def test_the_demo_runs_at_the_library_s_default_and_says_what_kbcnet_has_seen() -> None:
    scenes = draw_scenes(1, 0, 0.3)
    outcome = play("hog", kbc.load_matcher("hog"), scenes, KBCConfig())
    shown = table([outcome, replace(outcome, matcher="kbcnet")], 1, KBCConfig())
    assert "budget 'fast'" in " ".join(shown.split())
    assert "trained on drawings of this kind" in " ".join(shown.split())
    assert "trained" not in table([outcome], 1, KBCConfig())
    assert max(result.cost for result in outcome.results) <= 2


def test_json_on_standard_output_is_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["demo", "--pairs", "2", "--matcher", "hog", "--budget", "fast", "--no-plot", "--quiet", "--json", "-"]
    code = cli.main([*args, "--out", str(tmp_path)])
    printed, progress = capsys.readouterr()
    assert (code, progress) == (0, "")
    report = json.loads(printed)
    assert report == json.loads((tmp_path / "demo.json").read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["demo.json"]
    # the table's figures follow from the points in the file
    scenes = draw_scenes(2, 0, report["variation"])
    results = report["matchers"][0]["results"]
    right = [
        correct(
            [p or [np.nan, np.nan] for p in result["keypoints"]],
            scene.target_keypoints,
            scene.target.image.shape[:2],
            scene.target_box,
        )[:, 1]
        for scene, result in zip(scenes, results, strict=True)
    ]
    assert np.concatenate(right).mean() == pytest.approx(report["matchers"][0]["pck_with_kbc"]["0.1"])
    assert [int(r.sum()) for r in right] == [result["right_with_kbc"] for result in results]


def test_wrong_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--pairs", "0"), ("--variation", "2"), ("--seed", "-1")):
        assert cli.main(["demo", option, value, "--no-plot", "--out", str(tmp_path)]) == 2
        err = capsys.readouterr().err
        assert f"{option.lstrip('-')}` must be" in err
        assert err.count("\n") == 1  # no work was announced
    words = ["demo", "--matcher", "resnet18", "--option", "weights=absent.pth", "--no-plot", "--out", str(tmp_path)]
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("kbc: `weights` must be an existing weight file, received 'absent.pth'")
    assert cli.main(["demo", "--option", "size=3", "--out", str(tmp_path)]) == 2
    assert "`--option` must be given together with --matcher" in capsys.readouterr().err


@pytest.mark.slow
def test_kbc_plainly_helps_on_the_demos_scenes() -> None:
    scenes = draw_scenes(12, 0, 0.3)
    outcome = play("hog", kbc.load_matcher("hog"), scenes, KBCConfig(budget="thorough"))
    gain = outcome.with_kbc.per_point[0.1] - outcome.without.per_point[0.1]
    assert gain > 0.2
    order = by_gain(outcome, scenes)
    gains = [
        np.subtract(*(
            correct(points, s.target_keypoints, (480, 640), s.target_box)[:, 1].mean()
            for s in [scenes[i]]
            for points in (outcome.results[i].keypoints, outcome.results[i].coarse)
        ))
        for i in order
    ]  # fmt: skip
    assert len(order) == 5
    assert gains == sorted(gains, reverse=True)
