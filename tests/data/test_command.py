"""`kbc data check` and `kbc data sources`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import layouts  # type: ignore[import-not-found]
import pytest

from kbc.cli import data as command
from kbc.errors import DataError, InputError


def call(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.configure(parser)
    return command.run(parser.parse_args(list(words)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (layouts.spair, "SPair-71k test: 3 usable pairs of 3 images"),
        (layouts.pascal, "PF-PASCAL test: 2 usable pairs of 3 images"),
        (layouts.willow_folders, "pf-willow: 4 usable pairs"),
        (layouts.willow_csv, "pf-willow: 2 usable pairs"),
        (layouts.ap10k, "AP-10K cross-family test: 1 usable pair of 2 images, 0 pairs left out"),
        (layouts.coco, "4 usable pairs of 4 images"),
    ],
)
def test_a_sound_copy_of_every_layout_is_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], Path], said: str
) -> None:
    assert call("check", str(make(tmp_path))) == 0
    out = capsys.readouterr().out
    assert said in out
    assert out.endswith("nothing wrong\n")


def test_what_is_wrong_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (layouts.coco(tmp_path) / "images" / "2.jpg").unlink()
    path = tmp_path / "images" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200])
    assert call("check", str(tmp_path)) == 1
    out = capsys.readouterr().out
    assert "2 usable pairs of 3 images, 2 pairs left out" in out
    assert "2.jpg" in out
    assert "3.jpg" in out
    assert "2 problems" in out


def test_the_folder_may_be_given_as_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("check", "--root", str(layouts.coco(tmp_path))) == 0
    assert capsys.readouterr().out.endswith("nothing wrong\n")
    for words in ([], [str(tmp_path), "--root", str(tmp_path)]):
        with pytest.raises(InputError, match=r"`DIR` must be given once, received .*kbc data check data/pf-willow"):
            call("check", *words)


def test_an_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--kind"):
        call("check", str(tmp_path))
    with pytest.raises(DataError, match="`DIR` must be an existing folder"):
        call("check", str(tmp_path / "absent"))


def test_a_data_set_without_a_pair_is_not_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}', encoding="utf-8")
    assert call("check", str(tmp_path)) == 1
    assert "holds no pair\n1 problem\n" in capsys.readouterr().out


def test_sources_names_origin_and_terms_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sources") == 0
    out = capsys.readouterr().out
    for word in ("SPair-71k", "PF-PASCAL", "PF-WILLOW", "AP-10K", "https://", "CC BY 4.0", "icence"):
        assert word in out
