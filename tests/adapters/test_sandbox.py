"""The sandbox: a checkout runs as it is and leaves the process as it was, errors included."""

from __future__ import annotations

import builtins
import csv
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from adapter_layers import NAMES, Layer, example
from kbc_adapters.chm import CHM
from kbc_adapters.sandbox import Checkout, Stub, Upstream

from kbc import cli
from kbc.errors import InputError, KBCError, MatcherError, MissingDependencyError

TOY = Upstream("someone/toy", "toy/net.py", "MIT", "A paper, 2020", "source → target", "64 × 64")


@contextmanager
def untouched() -> Iterator[None]:
    """Fails when a global of the process is another afterwards."""

    def state() -> dict[str, Any]:
        return {
            "sys.path": list(sys.path),
            "sys.modules": dict(sys.modules),
            "import": builtins.__import__,
            "print": builtins.print,
            "cuda": torch.Tensor.cuda,
            "torch.load": torch.load,
            "hub": torch.hub.load_state_dict_from_url,
            "handlers": list(logging.getLogger().handlers),
            "environment": dict(os.environ),
            "torch's random state": torch.get_rng_state().tolist(),
            "random state": random.getstate(),
            "numpy's random state": np.random.get_state()[1].tolist(),  # noqa: NPY002 (upstream could seed it)
            "working directory": os.getcwd(),
            "gradients": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "dtype": torch.get_default_dtype(),
            "warning filters": list(warnings.filters),
            "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
            "threads": torch.get_num_threads(),
            "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "function mode": torch.overrides._get_current_function_mode_stack(),
        }

    state()  # NumPy and torch import some of themselves when first asked
    before = state()
    try:
        yield
    finally:
        for name, value in state().items():
            assert value == before[name], f"{name} changed"


def toy(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"toy/net.py": "", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_loading_and_matching_leave_the_process_as_it_was(name: str, layer: Layer) -> None:
    layer.load(name).match([example()])  # torch and kbc import what they need at first use
    with untouched():
        matcher = layer.load(name)
        matcher.match([example()])
        matcher.similarity([example()])


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('broken')",
        "import no_such_package_at_all",
        "from .. import beyond",
        "def half(:",
        "from . import gone",
        "from .part import gone",
        "raise KeyboardInterrupt",
    ],
)
def test_errors_leave_the_process_as_it_was(source: str, tmp_path: Path) -> None:
    code = Checkout(toy(tmp_path, {"toy/net.py": source}), TOY)
    with untouched(), pytest.raises((KBCError, KeyboardInterrupt)):
        code.module("toy.net")
    (tmp_path / "toy/net.py").write_text("answer = 42")
    assert code.get("toy.net", "answer") == 42  # a failed module is not remembered


VANDAL = """
import os, random, signal, sys, tempfile, warnings
import numpy as np, torch
def wreck():
    os.chdir(tempfile.gettempdir()); os.environ["TOY"] = "1"; os.environ.pop("HOME", None); sys.path.insert(0, "toy")
    random.seed(1); np.random.seed(1); torch.manual_seed(1); torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore"); signal.signal(signal.SIGINT, signal.SIG_IGN); torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True; torch.use_deterministic_algorithms(True)
    torch.set_num_threads(torch.get_num_threads() + 1)
"""


@pytest.mark.parametrize("end", ["", "raise ValueError('broken')", "sys.exit(0)"])
def test_what_a_checkout_changes_of_the_process_is_put_back(end: str, tmp_path: Path) -> None:
    code = Checkout(toy(tmp_path, {"toy/net.py": VANDAL, "toy/bad.py": f"{VANDAL}wreck()\n{end}"}), TOY)
    wreck = code.get("toy.net", "wreck")
    torch.use_deterministic_algorithms(False)  # torch imports what it needs for it

    def use(within: Any) -> None:
        with within:
            wreck()
            if end:
                raise SystemExit(0) if "exit" in end else ValueError("broken")

    fails = pytest.raises((MatcherError, ValueError)) if end else nullcontext()
    for within in (code.building(torch.device("cpu")), code.running(torch.device("cpu"))):
        with untouched(), fails:
            use(within)
    with untouched(), fails:
        code.module("toy.bad")


def test_a_checkout_that_ends_the_program_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: Layer
) -> None:
    code = Checkout(toy(tmp_path, {"toy/net.py": "import sys\nsys.exit(0)"}), TOY)
    with pytest.raises(MatcherError, match=r"toy\.net raised SystemExit: 0"):
        code.module("toy.net")
    toy(tmp_path, {"model/chmnet.py": "raise SystemExit(0)"})
    image = str(tmp_path / "a.png")
    cv2.imwrite(image, np.zeros((40, 60, 3), np.uint8))
    words = ["match", image, image, "--points", "1,1", "--matcher", "chm", "--option", f"checkout={tmp_path}"]
    assert cli.main([*words, "--option", f"checkpoint={layer.file('chm')}"]) == cli.FAILED
    assert "model.chmnet raised SystemExit: 0" in capsys.readouterr().err


