"""What is shipped works where nothing else is: wheel and sdist in bare environments, and a newcomer's first hour.

Needs a package index. Environments begin empty; those of the extras see the first one's packages, for torch is large.
pip is told the versions of constraints.txt, as `make` does.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tests.pages import blocks
from tests.test_getting_started import PAGES, data_sets, photographs, two_photographs

ROOT = Path(__file__).parent.parent
RUN_PAGES = ROOT / "tests" / "pages.py"
BIN = "Scripts" if os.name == "nt" else "bin"
POINTS = "--points '9,9 30,9 9,30 30,30'"

pytestmark = pytest.mark.slow

NEEDS: dict[str, tuple[str, str]] = {
    "viz": (f"kbc match a.png b.png {POINTS} --plot out.png", "plain matches"),
    "completion": ("kbc completion bash", "_shtab_kbc"),
    "dino": (f"kbc match a.png b.png {POINTS} --matcher dino --option model=dino", "plain matches"),
    "ui": ("kbc ui", ""),
    "formats": ("kbc transfer a.png b.png --points 'nose=9,9 tail=30,20' --out out.slp", "out.slp: "),
    "train": ("kbc train kbcnet --set steps=2 --set validate_pairs=2 --workers 0 --tensorboard --out runs/short", ""),
    "ray": (f"python {ROOT}/examples/ray_eval.py --data coco --root my_photos --matcher hog --out runs/ray", "@0.1"),
}
"""Extra → a command that needs it, and what it then says."""
BETTER: dict[str, tuple[str, str]] = {
    "progress": ("python -c 'import kbc, tqdm'", ""),
    "triton": ("python -c 'import kbc.ops.triton_kernels'", ""),
}
"""Extras that no command needs."""
TOOLS = {"docs", "dev"}
"""Extras of whoever works on kbc: resolved, not installed."""


def shell(command: str, folder: Path, expected: int = 0, python: Path | None = None, **more: str) -> str:
    """Run it as somebody with nothing set would, in a folder, with an environment's Python; what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "KBC_", "VIRTUAL_ENV"))}
    path = os.pathsep.join(([] if python is None else [str(python.parent)]) + [kept["PATH"]])
    env = {**kept, "PATH": path, "COLUMNS": "80", "OMP_NUM_THREADS": "1", **more}
    env["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")
    done = subprocess.run(
        command, shell=True, cwd=folder, text=True, check=False, env=env, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, executable=None if os.name == "nt" else "/bin/bash",
    )  # fmt: skip
    assert done.returncode == expected, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def environment(folder: Path) -> Path:
    """The Python of a new environment that holds nothing but pip."""
    venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    return folder / BIN / "python"


def clone(folder: Path) -> Path:
    """What a clone holds: the files that git knows, as they are now."""
    folder.mkdir()
    shell(f"git ls-files -z | tar --null --files-from - -c | tar -x -C '{folder}'", ROOT)
    return folder


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist, as `make dist` builds them."""
    pytest.importorskip("build", reason="build is a development tool")
    there = clone(tmp_path_factory.mktemp("dist") / "clone")
    shell(f"{sys.executable} -m build --outdir dist .", there)
    return there / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel and what it needs, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    python = environment(folder)
    shell(f"python -m pip install -q '{wheel}'", folder, python=python)
    return python


def with_extra(bare: Path, wheel: Path, extra: str, folder: Path) -> Path:
    """The Python of an environment that sees `bare` and has one extra more, by the line that the refusal gives."""
    python = environment(folder)
    site = "python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\""
    there, here = (Path(shell(site, folder, python=one).strip()) for one in (bare, python))
    (here / "bare.pth").write_text(str(there), encoding="utf-8")
    shell(f"python -m pip install -q --no-deps --ignore-installed '{wheel}'", folder, python=python)
    shell(f'pip install -q "kbc[{extra}]"', folder, python=python)
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, points and data sets, as a reader has them."""
    here = tmp_path / "here"
    here.mkdir()
    with contextlib.chdir(here):
        photographs()
        data_sets()
    return here


def test_the_index_takes_both(dist: Path) -> None:
    assert len(list(dist.iterdir())) == 2
    assert "WARNING" not in shell(f"{sys.executable} -m twine check --strict {dist}/*", dist)


