"""What `kbc eval` is to do: data sets, runs, what they depend on, and which share of the pairs is whose."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kbc import __version__
from kbc.data import Dataset, open_dataset, shrink
from kbc.errors import DataError, InputError, as_text, must_be
from kbc.evaluation.outcomes import RESULTS, Outcome
from kbc.files import in_use, output_folder, read_json, write_json
from kbc.matchers.protocol import Matcher

if TYPE_CHECKING:
    from kbc.pipeline import KBCMatcher

OFF = "off"
GIVEN = "given"

AnyMatcher: TypeAlias = "Matcher | KBCMatcher"


@dataclass(frozen=True)
class Source:
    """A data set to open: kind, root, its options, how much it is shrunk, how many pairs of it are used."""

    kind: str
    root: str = ""
    shrink: float = 1.0
    seed: int = 0
    limit: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def open(self) -> Dataset:
        """The data set, shrunk first and limited then, so that a limit does not change what surrounds a photo."""
        whole = open_dataset(self.kind, self.root or None, **self.options)
        return shrink(whole, self.shrink, self.seed).limited(self.limit)


@dataclass(frozen=True)
class Run:
    """One way of matching every pair.

    Attributes:
        matcher: name for `kbc.load_matcher`.
        mode: "off" for the bare matcher, else the wrapper's localizer; "given" is told the true target box.
        size: the matcher's input size in px when it is set, else None.
        options: further options of the matcher.
        config: further fields of `KBCConfig`.
    """

    matcher: str
    mode: str = OFF
    size: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What reports call it, e.g. `resnet18@256 best`."""
        size = "" if self.size is None else f"@{self.size}"
        return f"{self.matcher}{size} {self.mode}"

    @staticmethod
    def is_bare(name: str) -> bool:
        """Whether a run of this name is of the bare matcher."""
        return name.rpartition(" ")[2] == OFF

    def build(self) -> AnyMatcher:
        """A fresh matcher, so that no run profits from what another one has cached."""
        from kbc.matchers.registry import load_matcher

        options = dict(self.options) if self.size is None else {**self.options, "size": self.size}
        if options.get("device") == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one process per GPU
            options["device"] = f"cuda:{os.environ['LOCAL_RANK']}"
        bare = load_matcher(self.matcher, **options)
        if self.mode == OFF:
            return bare
        import kbc

        return kbc.wrap(bare, **{**self.config, "localizer": self.mode})


@dataclass(frozen=True)
class Plan:
    """Everything that determines the outcomes. Two plans that differ may not share an output folder."""

    sources: tuple[Source, ...]
    runs: tuple[Run, ...]

    def open(self) -> list[Dataset]:
        """The data sets.

        Raises:
            DataError: one cannot be opened.
            InputError: two have the same name, so that their results could not be told apart.
        """
        datasets = [source.open() for source in self.sources]
        names = [dataset.name for dataset in datasets]
        if len(set(names)) < len(names):
            hint = "a set is named after its folder: rename one, or measure them apart"
            raise InputError(must_be("data", "data sets of different names", names, hint))
        return datasets

    def baselines(self) -> dict[str, str]:
        """Run → the bare run of the same matcher at its first size, which it is compared with (itself if none)."""
        first: dict[str, str] = {}
        for run in self.runs:
            if run.mode == OFF:
                first.setdefault(run.matcher, run.name)
        return {run.name: first.get(run.matcher, run.name) for run in self.runs}

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        sources = tuple(replace(source, root=as_text(source.root)) for source in self.sources)
        return json.loads(json.dumps(asdict(replace(self, sources=sources)), default=str))  # type: ignore[no-any-return]

    def check(self) -> None:
        """Build every matcher and every configuration once, so that a wrong option ends the run before its first match.

        Raises:
            KBCError: what building them raises.
        """
        from kbc.config import make_config

        for run in self.runs:
            if run.mode != OFF:
                make_config(None, {**run.config, "localizer": run.mode})
        for bare in {repr(run): run for run in (replace(run, mode=OFF, config={}) for run in self.runs)}.values():
            bare.build()

    def content(self, datasets: Sequence[Dataset]) -> dict[str, str]:
        """Digests of what the plan only names: the data sets, and `content_digests` of the matchers.

        Results depend on the version of kbc too.

        Args:
            datasets: `self.open()`.
        """
        from kbc.matchers.registry import content_digests

        found = {"kbc": __version__, **{f"data set {dataset.name}": dataset.digest() for dataset in datasets}}
        for run in self.runs:
            found |= content_digests(run.matcher, run.options)
        return found

    def claim(self, folder: Path, datasets: Sequence[Dataset]) -> None:
        """Write the plan into the folder, or check that the one whose results are there is the same.

        Args:
            folder: output.
            datasets: `self.open()`; what is in them belongs to the plan.

        Raises:
            InputError: the folder holds the results of another plan or of other content, or results without their plan,
                another process is at work there by another plan, or it cannot be written to.
            DataError: what stands there as the plan cannot be read.
        """
        path = output_folder(folder, "out") / "plan.json"
        asked, content = self.to_dict(), self.content(datasets)
        if not written(folder) and not any(map(in_use, folder.glob(RESULTS))):
            write_json({**asked, "content": content}, path)
            return
        hint = "choose another --out, or remove the folder"
        if not path.is_file():
            received = f"results without their plan, {path}"
            raise InputError(must_be("out", "empty or of the same plan", received, f"copy it there, {hint}"))
        try:
            held = dict(read_json(path))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} must be the plan of the results beside it, received {error}; {hint}") from error
        wrong = [key for key in asked if held.get(key) != asked[key]]
        if wrong:
            raise InputError(must_be("out", "empty or of the same plan", f"other {', '.join(wrong)} in {path}", hint))
        before = held.get("content")
        if not isinstance(before, dict):
            raise InputError(must_be("out", "empty or of the same content", f"no digests in {path}", hint))
        changed = sorted(key for key in {*content, *before} if content.get(key) != before.get(key))
        if changed:
            received = f"results from before a change of {', '.join(changed)} in {path}"
            raise InputError(must_be("out", "empty or of the same content", received, hint))

    def confirm(self, folder: Path) -> None:
        """Refuse to go on in a folder that another process has claimed for another plan at the same moment.

        Raises:
            InputError: one has.
        """
        asked, held = self.to_dict(), read_json(folder / "plan.json")
        if {key: held.get(key) for key in asked} != asked:
            hint = "choose another --out"
            raise InputError(must_be("out", "used for one plan", f"another process's in {folder / 'plan.json'}", hint))


def written(folder: Path) -> int:
    """How many outcomes the folder holds."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(RESULTS))


def complete(plan: Plan, datasets: Sequence[Dataset], outcomes: Iterable[Outcome]) -> list[Outcome]:
    """The outcomes that belong to the plan, in its order: data set, run, pair."""
    runs = {run.name: place for place, run in enumerate(plan.runs)}
    sets = {dataset.name: place for place, dataset in enumerate(datasets)}
    held = [outcome for outcome in outcomes if outcome.run in runs and outcome.dataset in sets]
    return sorted(held, key=lambda outcome: (sets[outcome.dataset], runs[outcome.run], outcome.index))


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" (counted from 1) as (1, 4).

    Raises:
        InputError: not i/n with 1 ≤ i ≤ n.
    """
    found = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(must_be("shard", "i/n with 1 ≤ i ≤ n", repr(text)))
    return int(found[1]) - 1, int(found[2])
