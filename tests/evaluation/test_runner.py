"""Runs can be killed, resumed, split and merged without changing a figure; one bad pair never ends a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from stubs import Shifted  # type: ignore[import-not-found]

from kbc.data import Dataset, PairRecord, open_dataset
from kbc.errors import DataError, InputError
from kbc.evaluation.outcomes import Outcome, OutcomeFile, parse_outcome, points, read_outcomes, rows
from kbc.evaluation.pck import Protocol
from kbc.evaluation.plan import Plan, Run, Source, complete, parse_shard
from kbc.evaluation.report import build
from kbc.evaluation.runner import evaluate, execute, execute_jobs
from kbc.matchers import registry
from kbc.types import Match, Pair

Stub = Callable[..., list[Any]]


def plan(root: Path, **options: Any) -> Plan:
    return Plan((Source("coco", str(root)), Source("coco", str(root), shrink=2)), (Run("stub"), Run("stub", "best")))


def timeless(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [replace(outcome, seconds=0.0, own_seconds=None) for outcome in outcomes]


def report(made: Plan, folder: Path) -> dict[str, Any]:
    datasets = made.open()
    held = timeless(read_outcomes(folder).values())
    return build(made, datasets, held, {dataset.name: Protocol() for dataset in datasets}).to_dict()


def test_outcomes_say_what_happened(root: Path) -> None:
    dataset = open_dataset("coco", root)
    found = [o for chunk in evaluate(Shifted(1.0, 2.0), dataset, run="r", chunk=5) for o in chunk]
    assert [(o.pair, o.index) for o in found] == [(record.id, i) for i, record in enumerate(dataset)]
    first = found[0]
    assert (first.dataset, first.run, first.category, first.size_hw) == ("cows", "r", "calf→cow", (48, 64))
    assert first.predicted == ((13.0, 14.0), (29.0, 16.0), (21.0, 30.0))
    assert first.truth == ((12.0, 12.0), (28.0, 14.0), (20.0, 28.0))
    assert first.box == (10.0, 10.0, 38.0, 30.0)
    assert first.size == 28 / 64
    assert first.cells((32, 32), 16) == pytest.approx(28 / 64 * 32 / 16)
    assert first.input_hw == (32, 32)
    assert first.seconds > 0
    assert found[1].truth[2] is None


def test_the_next_chunk_is_read_while_one_is_matched_and_no_further(root: Path) -> None:
    dataset = open_dataset("coco", root)
    read: list[str] = []
    second = threading.Event()

    def load(record: PairRecord, boxes: str = "none") -> Pair:
        read.append(record.id)
        if len(read) == 4:
            second.set()
        return Dataset.load(dataset, record)

    class Waiting(Shifted):  # type: ignore[misc]
        def match(self, pairs: Any) -> list[Match]:
            assert second.wait(60)  # of chunks of two: read by somebody else than who is here
            return super().match(pairs)  # type: ignore[no-any-return]

    dataset.load = load  # type: ignore[method-assign]
    running = evaluate(Waiting(), dataset, run="r", chunk=2)
    assert [o.pair for o in next(running)] == [record.id for record in dataset.records[:2]]
    running.close()
    assert read == [record.id for record in dataset.records[:4]]
    assert not [t for t in threading.enumerate() if t.name.startswith("kbc-read")]


def test_what_a_wrapper_reports_is_kept(root: Path) -> None:
    kbc = pytest.importorskip("kbc")
    dataset = open_dataset("coco", root)[:2]
    wrapped = kbc.wrap(Shifted(), localizer="predicted", small_below=1.0)
    found = [o for chunk in evaluate(wrapped, dataset, run="r") for o in chunk]
    assert all(o.failure is None for o in found)
    assert all(o.calls > 1 and o.localizer for o in found)
    assert any(o.target_window is not None and o.fine > 0 for o in found)


def test_boxes_are_given_only_when_asked(root: Path) -> None:
    class Watching(Shifted):  # type: ignore[misc]
        def match(self, pairs: Any) -> list[Match]:
            seen.extend(pair.target_box is not None for pair in pairs)
            return super().match(pairs)  # type: ignore[no-any-return]

    for give in (False, True):
        seen: list[bool] = []
        list(evaluate(Watching(), open_dataset("coco", root), give_boxes=give))
        assert seen == [give] * 12


class Moody(Shifted):  # type: ignore[misc]
    """Raises on a chunk or pair whose source is image 3."""

    def match(self, pairs: Any) -> list[Match]:
        if any(np.isnan(pair.keypoints).any() for pair in pairs):
            raise ValueError("no")
        return super().match(pairs)  # type: ignore[no-any-return]


def test_a_pair_on_which_the_matcher_fails_is_wrong_and_the_others_are_measured(root: Path) -> None:
    dataset = open_dataset("coco", root)
    found = [o for chunk in evaluate(Moody(), dataset) for o in chunk]
    bad = [o for o in found if o.failure]
    assert [o.pair for o in bad] == ["2-3", "3-4", "1-3", "3-5"]
    assert all(o.failure == "matcher" and "ValueError: no" in o.error and o.counts for o in bad)
    assert not any(o.correct(Protocol()).any() for o in bad)
    assert all(o.correct(Protocol()).all() for o in found if not o.failure)


def test_a_pair_whose_image_is_broken_counts_for_nobody(root: Path) -> None:
    path = root / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    found = [o for chunk in evaluate(Shifted(), open_dataset("coco", root)) for o in chunk]
    bad = [o for o in found if o.failure]
    assert {o.pair for o in bad} == {"1-2", "2-3", "2-4", "6-2"}
    assert all(o.failure == "data" and not o.counts and "2.png" in o.error for o in bad)


def test_an_interrupted_run_is_taken_up_and_reports_the_same(root: Path, tmp_path: Path, stub: Stub) -> None:
    made = plan(root)
    stub()
    execute(made, tmp_path / "whole", made.open())

    class Stopped(Shifted):  # type: ignore[misc]
        def match(self, pairs: Any) -> list[Match]:
            if self.asked >= 4:
                raise KeyboardInterrupt
            return super().match(pairs)  # type: ignore[no-any-return]

    folder = tmp_path / "resumed"
    stub(lambda run: Stopped(3.0 if run.mode == "off" else 0.0))
    with pytest.raises(KeyboardInterrupt):
        execute(made, folder, made.open(), chunk=4)
    held = len(read_outcomes(folder))
    assert 0 < held < 48
    with (folder / "pairs.jsonl").open("ab") as file:
        file.write(b'{"dataset":"cows","run":"stub off","pa')  # killed in the middle of a line
    assert len(read_outcomes(folder)) == held
    built = stub()
    execute(made, folder, made.open())
    assert sum(matcher.asked for matcher in built) == 48 - held
    assert report(made, folder) == report(made, tmp_path / "whole")
    for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)
    built = stub()
    execute(made, folder, made.open())
    assert built == []


def test_shards_hold_each_pair_once_and_give_the_same_report(root: Path, tmp_path: Path, stub: Stub) -> None:
    made = plan(root)
    stub()
    execute(made, tmp_path / "whole", made.open())
    for i in range(3):
        execute(made, tmp_path / "parts", made.open(), shard=(i, 3))
    files = sorted(path.name for path in (tmp_path / "parts").glob("*.jsonl"))
    assert files == ["pairs.1-of-3.jsonl", "pairs.2-of-3.jsonl", "pairs.3-of-3.jsonl"]
    lines = [line for name in files for line in (tmp_path / "parts" / name).read_text().splitlines()]
    assert len(lines) == 48
    assert report(made, tmp_path / "parts") == report(made, tmp_path / "whole")


def test_another_plan_may_not_use_the_folder(root: Path, tmp_path: Path, stub: Stub) -> None:
    made = plan(root)
    stub()
    execute(made, tmp_path / "out", made.open())
    other = Plan(made.sources, (Run("stub", options={"size": 5}),))
    with pytest.raises(InputError, match="other runs"):
        execute(other, tmp_path / "out", other.open())
    (tmp_path / "out" / "plan.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"plan\.json must be the plan of the results beside it"):
        made.claim(tmp_path / "out", made.open())
    with pytest.raises(InputError, match="`out` must be a folder that can be written to"):
        made.claim(tmp_path / "out" / "plan.json", made.open())


def test_a_folder_without_results_is_free_for_any_plan(root: Path, tmp_path: Path) -> None:
    made = plan(root)
    Plan(made.sources, (Run("stub", options={"size": 5}),)).claim(tmp_path, made.open())
    made.claim(tmp_path, made.open())
    written = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert written == {**made.to_dict(), "content": made.content(made.open())}


def test_results_without_their_plan_are_not_taken_up(root: Path, tmp_path: Path, stub: Stub) -> None:
    made = plan(root)
    stub()
    execute(made, tmp_path / "out", made.open())
    (tmp_path / "out" / "plan.json").unlink()
    with pytest.raises(InputError, match=r"received results without their plan, .*plan\.json; copy it"):
        execute(made, tmp_path / "out", made.open())


def test_two_processes_of_two_plans_do_not_mix_in_a_folder(root: Path, tmp_path: Path, stub: Stub) -> None:
    made, folder = plan(root), tmp_path / "out"
    other = Plan(made.sources, (Run("stub", options={"size": 5}),))
    stub()
    made.claim(folder, made.open())
    for name in ("pairs.jsonl", "pairs.2-of-3.jsonl"):
        with OutcomeFile(folder / name):  # at work, and nothing is written yet
            made.claim(folder, made.open())
            with pytest.raises(InputError, match="other runs"):
                execute(other, folder, other.open())
    with OutcomeFile(folder / "pairs.jsonl"), pytest.raises(InputError, match="written by one process at a time"):
        execute(made, folder, made.open())
    assert not read_outcomes(folder)
    with pytest.raises(InputError, match="`out` must be used for one plan"):
        other.confirm(folder)  # as after a claim at the same moment
    execute(made, folder, made.open())
    assert len(read_outcomes(folder)) == 48


def test_an_option_that_cannot_travel_is_refused_for_several_processes(root: Path, tmp_path: Path) -> None:
    made = Plan((Source("coco", str(root)),), (Run("stub", options={"network": lambda x: x}),))
    with pytest.raises(InputError, match="`jobs` must be 1 where an option cannot be sent to"):
        execute_jobs(made, tmp_path / "out", made.open(), 2)
    assert not (tmp_path / "out").exists()


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _repaint(path: Path) -> None:
    image = cv2.imread(str(path))
    image[0, 0] ^= 255
    cv2.imwrite(str(path), image)


CHANGES: dict[str, Callable[[Path], None]] = {
    "a keypoint": lambda root: _edit(root / "annotations.json", "[12, 12, 2,", "[13, 12, 2,"),
    "a box": lambda root: _edit(root / "annotations.json", '"bbox": [10,', '"bbox": [9,'),
    "the pairs": lambda root: _edit(root / "pairs.json", "[1, 2]", "[2, 1]"),
    "an image": lambda root: _repaint(root / "images" / "2.png"),
    "weights": lambda root: (root / "weights.bin").write_bytes(b"other") and None,
    "weights in a folder": lambda root: (root / "model" / "model.safetensors").write_bytes(b"other") and None,
    "code": lambda root: (root / "code" / "net.py").write_text("x = 2") and None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_results_from_before_a_change_of_content_are_not_taken_up(
    root: Path, tmp_path: Path, stub: Stub, change: str
) -> None:
    (root / "weights.bin").write_bytes(b"these")
    (root / "code").mkdir()
    (root / "code" / "net.py").write_text("x = 1")
    (root / "model").mkdir()
    (root / "model" / "model.safetensors").write_bytes(b"these")
    options = {
        name: str(root / where) for name, where in (("weights", "weights.bin"), ("code", "code"), ("model", "model"))
    }
    made = Plan((Source("coco", str(root)),), (Run("stub", options=options),))
    stub()
    execute(made, tmp_path / "out", made.open())
    built = stub()
    execute(made, tmp_path / "out", made.open())
    assert built == []
    CHANGES[change](root)
    with pytest.raises(InputError, match="results from before a change of"):
        execute(made, tmp_path / "out", made.open())
    assert built == []


def test_the_code_of_a_matcher_of_ones_own_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "matcher_with_a_digest.py"
    path.write_text("def match(source, target, keypoints):\n    return keypoints\n")
    plan = Plan((), (Run("matcher_with_a_digest:match"), Run("hog")))
    before = plan.content([])
    assert set(before) == {"kbc", "matcher_with_a_digest:match"}
    assert plan.content([]) == before
    path.write_text("def match(source, target, keypoints):\n    return keypoints + 1\n")
    assert plan.content([])["matcher_with_a_digest:match"] != before["matcher_with_a_digest:match"]


def test_the_code_of_a_matcher_of_another_package_is_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "package_with_a_matcher.py"
    path.write_text("def load():\n    pass\n")
    point = EntryPoint("mine", "package_with_a_matcher:load", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    before = registry.content_digests("mine", {})
    path.write_text("def load():\n    return 1\n")
    assert before["mine"] != registry.content_digests("mine", {})["mine"]


@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_a_report_that_cannot_be_written_is_refused_before_the_first_match(
    root: Path, tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    from kbc.cli import main

    built = stub()
    (tmp_path / "out" / name).mkdir(parents=True)
    assert main(["eval", "--data", "coco", "--root", str(root), "--kbc", "off", "--out", str(tmp_path / "out")]) == 2
    assert f"`--out` must be a file's name, received the folder '{tmp_path / 'out' / name}'" in capsys.readouterr().err
    assert sum(matcher.asked for matcher in built) == 0


def test_a_matcher_that_fails_on_every_pair_is_told_and_no_success(
    root: Path, tmp_path: Path, stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    from kbc.cli import main

    class Failing(Shifted):  # type: ignore[misc]
        limit = 0

        def match(self, pairs: Any) -> list[Match]:
            if len(pairs) > 1 or self.asked >= self.limit:
                raise ValueError("no such layer")
            return super().match(pairs)  # type: ignore[no-any-return]

    stub(lambda run: Failing(0.0))
    words = ["eval", "--data", "coco", "--root", str(root), "--kbc", "off", "--figures", "none", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("note: 12 matches failed, and count as wrong, e.g. 'hog off' on pair '1-2': MatcherError: ")
    assert said.endswith("raised ValueError: no such layer\n")
    Failing.limit = 3
    assert main([*words, str(tmp_path / "some"), "--limit", "4"]) == 0
    assert "note: 1 match failed, and count" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--alpha", "--shrink", "--size"])
def test_a_number_of_a_list_that_stands_twice_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    from kbc.cli import main

    assert main(["eval", "--data", "coco", "--root", str(root), option, "2,4,2.0000001"]) == 2
    assert f"`{option}` must be numbers that stand once each, received '2,4,2.0000001'" in capsys.readouterr().err


def test_results_without_digests_are_not_taken_up(root: Path, tmp_path: Path, stub: Stub) -> None:
    made = plan(root)
    stub()
    execute(made, tmp_path, made.open())
    (tmp_path / "plan.json").write_text(json.dumps(made.to_dict()), encoding="utf-8")
    with pytest.raises(InputError, match="no digests"):
        execute(made, tmp_path, made.open())


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_command_opens_and_shrinks_each_data_set_once(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: str
) -> None:
    from kbc.cli import main

    opened = []
    whole = Source.open

    def counted(self: Source) -> Any:
        dataset = whole(self)
        opened.append(self.shrink)
        if len(opened) == 2:
            (root / "annotations.json").unlink()  # no process can open it again
        return dataset

    monkeypatch.setattr(Source, "open", counted)
    command = ["eval", "--data", "coco", "--root", str(root), "--shrink", "1,2", "--limit", "2", "--kbc", "off"]
    assert main([*command, "--out", str(tmp_path / "out"), "--jobs", jobs, "--figures", "none", "--quiet"]) == 0
    assert opened == [1.0, 2.0]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_data_set_may_lie_in_a_folder_whose_name_is_no_utf8(root: Path, tmp_path: Path, stub: Stub) -> None:
    stub()
    folder = root.rename(tmp_path / os.fsdecode(b"\xe9"))
    made = Plan((Source("coco", str(folder)),), (Run("stub"),))
    (dataset,) = made.open()
    assert dataset.name == "\\udce9"
    for _ in range(2):  # the second time every result is there already
        execute(made, tmp_path / "out", [dataset])
    assert len(read_outcomes(tmp_path / "out")) == len(dataset)


def test_strict_stops_before_the_first_match(root: Path, tmp_path: Path, stub: Stub) -> None:
    path = root / "images" / "2.png"
    path.write_bytes(path.read_bytes()[:200])
    made = Plan((Source("coco", str(root)),), (Run("stub"),))
    built = stub()
    with pytest.raises(DataError, match=r"2\.png"):
        execute(made, tmp_path / "out", made.open(), strict=True)
    assert built == []
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_line_that_is_not_a_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"dataset": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1"):
        read_outcomes(tmp_path)


def test_numbers_survive_the_file_exactly(tmp_path: Path) -> None:
    exact = np.array([[0.1 + 0.2, 1 / 3], [np.nan, np.nan], [1e-17, 12345.678901234567]])
    outcome = Outcome("d", "r", "p", 0, predicted=rows(exact), truth=rows(exact), size_hw=(4, 5), notes=("é",))
    with OutcomeFile(tmp_path / "pairs.jsonl") as file:
        file.append([outcome])
    read = read_outcomes(tmp_path)[outcome.key]
    assert read == outcome
    assert np.array_equal(points(read.predicted), exact, equal_nan=True)
    for wrong in ({"size_hw": (0, 5)}, {"predicted": rows(exact[:2])}):
        with pytest.raises(DataError, match="not a result"):
            parse_outcome(replace(outcome, **wrong).to_json())


def test_complete_orders_by_the_plan_and_passes_others_over(root: Path) -> None:
    made = plan(root)
    datasets = made.open()
    names = [dataset.name for dataset in datasets]
    some = [
        Outcome(names[1], "stub off", "b", 1),
        Outcome(names[0], "stub best", "a", 0),
        Outcome("other", "stub off", "a", 0),
        Outcome(names[0], "stub off", "z", 9),
        Outcome(names[0], "stub off", "y", 2),
    ]
    assert [(o.dataset, o.run, o.pair) for o in complete(made, datasets, some)] == [
        (names[0], "stub off", "y"),
        (names[0], "stub off", "z"),
        (names[0], "stub best", "a"),
        (names[1], "stub off", "b"),
    ]


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "/"])
def test_nonsense_shards(text: str) -> None:
    with pytest.raises(InputError, match="shard"):
        parse_shard(text)
    assert parse_shard("2/4") == (1, 4)


# --- real processes ----------------------------------------------------------------------------------------------


def words(root: Path, out: Path) -> list[str]:
    options = ["--matcher", "hog", "--option", "size=64", "--kbc", "off", "--figures", "none", "--quiet"]
    return ["eval", "--data", "coco", "--root", str(root), *options, "--out", str(out)]


def launch(module: list[str], root: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *module, *words(root, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def hog_plan(root: Path) -> Plan:
    return Plan((Source("coco", str(root)),), (Run("hog", options={"size": 64}),))


def test_a_killed_process_leaves_whole_lines_and_the_next_finishes(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = launch(["kbc"], root, out)
    while not list(out.glob("pairs*.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = launch(["kbc"], root, out)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert len(read_outcomes(out)) == 12
    held = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert held["datasets"][0]["runs"]["hog off"]["pairs"] == 12


def test_torchrun_with_two_gloo_processes_merges_exactly(root: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    single = hog_plan(root)
    execute(single, one, single.open())
    module = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "kbc"]
    process = launch(module, root, two)
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert sorted(path.name for path in two.glob("*.jsonl")) == ["pairs.1-of-2.jsonl", "pairs.2-of-2.jsonl"]
    assert timeless(sorted(read_outcomes(two).values(), key=lambda o: o.index)) == timeless(read_outcomes(one).values())
    made, wanted = (report(single, folder) for folder in (two, one))
    assert made == wanted
    shown = json.loads((two / "report.json").read_text(encoding="utf-8"))
    assert shown["datasets"][0]["runs"]["hog off"]["per_point"] == wanted["datasets"][0]["runs"]["hog off"]["per_point"]


@pytest.mark.slow
def test_jobs_give_the_same_as_one_process(root: Path, tmp_path: Path) -> None:
    single = hog_plan(root)
    execute(single, tmp_path / "one", single.open())
    execute_jobs(single, tmp_path / "two", single.open(), 2)
    assert report(single, tmp_path / "two") == report(single, tmp_path / "one")