def test_a_folder_of_data_does_not_hide_the_standard_library(tmp_path: Path) -> None:
    source = "import json\nfrom csv import reader\nfrom data import name"
    files = {"toy/net.py": source, "json/a.json": "{}", "csv/a.csv": "", "data/name.py": ""}
    net = Checkout(toy(tmp_path, files), TOY).module("toy.net")
    assert net.json is json
    assert net.reader is csv.reader
    assert net.name.__name__ == "data.name"


def test_what_a_module_gets_later_is_found_through_its_copy(tmp_path: Path) -> None:
    source = "import torch\nimport torch.utils.benchmark as late\nhere = torch.utils.benchmark"
    net = Checkout(toy(tmp_path, {"toy/net.py": source}), TOY).module("toy.net")
    assert net.late is net.here is sys.modules["torch.utils.benchmark"]


def test_a_failed_construction_leaves_the_process_as_it_was(layer: Layer, tmp_path: Path) -> None:
    with untouched(), pytest.raises(KBCError):
        layer.load("cats", checkpoint=layer.file("chm"))
    code = Checkout(toy(tmp_path, {}), TOY)

    def fail() -> None:
        with code.building(torch.device("cpu")):
            torch.rand(3)
            raise TypeError("__init__() missing 1 required positional argument")

    with untouched(), pytest.raises(MatcherError, match="could not be built"):
        fail()


def test_writes_nothing_into_the_checkout(layer: Layer) -> None:
    before = sorted(layer.root.rglob("*"))
    for name in NAMES:
        layer.load(name)
    assert sorted(layer.root.rglob("*")) == before


def test_imports_of_every_form_resolve_inside_the_checkout(tmp_path: Path) -> None:
    files = {
        "toy/net.py": "import toy.deep.a as a\nimport toy.deep\nfrom toy.deep import a as again\nfrom . import side\n"
        "from .deep.a import *\nfrom .deep import a\nimport single\nimport os.path\nimport numpy as np\n"
        "def late():\n    from .deep import late\n    return late.value\n",
        "toy/side.py": "from .deep.a import value\nfrom toy import net",
        "toy/deep/__init__.py": "here = 'deep'",
        "toy/deep/a.py": "value = 7\nfrom .. import side\nfrom ..deep import here\n__all__ = ['value']",
        "toy/deep/late.py": "from . import here\nvalue = here",
        "single.py": "from toy.deep import here",
    }
    net = Checkout(toy(tmp_path, files), TOY).module("toy.net")
    assert net.a is net.again is net.toy.deep.a
    assert net.value == net.side.value == 7
    assert net.side.net is net
    assert net.single.here == "deep"
    assert net.os is os
    assert net.np is np
    assert net.late() == "deep"


def test_a_package_that_imports_its_own_module_runs_it_once(tmp_path: Path) -> None:
    files = {
        "toy/__init__.py": "from . import net",
        "toy/net.py": "from .log import runs\nruns.append(1)",
        "toy/log.py": "runs = []",
    }
    code = Checkout(toy(tmp_path, files), TOY)
    assert code.module("toy.net").runs == [1]


def test_names_of_the_process_do_not_leak_in_or_out(tmp_path: Path) -> None:
    code = Checkout(
        toy(tmp_path, {"toy/net.py": "import json, adapter_layers\nwho = json.who", "json.py": "who = 'mine'"}), TOY
    )
    assert code.get("toy.net", "who") == "mine"
    assert sys.modules["json"] is json
    assert not hasattr(json, "who")
    assert "toy" not in sys.modules


def test_stubs_and_known_names(tmp_path: Path) -> None:
    source = "import big\nfrom big.part import Thing, known\nimport big.other as other\n"
    code = Checkout(toy(tmp_path, {"toy/net.py": source}), TOY, stubs={"big": Stub("big", known=len)})
    net = code.module("toy.net")
    assert net.known("abc") == 3
    with pytest.raises(MatcherError, match=r"big\.part\.Thing"):
        net.Thing()
    with pytest.raises(MatcherError, match=r"big\.other\.more"):
        net.other.more(1)


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    code = Checkout(toy(tmp_path, {"toy/net.py": "import no_such_package_at_all"}), TOY)
    with pytest.raises(MissingDependencyError, match="pip install no_such_package_at_all"):
        code.module("toy.net")


