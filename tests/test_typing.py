"""What an editor and a type checker know of the public functions' options."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from kbc.config import KBCConfig, KBCOptions

ROOT = Path(__file__).parent.parent

SNIPPETS = {
    'kbc.wrap(matcher, budget="fast", margin=0.4, passes=2)': "",
    'kbc.wrap(matcher, config, budget="thorough")': "",
    'kbc.wrap(matcher, budgett="fast")': 'Unexpected keyword argument "budgett" for "wrap"',
    'kbc.wrap(matcher, budget="quick")': 'Argument "budget" to "wrap" has incompatible type',
    'kbc.wrap(matcher, margin="wide")': 'Argument "margin" to "wrap" has incompatible type',
    'kbc.KBCConfig(budgett="fast")': 'Unexpected keyword argument "budgett" for "KBCConfig"',
    'kbc.KBCConfig(localizer="magic")': 'Argument "localizer" to "KBCConfig" has incompatible type',
    'kbc.as_matcher(matcher, image="tensors")': 'Argument "image" to "as_matcher" has incompatible type',
    'kbc.from_flow(matcher, direction="back")': 'Argument "direction" to "from_flow" has incompatible type',
    "kbc.from_features(matcher, 16, side=256)": 'Unexpected keyword argument "side" for "from_features"',
}


def test_mypy_refuses_wrong_options_and_lets_right_ones_pass(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is a development tool")
    head = ["from typing import Any", "import kbc", "matcher: Any = None", "config = kbc.KBCConfig()"]
    (tmp_path / "snippets.py").write_text("\n".join([*head, *SNIPPETS]) + "\n", encoding="utf-8")
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "cv2"))  # most of the time
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = true\n" + skipped, encoding="utf-8")
    options = ["--config-file", str(tmp_path / "mypy.ini"), "--cache-dir", str(tmp_path), "--no-error-summary"]
    call = [sys.executable, "-m", "mypy", *options, str(tmp_path / "snippets.py")]
    done = subprocess.run(call, capture_output=True, text=True, cwd=ROOT)
    said: dict[int, str] = {}
    for line in done.stdout.splitlines():
        if line.startswith(str(tmp_path)) and ": error: " in line:
            place, _, message = line.partition(": error: ")
            said.setdefault(int(place.rsplit(":", 1)[1]), message)
    assert not done.stderr
    for number, (snippet, expected) in enumerate(SNIPPETS.items(), start=len(head) + 1):
        assert expected in said.get(number, ""), snippet
        assert bool(expected) == (number in said), said.get(number)


def test_options_are_the_config_s_fields() -> None:
    fields = {name: field.annotation for name, field in KBCConfig.model_fields.items()}
    assert get_type_hints(KBCOptions) == fields