def test_a_distributor_builds_and_tests_from_the_sdist(dist: Path, bare: Path, tmp_path: Path) -> None:
    python = with_extra(bare, next(dist.glob("*.whl")), "viz", tmp_path / "env")
    shell("python -m pip install -q pytest hypothesis", tmp_path, python=python)
    shell(f"tar -xf {next(dist.glob('*.tar.gz'))} --strip-components 1", tmp_path)
    shell("python -m pip install -q --no-deps --force-reinstall .", tmp_path, python=python)
    quick = "tests/test_api.py tests/test_geometry.py tests/test_cropping.py tests/test_house.py tests/test_readme.py"
    assert " passed" in shell(f"python -m pytest -q -p no:cacheprovider {quick}", tmp_path, python=python)


def test_without_extras_everything_runs_or_says_what_is_missing(bare: Path, folder: Path) -> None:
    shell("python -c 'import kbc; kbc.wrap(lambda source, target, points: points)'", folder, python=bare)
    for command in ("--version", "env", "matchers", "data sources", "demo --pairs 1"):
        shell(f"kbc {command}", folder, python=bare)
    for extra, (command, _) in NEEDS.items():
        said = shell(command, folder, expected=3, python=bare)
        assert f'pip install "kbc[{extra}]"' in " ".join(said.split()), said


def extras() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(settings["project"]["optional-dependencies"])


def test_every_extra_is_tried() -> None:
    assert extras() == {*NEEDS, *BETTER, *TOOLS}


@pytest.mark.parametrize("extra", sorted({*NEEDS, *BETTER}))
def test_with_an_extra_its_command_works(extra: str, bare: Path, wheel: Path, folder: Path, tmp_path: Path) -> None:
    python = with_extra(bare, wheel, extra, tmp_path / "env")
    if extra == "dino":
        small = "hidden_size=32, num_hidden_layers=1, num_attention_heads=2"
        code = f"from transformers import *; Dinov2Model(Dinov2Config({small})).save_pretrained('dino')"
        shell(f'python -c "{code}"', folder, python=python)
    command, says = {**NEEDS, **BETTER}[extra]
    if extra == "ui":
        (folder / "page.md").write_text(f"```bash\n{command}\n```\n", encoding="utf-8")
        command = f"python -P '{RUN_PAGES}' page.md"
    assert says in shell(command, folder, python=python)


@pytest.mark.parametrize("extra", sorted(TOOLS))
def test_the_tools_can_be_resolved(extra: str, bare: Path, wheel: Path, tmp_path: Path) -> None:
    shell(f"python -m pip install -q --dry-run 'kbc[{extra}] @ {wheel.as_uri()}'", tmp_path, python=bare)


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clone, and the Python that its README's install lines leave behind, each line as it stands."""
    there = clone(tmp_path_factory.mktemp("newcomer") / "clone")
    installs = [
        next(text for language, text in blocks(there / page) if language == "text" and "pip install" in text)
        for page in ("README.md", "docs/getting_started.md")
    ]
    assert installs[0] == installs[1]
    (there.parent / "python").symlink_to(sys._base_executable)  # type: ignore[attr-defined]
    shell(f"set -e\n{installs[0]}", there, python=there.parent / "python")
    return there, there / ".venv" / BIN / "python"


def test_a_newcomers_first_hour(newcomer: tuple[Path, Path], tmp_path: Path) -> None:
    there, python = newcomer
    shell(f"python -P '{RUN_PAGES}' '{there}/README.md' '{there}/docs/getting_started.md'", tmp_path, python=python)
    assert (tmp_path / "demo.png").exists()
    assert (tmp_path / "match.png").exists()


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"getting_started.md"}))
def test_the_other_pages(page: str, newcomer: tuple[Path, Path], tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        PAGES[page]()
    there, python = newcomer
    torch_home = str(tmp_path / "torch")
    shell(f"python -P '{RUN_PAGES}' '{there}/docs/{page}'", tmp_path, python=python, TORCH_HOME=torch_home)


NOT_HERE = {"--matcher cats": "needs an upstream clone: tests/adapters/test_page.py has stand-ins"}


@pytest.mark.parametrize("page", ["README.md", "docs/getting_started.md"])
def test_the_lines_for_pictures_of_the_readers_own(page: str, newcomer: tuple[Path, Path], tmp_path: Path) -> None:
    there, python = newcomer
    shown = "\n".join(text for language, text in blocks(there / page) if language == "text")
    lines = re.findall(r"^kbc .*$", re.sub(r"\\\n\s*", "", shown), flags=re.MULTILINE)
    lines = [line for line in lines if not any(word in line for word in NOT_HERE)]
    assert lines
    with contextlib.chdir(tmp_path):
        two_photographs()
        data_sets()
        Path("my_photos").rename("my_keypoints")
    for line in lines:
        code = int(line.startswith("kbc data check"))  # one category of it gives no pair
        shell(line, tmp_path, code, python, TORCH_HOME=str(tmp_path / "torch"))
