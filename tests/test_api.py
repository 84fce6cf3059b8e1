"""The public API is locked, cheap to import, documented and small."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import kbc

ROOT = Path(__file__).parent.parent
PUBLIC = {
    "Box", "DataError", "Exemplar", "InputError", "KBCConfig", "KBCError", "KBCMatcher", "Match", "MatchResult",
    "Matcher", "MatcherError", "MissingDependencyError", "Pair", "SimilarityMatcher", "Window", "__version__",
    "as_matcher",
    "available_matchers", "crop_pair", "from_correlation", "from_features", "from_flow", "load_image", "load_matcher",
    "transfer", "wrap",
}  # fmt: skip
SIGNATURES = {
    "wrap": "matcher config **options",
    "transfer": "exemplars images matcher boxes instances ask min_confidence",
    "Exemplar": "image names keypoints category box",
    "load_matcher": "name **options",
    "available_matchers": "",
    "as_matcher": "function image points name input_size device",
    "from_features": "encode stride size offset name normalise device cache_bytes",
    "from_flow": "network direction size frame name image normalise device",
    "from_correlation": "network size source_grid name normalise device",
    "crop_pair": "pair target_keypoints size_hw config",
    "load_image": "image argument",
    "Pair": "source target keypoints source_box target_box",
}
SOURCES = sorted([*(ROOT / "kbc").rglob("*.py"), *(ROOT / "adapters").rglob("*.py")])


def test_the_public_names_are_locked() -> None:
    assert set(kbc.__all__) == PUBLIC
    assert set(dir(kbc)) == PUBLIC
    for name in PUBLIC:
        assert getattr(kbc, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'wrapp'"):
        _ = kbc.wrapp


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures_are_locked(name: str) -> None:
    parameters = inspect.signature(getattr(kbc, name)).parameters.values()
    shown = ["**" + p.name if p.kind is p.VAR_KEYWORD else p.name for p in parameters]
    assert " ".join(shown) == SIGNATURES[name]


def test_the_version_is_one() -> None:
    from importlib.metadata import version

    assert version("kbc") == kbc.__version__
    assert f"version: {kbc.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_importing_kbc_is_cheap() -> None:
    script = "import sys, kbc; print([m for m in ('torch', 'cv2', 'numpy', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_files_and_functions_stay_small_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 500
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = len([a for a in arguments if a.arg not in ("self", "cls")])
            assert count <= 8, f"{node.name} has {count} parameters"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    overloaded = isinstance(inner, ast.FunctionDef) and "overload" in map(
                        ast.unparse, inner.decorator_list
                    )
                    if (
                        isinstance(inner, ast.FunctionDef)
                        and not inner.name.startswith("_")
                        and not overloaded
                        and inner.name != "extra_repr"
                    ):
                        assert ast.get_docstring(inner), f"{node.name}.{inner.name} has no docstring"


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_is_ever_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "joblib.load"), called
        if called == "torch.load":
            assert options.get("weights_only") == "True"
        if called == "np.load":
            assert options.get("allow_pickle", "False") == "False"
