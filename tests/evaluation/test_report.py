"""The report's figures by hand, and what a reader must be able to see in it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from kbc.cli import eval as command
from kbc.errors import InputError
from kbc.evaluation.markdown import render
from kbc.evaluation.outcomes import Outcome, parse_outcome
from kbc.evaluation.pck import Protocol
from kbc.evaluation.plan import Plan, Run, Source
from kbc.evaluation.report import (
    SIZE_EDGES,
    Report,
    RunInfo,
    build,
    by_size,
    comparison,
    dataset_report,
    pair_scores,
    run_report,
)

PROTOCOL = Protocol((0.05, 0.1), "bbox")


def outcome(pair: int, right: Sequence[bool], run: str = "m off", **fields: Any) -> Outcome:
    """A pair in a 100 × 100 picture with a 20 px box; wrong points are 50 px off."""
    truth = tuple((10.0 + i, 10.0) for i in range(len(right)))
    predicted = tuple((x, y if ok else y + 50) for (x, y), ok in zip(truth, right, strict=True))
    base: dict[str, Any] = {
        "predicted": predicted,
        "truth": truth,
        "box": (5.0, 5.0, 25.0, 20.0),
        "size_hw": (100, 100),
        "category": "cat",
        "seconds": 0.5,
    }
    return Outcome(fields.pop("dataset", "set"), run, str(pair), pair, **{**base, **fields})


PLAIN = [outcome(0, [True, False]), outcome(1, [True] * 4), outcome(2, [False] * 4), outcome(3, [True, True])]
BETTER = [
    outcome(0, [True, True], "m best", calls=5),
    outcome(1, [True, True, True, False], "m best", calls=5),
    outcome(2, [False, False, False, True], "m best", calls=5),
    outcome(3, [True, True], "m best", calls=1),
]


def test_the_comparison_by_hand() -> None:
    found = comparison(PLAIN, BETTER, PROTOCOL)
    assert found.pairs == 4
    assert found.gain == pytest.approx((0.5 - 0.25 + 0.25 + 0) / 4)
    assert (found.better, found.worse, found.much_worse) == (0.5, 0.25, 0.25)
    assert found.loss == pytest.approx(0.25)
    assert found.p == pytest.approx(3 / 8)  # of ±.5 ±.25 ±.25: .5 or more in 3 of 8
    assert found.interval[0] < found.gain < found.interval[1]


def test_the_column_any_instance_stands_where_there_are_others() -> None:
    far = tuple((x, y + 50) for x, y in ((10.0, 10.0), (11.0, 10.0)))  # where `outcome` puts wrong points
    held = [outcome(0, [True, False], others=(far,)), outcome(1, [False, False])]
    found = run_report(held, PROTOCOL)
    assert found.per_image["0.1"] == pytest.approx(0.25)
    assert found.any_instance is not None
    assert found.any_instance["0.1"] == pytest.approx(0.5)
    assert run_report(PLAIN, PROTOCOL).any_instance is None
    chosen = run_report(held, Protocol((0.05, 0.1), "bbox", instance="any"))
    assert (chosen.per_image["0.1"], chosen.any_instance) == (pytest.approx(0.5), None)


def test_a_fall_of_exactly_ten_points_is_not_much_worse() -> None:
    before, after = [outcome(0, [True] * 10)], [outcome(0, [True] * 9 + [False])]
    found = comparison(before, after, PROTOCOL)
    assert (found.worse, found.much_worse) == (1.0, 0.0)


def test_a_run_by_hand() -> None:
    found = run_report(BETTER, PROTOCOL)
    assert found.per_point["0.1"] == pytest.approx(8 / 12)
    assert found.per_image["0.1"] == pytest.approx((1 + 0.75 + 0.25 + 1) / 4)
    assert found.calls == 4.0
    assert found.seconds == 0.5
    assert found.matcher_failures == 0


def test_the_price_is_told_in_calls_and_in_time() -> None:
    slower = [
        replace(o, seconds=2.0, own_seconds=own, cost=4.0) for o, own in zip(BETTER, (0.5, 1.5, 1, 1), strict=True)
    ]
    runs = {"m off": PLAIN, "m best": slower}
    found = dataset_report("set", runs, {"m off": "m off", "m best": "m off"}, PROTOCOL).runs
    assert (found["m best"].cost, found["m best"].time, found["m best"].own_seconds) == (4.0, 4.0, 1.0)
    assert (found["m off"].time, found["m off"].own_seconds) == (1.0, None)  # its lines do not say
    alone = dataset_report("set", {"m best": slower}, {"m best": "m best"}, PROTOCOL).runs["m best"]
    assert alone.time is None  # nothing to compare with


def test_lines_from_before_own_seconds_were_kept_are_read() -> None:
    told = outcome(0, [True], own_seconds=0.25)
    line = told.to_json()
    assert parse_outcome(line).own_seconds == 0.25
    older = line.replace(',"own_seconds":0.25', "")
    assert older != line
    assert parse_outcome(older) == told
    assert parse_outcome(older).own_seconds is None


def test_a_report_from_before_is_read_and_shown() -> None:
    text = (Path(__file__).parent.parent.parent / "examples" / "results" / "report.json").read_text(encoding="utf-8")
    older = json.loads(text)
    for dataset in older["datasets"]:
        for numbers in dataset["runs"].values():
            numbers.pop("own_seconds", None)
            numbers.pop("time", None)
    report = TypeAdapter(Report).validate_python(older)
    assert report.to_dict() == older
    assert "| 1.0 | 1.0 | – | 0.0" in render(report)
    assert "KBC's own |" not in render(report)


def test_seconds_do_not_make_an_outcome_another() -> None:
    one = outcome(0, [True])
    assert one == replace(one, seconds=3.0, own_seconds=1.0)
    assert one != replace(one, cost=2.0)


def test_failures_of_the_matcher_count_as_wrong_and_of_the_data_not_at_all() -> None:
    failed = outcome(1, [True, True], failure="matcher", error="x", predicted=(None, None))
    broken = Outcome("set", "m off", "2", 2, failure="data", error="y", truth=((1.0, 1.0),))
    found = run_report([outcome(0, [True, True]), failed, broken], PROTOCOL)
    assert found.per_point["0.1"] == 0.5
    assert (found.pairs, found.matcher_failures, found.data_failures) == (2, 1, 1)
    part = dataset_report("set", {"m off": [outcome(0, [True]), failed, broken]}, {"m off": "m off"}, PROTOCOL)
    assert [failed.pair for failed in part.failures] == ["1", "2"]


def test_pairs_fall_into_the_bin_of_their_object() -> None:
    small = outcome(0, [False], box=(0.0, 0.0, 8.0, 8.0), truth=((4.0, 4.0),), predicted=((90.0, 90.0),))
    edge = outcome(1, [True], box=(0.0, 0.0, 20.0, 10.0), truth=((4.0, 4.0),), predicted=((4.0, 4.0),))
    found = by_size([small, edge], PROTOCOL, lambda o: o.size, SIZE_EDGES)
    assert [(b.low, b.high, b.pairs, b.pck) for b in found] == [(0.0, 0.1, 1, 0.0), (0.2, 0.3, 1, 1.0)]


def test_scores_of_different_thresholds_differ() -> None:
    near = outcome(0, [True], predicted=((10.0, 11.5),), truth=((10.0, 10.0),))
    assert pair_scores([near], Protocol((0.1,), "bbox")) == {"0": 1.0}
    assert pair_scores([near], Protocol((0.05,), "bbox")) == {"0": 0.0}


def test_the_markdown_carries_protocol_gain_and_price(root: Path) -> None:
    made = Plan((Source("coco", str(root)),), (Run("m", "off"), Run("m", "best"), Run("m", "given")))
    datasets = made.open()
    name = datasets[0].name
    told = [outcome(i, [True, True], "m given", instances=2, own_seconds=0.125, seconds=1.0) for i in range(4)]
    held = [
        Outcome(**{**o.__dict__, "dataset": name, "instances": 1 + i % 2})
        for group in (PLAIN, BETTER, told)
        for i, o in enumerate(group)
    ]
    beside = replace(held[0], others=(held[0].predicted,))
    report = build(made, datasets, [beside, *held[1:]], {name: PROTOCOL}, "kbc eval --x")
    assert name in json.dumps(report.to_dict(), allow_nan=False)
    assert report.with_alias("--x", "--x") == report  # read back from its own text, nothing is lost
    text = render(report)
    for word in (
        "`kbc eval --x`",
        str(PROTOCOL),
        "KBC off",
        "true window (given)",
        "+12.5",
        "0.375",
        "much worse",
        "cost | time | s / pair | own s",
        "| 2.0 | 1.000 | 0.125 |",
        "| of them KBC's own |",
        "Without the target's box",
        "With the target's box given",
        "By object size",
        "In 50.0 % of the pairs",
        "any instance @0.1",
    ):
        assert word in text, word
    rows = [line for line in text.splitlines() if line.startswith("| cows")]
    assert "**75.0**" in rows[0]
    assert "100.0" in rows[0]
    assert "**100.0**" not in rows[0]  # who is told the answer wins nothing


def test_a_chance_too_small_to_print_is_not_printed_as_none(root: Path) -> None:
    made = Plan((Source("coco", str(root)),), (Run("m", "off"), Run("m", "best")))
    datasets = made.open()
    pairs = [
        outcome(i, [good], run, dataset=datasets[0].name)
        for i in range(30)
        for run, good in (("m off", False), ("m best", True))
    ]
    report = build(made, datasets, pairs, {datasets[0].name: PROTOCOL}, "kbc eval")
    assert "| < 0.001 |" in render(report)  # of 2³⁰ patterns one
    assert "gain +100.0 (p<0.001)" in command._short(report.datasets[0])


# --- the command -------------------------------------------------------------------------------------------------


def arguments(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    command.configure(parser)
    return parser.parse_args(list(words))


def test_options_become_a_plan() -> None:
    words = "--data coco --root R --matcher hog --matcher resnet18 --option resnet18.weights=w.pth --option device=cpu"
    args = arguments(*words.split(), "--size", "256,512", "--budget", "thorough", "--set", "margin=0.4")
    made = command.make_plan(args)
    assert [run.name for run in made.runs if run.matcher == "hog"] == [
        "hog@256 off",
        "hog@512 off",
        "hog@256 predicted",
        "hog@256 best",
        "hog@256 given",
    ]
    assert made.runs[0].options == {"device": "cpu"}
    assert made.runs[-1].options == {"device": "cpu", "weights": "w.pth"}
    assert made.runs[-1].config == {"margin": 0.4, "budget": "thorough"}
    assert made.baselines()["hog@256 best"] == "hog@256 off"
    own_first = arguments("--data", "coco", "--option", "hog.size=128", "--option", "size=64")
    assert command.make_plan(own_first).runs[0].options == {"size": 128}  # whatever the order
    assert [run.mode for run in command.make_plan(arguments("--data", "coco", "--kbc", "off")).runs] == ["off"]


def test_a_suite_holds_every_set_and_willow_shrunk(root: Path) -> None:
    willow = root.parent / "pf-willow"
    (willow / "PF-dataset-WILLOW").mkdir(parents=True)
    (willow / "annotations.json").write_text("{}", encoding="utf-8")
    made = command.make_plan(arguments("--suite", str(root.parent)))
    assert [(Path(s.root).name, s.kind, s.shrink, s.limit) for s in made.sources] == [
        ("cows", "coco", 1.0, command.SUITE_LIMIT),
        *(("pf-willow", "pfwillow", factor, command.SUITE_LIMIT) for factor in (1.0, 2.0, 3.0, 5.0)),
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--data or --suite"),
        ("--data coco --suite x", "--data or --suite"),
        ("--data coco --shrink two", "--shrink"),
        ("--data coco --option size", "--option"),
        ("--data coco --option chm.size=3", "--option"),
        ("--data coco --matcher hog --matcher hog", "once each"),
        ("--suite /nowhere", "--suite"),
        ("--suite x --root y", "`--root` must be given together with --data"),
        ("--data coco --size 200.5", "`--size` must be whole pixels"),
        ("--data coco --size 0", "`--size` must be whole pixels"),
        ("--data coco --localizer ,", "`--localizer` must be names"),
        ("--data coco --set localizer=search", "`--set` must be without localizer, which --localizer names"),
        ("--data coco --set budget=fast --budget thorough", "`--set` must be without budget, which --budget names"),
        ("--data coco --root R --seed 1", "`--seed` must be given together with --shrink"),
        ("--data scenes --seed 1", "--data-option seed=1"),
        ("--data scenes --root R", "`--root` must be left out where --data is scenes"),
        ("--data coco --kbc off --set margin=0.4", "`--kbc off` must be given without KBC's own options"),
        ("--data coco --alpha -1", "`alphas` must be positive"),
        ("--data coco --alpha ,", "`--alpha` must be numbers"),
        ("--data coco --frame 3", "`--frame` must be original or HxW"),
        ("--data coco --jobs 0", "`--jobs` must be at least 1"),
        ("--data coco --jobs 2 --shard 1/2", "`--jobs` must be 1 together with --shard"),
    ],
)
def test_contradictions_are_refused(words: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        command.make_plan(arguments(*words.split()))


@pytest.mark.parametrize(
    ("kind", "shrink", "threshold"), [("pfpascal", 1.0, "img"), ("pfpascal", 3.0, "bbox"), ("coco", 1.0, "bbox")]
)
def test_thresholds_are_those_of_the_literature(root: Path, kind: str, shrink: float, threshold: str) -> None:
    dataset = Source("coco", str(root)).open()
    args = arguments("--data", "coco")
    assert command.protocol_for(args, Source(kind, shrink=shrink), dataset).threshold == threshold
    asked = arguments("--data", "coco", "--threshold", "bbox-kp", "--frame", "240x320", "--exclusive")
    assert command.protocol_for(asked, Source(kind), dataset) == Protocol(
        threshold="bbox-kp", frame=(240, 320), inclusive=False
    )


def test_the_whole_command(
    root: Path, tmp_path: Path, stub: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    stub()
    out = tmp_path / "out"
    words = ["--data", "coco", "--root", str(root), "--shrink", "1,2", "--out", str(out), "--quiet"]
    assert command.run(arguments(*words)) == 0
    made = {path.name for path in out.iterdir()}
    assert {"report.json", "report.md", "pairs.jsonl", "bars.png", "size.png"} <= made
    assert {"matches-hog-cows.png", "matches-hog-cows-shrunk-2.png"} <= made
    text = (out / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)) == {name for name in made if name.endswith(".png")}
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    for dataset in report["datasets"]:
        assert dataset["runs"]["hog best"]["per_image"]["0.1"] == (1.0 if dataset["name"] == "cows" else 0.0)
    assert report["datasets"][0]["runs"]["hog best"]["comparison"]["gain"] == pytest.approx(
        1.0 - report["datasets"][0]["runs"]["hog off"]["per_image"]["0.1"]
    )
    first = (out / "report.json").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")
    assert "96 matches, 0 failed" in capsys.readouterr().out
    assert stub() == []
    assert command.run(arguments(*words)) == 0
    assert first == ((out / "report.json").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("shrink", ["1", "1,2,3"])
def test_what_the_terminal_shows_fits_it(
    root: Path,
    tmp_path: Path,
    stub: Callable[..., list[Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shrink: str,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    stub()
    words = ["--data", "coco", "--root", str(root), "--shrink", shrink, "--out", "o", "--quiet", "--figures", "none"]
    assert command.run(arguments(*words, "--size", "128,256", "--limit", "1", "--localizer", "best")) == 0
    shown = capsys.readouterr().out.splitlines()
    assert max(map(len, shown)) <= 80
    report = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    for dataset in report["datasets"]:
        for numbers in dataset["runs"].values():
            assert any(f"{100 * numbers['per_image']['0.1']:5.1f}" in line for line in shown)
    assert f"{len(report['datasets']) * 3} matches, 0 failed, 0 problems in the data, 0 s" in shown


def test_pictures_of_another_size_than_annotated_are_left_out_and_told(
    root: Path, tmp_path: Path, stub: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((root / "annotations.json").read_text(encoding="utf-8"))
    content["images"][2].update(width=48, height=64)
    (root / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    stub()
    words = ["--data", "coco", "--root", str(root), "--kbc", "off", "--out", str(tmp_path / "o"), "--quiet"]
    assert command.run(arguments(*words, "--figures", "none")) == 0
    out, err = capsys.readouterr()
    assert "8 matches, 4 failed" in out
    assert err.startswith(
        "note: 4 pairs left out that could not be loaded, e.g. pair '2-3': `width and height of 3.png`"
    )


def test_what_no_memory_holds_and_a_missing_root_are_refused_before_anything_is_written(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for words, said in (
        (
            ["--root", str(root), "--shrink", "1000000"],
            r"usable pair, received none \(.*`shrink` must be at most 16384 px",
        ),
        ([], "`root` must be the folder of the data set, kind 'coco', received nothing; in the shell --root DIR"),
    ):
        with pytest.raises(InputError, match=said):
            command.run(arguments("--data", "coco", "--out", str(out), "--quiet", *words))
        assert not out.exists()


def test_a_run_in_which_everything_fails_says_so(root: Path, tmp_path: Path, stub: Callable[..., list[Any]]) -> None:
    for path in (root / "images").iterdir():
        path.write_bytes(b"nothing")
    stub()
    words = ["--data", "coco", "--root", str(root), "--kbc", "off", "--out", str(tmp_path / "o"), "--quiet"]
    assert command.run(arguments(*words, "--figures", "none")) == 1
    assert "Failed pairs (12)" in (tmp_path / "o" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--matcher hogg", "did you mean 'hog'"),
        ("--matcher resnet18", "`weights` must be given to 'resnet18'"),
        ("--option sise=3", "did you mean 'size'"),
        ("--localizer fast", "`localizer` must be 'predicted'"),
        ("--set margn=3", "did you mean 'margin'"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    root: Path, tmp_path: Path, words: str, said: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match=said):
        command.run(arguments("--data", "coco", "--root", str(root), "--out", str(out), "--quiet", *words.split()))
    assert not out.exists()


def test_a_data_set_without_a_pair_is_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text('{"images": [], "annotations": [], "categories": []}', encoding="utf-8")
    with pytest.raises(InputError, match="`data` must be at least one usable pair, received none; `kbc data check"):
        command.run(arguments("--data", "coco", "--root", str(tmp_path), "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_charts_name_the_threshold_that_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    from kbc import viz
    from kbc.evaluation import charts

    drawn: list[Any] = []
    monkeypatch.setattr(viz, "save", lambda figure, path: drawn.append(figure) or path)
    part = dataset_report("d", {"m off": PLAIN}, {"m off": "m off"}, Protocol((0.2,), "bbox"))
    pooled = {"m off": part.runs["m off"].by_size}
    report = Report("kbc eval", ("m",), (RunInfo("m off", "m", "off", None, {}),), (part,), pooled, ())
    charts.bars(report, tmp_path / "bars.png")
    charts.against_size(report, tmp_path / "size.png")
    assert [figure.axes[0].get_ylabel() for figure in drawn] == ["PCK@0.2, %", "PCK@0.2, %"]