def test_printing_goes_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checkout(toy(tmp_path, {"toy/net.py": "print('hello'); import logging; logging.info('hello')"}), TOY).module(
        "toy.net"
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", NAMES)
def test_a_checkout_of_another_repository_is_named(name: str, layer: Layer) -> None:
    other = "chm" if name != "chm" else "cats"
    with pytest.raises(InputError, match=r"`checkout` must be a checkout of github\.com/") as caught:
        layer.load(name, checkout=layer.checkout(other))
    assert "Cost-Aggregation" in str(caught.value) if other == "cats" else "juhongm999/chm" in str(caught.value)


def test_a_wrong_folder_is_one_sentence(layer: Layer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"git clone https://github.com/juhongm999/chm"):
        layer.load("chm", checkout=tmp_path / "nothing")
    with pytest.raises(InputError, match=r"a folder without model/chmnet.py"):
        layer.load("chm", checkout=tmp_path)
    for near in (layer.checkout("chm") / "model", layer.root):
        with pytest.raises(InputError, match=r"did you mean '.*chm'\?"):
            layer.load("chm", checkout=near)


def test_another_commit_is_one_sentence(layer: Layer, tmp_path: Path) -> None:
    toy(tmp_path, {"model/chmnet.py": "class OtherNet: pass"})
    with pytest.raises(InputError, match=r"without CHMNet in model/chmnet\.py"):
        layer.load("chm", checkout=tmp_path)
    (tmp_path / "model/chmnet.py").write_text("class CHMNet:\n    def __init__(self, ktype, depth): pass")
    with pytest.raises(InputError, match=r"without model/base/backbone\.py"):
        layer.load("chm", checkout=tmp_path)
    toy(
        tmp_path, {"model/base/backbone.py": "def resnet101(p): pass", "model/base/geometry.py": "class Geometry: pass"}
    )
    with pytest.raises(MatcherError, match=r"could not be built .*depth.*is it the commit"):
        layer.load("chm", checkout=tmp_path)


def test_two_checkouts_of_the_same_matcher_live_side_by_side(layer: Layer, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for path in layer.checkout("chm").rglob("*.py"):
        copy = tmp_path / path.relative_to(layer.checkout("chm"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text().replace("100 * corr", "1 * corr"))
    first, second = layer.load("chm"), layer.load("chm", checkout=tmp_path)
    alone = layer.load("chm").match([example()])[0].score
    np.testing.assert_array_equal(first.match([example()])[0].score, alone)
    assert second.match([example()])[0].score.max() < alone.min()
    assert first._geometry is not second._geometry


def test_threads_import_different_checkouts_at_once(tmp_path: Path) -> None:
    slow = "import time\nfrom .part import number\ntime.sleep(0.02)\nfrom .part import number as again\n"
    roots = [toy(tmp_path / str(i), {"toy/net.py": slow, "toy/part.py": f"number = {i}"}) for i in range(8)]
    found: dict[int, tuple[int, int]] = {}

    def work(index: int) -> None:
        net = Checkout(roots[index], TOY).module("toy.net")
        found[index] = (net.number, net.again)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: (i, i) for i in range(8)}


def test_nothing_is_downloaded(layer: Layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(*args: object, **options: object) -> None:
        raise AssertionError(f"a download: {args}")

    for place in ("urllib.request.urlopen", "urllib.request.urlretrieve", "socket.socket.connect"):
        monkeypatch.setattr(place, caught)
    for name in NAMES:
        layer.load(name).match([example()])
    for source in (
        "from torch.hub import load_state_dict_from_url\nget = lambda u: load_state_dict_from_url(u)",
        "import torch.utils.model_zoo as model_zoo\nget = lambda u: model_zoo.load_url(u)",
        "from torch.utils.model_zoo import load_url\nget = lambda u: load_url(u)",
        "import torch\nget = lambda u: torch.hub.load_state_dict_from_url(u)",
        "import torch\nget = lambda u: torch.hub.load(u, 'net')",
        "from torch import hub\nget = lambda u: hub.load_state_dict_from_url(u)",
        "from torch import hub as h\nget = lambda u: h.load(u, 'net')",
        "import torch.hub as h\nget = lambda u: h.download_url_to_file(u, 'a')",
        "from torch.hub import load_state_dict_from_url as g\nget = lambda u: g(u)",
        "from torch.utils import model_zoo as zoo\nget = lambda u: zoo.load_url(u)",
        "import torch as t\nfrom torch import utils\nget = lambda u: utils.model_zoo.load_url(u)",
        "def get(u):\n    from torch import hub\n    return hub.load_state_dict_from_url(u)",
        "import torch.utils.model_zoo\nget = lambda u: torch.utils.model_zoo.load_url(u)",
        "import urllib.request\nget = lambda u: urllib.request.urlopen(u)",
        "import requests\nget = lambda u: requests.get(u)",
    ):
        net = Checkout(toy(tmp_path, {"toy/net.py": source}), TOY).module("toy.net")
        with pytest.raises(MatcherError):
            net.get("https://download.invalid/resnet101.pth")


def test_the_declaration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        CHM.upstream.licence = "MIT"  # type: ignore[misc]
