"""Runs a page of the documentation as a reader would: every block in order, from one folder, none edited.

- `python` runs in one namespace for the page, or becomes a file where its first line is `# name.py`.
- `bash` runs line by line: `kbc …` in this process, anything else in a shell. `kbc ui` is waited for and ended.
- `output` is what the block before it must have printed: each of its lines, blanks and seconds aside, `…` for more;
  numbers with a decimal point to 5 per cent, because processors round otherwise and the method is still being improved.
- `text` is only shown.

`python -P tests/pages.py PAGE …` runs pages in the working directory, with the kbc that is installed for that Python.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from kbc import cli

DOCS = Path(__file__).parent.parent / "docs"
_DECIMAL = re.compile(r"[-+]?\d+\.\d+")
_SECONDS = re.compile(r"\d+(\.\d+)? s(/pair)?\b")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of every fenced block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def run_page(page: Path, in_shell: bool = False) -> str:
    """Run the page's blocks in the working directory; what they printed.

    Args:
        in_shell: `kbc …` too runs in a shell, as the command that is installed beside this Python.
    """
    namespace: dict[str, object] = {"__name__": "page"}
    everything, printed = "", ""
    for language, text in blocks(page):
        assert language in ("python", "bash", "output", "text", "toml", "json"), language
        if language == "output":
            _assert_printed(text, printed, page)
        elif language in ("python", "bash"):
            printed = _python(text, namespace, page) if language == "python" else _shell(text, page, in_shell)
            everything += printed
    return everything


def _python(text: str, namespace: dict[str, object], page: Path) -> str:
    named = re.match(r"# ([\w/]+\.py)\n", text)
    if named:
        Path(named[1]).write_text(text, encoding="utf-8")
        return ""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(text, str(page), "exec"), namespace)
    printed = out.getvalue()
    for promised in re.findall(r"^print\(.*\)  # (.*)$", text, flags=re.MULTILINE):
        assert _holds(_plain(printed), _plain(promised)), f"{page.name}: {promised!r} was not printed, but:\n{printed}"
    return printed


def _shell(text: str, page: Path, in_shell: bool) -> str:
    printed = ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.split(r"\s{2,}#", line)[0].strip()
        if not command:
            continue
        if command.split()[:2] == ["kbc", "ui"]:
            open_page(command, in_shell)
        elif command.startswith("kbc ") and not in_shell:
            out, said = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
                code = cli.main(shlex.split(command)[1:])
            expected = (0, 1) if command.startswith("kbc data check") else (0,)
            assert code in expected, f"{page.name}: {command}: exit code {code}\n{said.getvalue()}"
            printed += out.getvalue() + said.getvalue()
        else:
            env = _environment(in_shell)
            done = subprocess.run(command, shell=True, text=True, capture_output=True, check=False, env=env)
            expected = (0, 1) if command.startswith("kbc data check") else (0,)
            assert done.returncode in expected, f"{page.name}: {command}\n{done.stdout}{done.stderr}"
            printed += done.stdout + done.stderr
    return printed


def open_page(command: str, in_shell: bool) -> None:
    """Start a `kbc ui …`, fetch the page from the address that it prints, end it."""
    words, env = [sys.executable, "-m", *shlex.split(command)], {**_environment(in_shell), "BROWSER": "true"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        try:
            said = next((line for line in process.stderr if "http://" in line), "")
            address = re.search(r"http://\S+", said)
            assert address is not None, f"{command}: no address; exit code {process.poll()}"
            for _ in range(300):
                with contextlib.suppress(OSError):
                    assert b"kbc" in urllib.request.urlopen(address[0], timeout=10).read()
                    return
                time.sleep(0.2)
            raise AssertionError(f"{command}: {address[0]} does not answer")
        finally:
            process.terminate()


def _environment(in_shell: bool) -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    root = "" if in_shell else os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": root, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def _assert_printed(shown: str, printed: str, page: Path) -> None:
    held = _plain(printed)
    for line in shown.splitlines():
        for part in filter(None, map(_plain, line.split("…"))):
            assert _holds(held, part), f"{page.name}: {part!r} was not printed, but:\n{printed}"


def _holds(printed: str, part: str) -> bool:
    wanted = [float(number) for number in _DECIMAL.findall(part)]
    pattern = r"([-+]?\d+\.\d+)".join(map(re.escape, _DECIMAL.split(part)))
    return any(
        all(abs(float(a) - b) <= 0.05 * abs(b) + 0.05 for a, b in zip(found.groups(), wanted, strict=True))
        for found in re.finditer(pattern, printed)
    )


def _plain(text: str) -> str:
    return " ".join(_SECONDS.sub("s", text).split())


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run_page(Path(name), in_shell=True)
