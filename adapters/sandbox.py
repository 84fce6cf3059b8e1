"""Run an upstream checkout as it is, and leave the process as it was.

The checkout's modules are executed here, with an `__import__` of their own: names that the checkout holds (`model`,
`utils`, `data`, …) resolve inside it, names that it mentions but does not need are stubs, everything else is imported
as always. Python's own import system never hears of them, so `sys.path` and `sys.modules` are not touched, any number
of checkouts live side by side, each with its own class-level state, and threads cannot see each other's half-done
imports. Our choice; the usual way (checkout first on `sys.path`, then clean `sys.modules`) shares all of these.

What the checkout's code changes of the process while it is imported, built or run is put back (`process_kept` says
what); other threads see it meanwhile. `sys.exit` is an error like any other. Weights are not downloaded by way of
`torch.hub` or `torch.utils.model_zoo`. Nothing else is prevented: this is for code that its user trusts. Files that it
writes, threads that it starts, `atexit`, and what installed packages do that it imports (torchvision's own downloads)
are its own.
"""

from __future__ import annotations

import builtins
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from kbc.errors import InputError, KBCError, MatcherError, MissingDependencyError, must_be
from kbc.files import as_path

_log = logging.getLogger("kbc_adapters")
BUILDING = threading.Lock()
"""One model is built at a time: torch's random state and default dtype belong to the whole process."""

_DOWNLOADERS = ("load_state_dict_from_url", "load_url")
_SIGNS = {
    "model/chmnet.py": "juhongm999/chm",
    "model/dhpf.py": "juhongm999/dhpf",
    "model/scot_CAM.py": "csyanbin/SCOT",
    "models/Model.py": "wintersun661/MMNet",
    "models/cats.py": "SunghwanHong/Cost-Aggregation-transformers",
}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What an adapter declares about the code it runs.

    Attributes:
        repository: owner/name on GitHub.
        entry: the file that tells a checkout of it, relative to its root.
        licence: what the repository says. "none" means that nobody but its authors may copy it.
        citation: the paper.
        direction: what upstream's own evaluation predicts. The adapter always answers source → target.
        frame: how upstream resizes its images.
    """

    repository: str
    entry: str
    licence: str
    citation: str
    direction: str
    frame: str


class Stub:
    """Stands for a package that upstream names and does not use. Any attribute is a stub; calling one is an error.

    Args:
        name: for the message.
        known: names that upstream does use, at any depth, with what they are.
    """

    def __init__(self, name: str, **known: object) -> None:
        self.__name__ = name
        self._known = known

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        if attribute in self._known:
            return self._known[attribute]
        return Stub(f"{self.__name__}.{attribute}", **self._known)

    def __call__(self, *args: object, **options: object) -> Any:
        """Refuse, by name."""
        raise MatcherError(
            f"upstream calls {self.__name__}, which kbc_adapters replaced by a stub; use the commit that "
            "examples/results/adapters.md names"
        )


class CudaTo(TorchFunctionMode):
    """While active in this thread, `tensor.cuda()` moves to the chosen device instead."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch for each of its functions."""
        if func is torch.Tensor.cuda:
            return args[0].to(self.device)
        return func(*args, **(kwargs or {}))


class Checkout:
    """A private copy of the modules of an upstream checkout.

    Args:
        root: the user's clone.
        upstream: what it must be a clone of.
        stubs: top-level package → what upstream's `import` of it gets, ahead of any installed one.
        packages: top-level package → its folder; run in here as well, so that the stubs hold for it too.
        weights: what upstream gets when it asks for pretrained weights. None: it gets an error, and no download.

    Raises:
        InputError: `root` is no such checkout.
    """

    def __init__(
        self,
        root: str | Path,
        upstream: Upstream,
        *,
        stubs: Mapping[str, object] | None = None,
        packages: Mapping[str, Path] | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.root = as_path(root, "checkout").resolve()
        self.upstream = upstream
        self._check()
        quiet = SimpleNamespace(info=_log.debug, warning=_log.debug, INFO=logging.INFO)
        network = {name: Stub(name) for name in ("requests", "urllib", "wget", "gdown")}
        # upstream's `logging.info` would give the root logger a handler
        self._stubs: dict[str, object] = {"logging": quiet, **network, **(stubs or {})}
        self._packages = dict(packages or {})
        self._weights = weights
        hub = Stub("torch.hub", **dict.fromkeys(_DOWNLOADERS, self._pretrained))
        zoo = SimpleNamespace(load_url=self._pretrained)
        utils = _replaced(torch.utils, model_zoo=zoo)
        self._torch: dict[str, Any] = {
            "torch": _replaced(torch, hub=hub, utils=utils),
            "torch.hub": hub,
            "torch.utils": utils,
            "torch.utils.model_zoo": zoo,
        }
        self._modules: dict[str, ModuleType] = {}
        self._lock = threading.RLock()
        self._builtins = {**vars(builtins), "__import__": self._import, "print": self._print}

    def get(self, module: str, name: str) -> Any:
        """A module's attribute, e.g. `get("model.chmnet", "CHMNet")`.

        Raises:
            InputError: this commit of upstream lacks it.
            MissingDependencyError: upstream needs a package that is not installed.
            MatcherError: upstream's module raised.
        """
        loaded = self.module(module)
        if not hasattr(loaded, name):
            raise self._wrong(f"one without {name} in {module.replace('.', '/')}.py")
        return getattr(loaded, name)

    def module(self, name: str) -> ModuleType:
        """A module of the checkout, by its dotted name. Errors as `get`."""
        if self._find(name) is None:
            raise self._wrong(f"one without {name.replace('.', '/')}.py")
        try:
            with process_kept():
                return self._load(name)
        except KBCError:
            raise
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            if self._find(missing) is not None:
                raise self._wrong(f"one whose {name} imports what it lacks ({error})") from error
            raise MissingDependencyError(
                f"{self.upstream.repository} ({name}) needs a package that is not installed: {error}; "
                f"run: pip install {missing}"
            ) from error
        except (Exception, SystemExit) as error:
            text = f"{self.upstream.repository} at {str(self.root)!r}: {name} raised {type(error).__name__}: {error}"
            raise MatcherError(text) from error

    def untrained(self, module: str, *names: str) -> None:
        """Make these functions of a module ignore `pretrained=True`: the checkpoint holds the weights."""
        for name in names:
            build = self.get(module, name)

            def plain(pretrained: bool = False, *args: Any, _build: Any = build, **options: Any) -> Any:
                return _build(False, *args, **options)

            setattr(self.module(module), name, plain)

    def pretrained(self, module: str, name: str) -> None:
        """Make a function of a module build an untrained model and load the user's weights into it."""
        build = self.get(module, name)

        def filled(*args: Any, **options: Any) -> Any:
            model = build(False)
            model.load_state_dict(dict(self._weights or {}))
            return model

        setattr(self.module(module), name, filled)

    @contextmanager
    def building(self, device: torch.device) -> Iterator[None]:
        """Construct upstream's model in here: `.cuda()` goes to `device`.

        Raises:
            MatcherError: whatever else than a `KBCError` upstream raises.
        """
        with BUILDING, process_kept(), CudaTo(device):
            try:
                yield
            except KBCError:
                raise
            except (Exception, SystemExit) as error:
                raise MatcherError(
                    f"{self.upstream.repository} at {str(self.root)!r} could not be built "
                    f"({type(error).__name__}: {error}); is it the commit that examples/results/adapters.md names?"
                ) from error

    @contextmanager
    def running(self, device: torch.device) -> Iterator[None]:
        """Run upstream's model in here, in the thread that uses it.

        Raises:
            MatcherError: it ended the program.
        """
        with process_kept(), CudaTo(device), torch.inference_mode():
            try:
                yield
            except SystemExit as error:
                raise MatcherError(f"{self.upstream.repository} at {str(self.root)!r} called sys.exit") from error

    def _check(self) -> None:
        if not os.path.isdir(self.root):
            clone = f"git clone https://github.com/{self.upstream.repository}"
            raise InputError(must_be("checkout", "an existing folder", repr(str(self.root)), clone))
        if (self.root / self.upstream.entry).is_file():
            return
        for sign, repository in _SIGNS.items():
            if (self.root / sign).is_file():
                raise self._wrong(f"one of {repository}")
        for near in (self.root.parent, *sorted(path for path in self.root.iterdir() if path.is_dir())):
            if (near / self.upstream.entry).is_file():
                raise self._wrong("a folder beside it", f"did you mean {str(near)!r}?")
        raise self._wrong(f"a folder without {self.upstream.entry}")

    def _wrong(self, received: str, hint: str = "") -> InputError:
        expected = f"a checkout of github.com/{self.upstream.repository}"
        return InputError(must_be("checkout", expected, f"{str(self.root)!r}, {received}", hint))

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """What `import` means inside the checkout; the signature is that of `builtins.__import__`."""
        if level:
            package = str((globals or {}).get("__package__") or "")
            above = package.split(".")[: package.count(".") + 2 - level] if package else []
            if not above:
                raise ImportError("attempted relative import beyond top-level package")
            name = ".".join([*above, *([name] if name else [])])
        top = name.partition(".")[0]
        if top in self._stubs:
            found: Any = self._stubs[top]
            for part in name.split(".")[1:] if fromlist else ():
                found = getattr(found, part)
            return found
        if self._find(top) is None:
            module = builtins.__import__(name, globals, locals, fromlist or (), 0)
            return self._torch.get(name if fromlist else top, module)
        with self._lock:
            module = self._load(name)
            for item in fromlist or ():
                if item != "*" and not hasattr(module, item) and self._find(f"{name}.{item}") is not None:
                    self._load(f"{name}.{item}")
            return module if fromlist else self._modules[top]

    def _find(self, name: str) -> Path | None:
        """The file or folder of a dotted name, or None when the checkout does not hold it."""
        top, *rest = name.split(".")
        base = self._packages.get(top, self.root / top)
        path = base.joinpath(*rest)
        file = path.with_name(f"{path.name}.py")
        if path.is_dir() and ((path / "__init__.py").is_file() or top not in sys.stdlib_module_names):
            return path  # as in Python, a folder of data called `json` does not hide the standard library's
        return file if file.is_file() else None

    def _load(self, name: str) -> ModuleType:
        with self._lock:
            if name in self._modules:
                return self._modules[name]
            parent, _, child = name.rpartition(".")
            above = self._load(parent) if parent else None
            if name in self._modules:  # the package imported it
                return self._modules[name]
            path = self._find(name)
            if path is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = ModuleType(name)
            is_package = path.is_dir()
            source = path / "__init__.py" if is_package else path
            package = name if is_package else parent
            vars(module).update(__file__=str(source), __package__=package, __builtins__=self._builtins)
            if is_package:
                module.__path__ = [str(path)]
            self._modules[name] = module
            if above is not None:
                setattr(above, child, module)  # before it runs: circular imports find it
            try:
                if source.is_file():
                    exec(compile(source.read_bytes(), str(source), "exec", dont_inherit=True), vars(module))
            except BaseException:
                del self._modules[name]
                if above is not None:
                    delattr(above, child)
                raise
            return module

    def _pretrained(self, url: str, *args: object, **options: object) -> dict[str, torch.Tensor]:
        if self._weights is None:
            raise MatcherError(f"{self.upstream.repository} wants to download {url}; kbc_adapters downloads nothing")
        return dict(self._weights)  # a plain dict: upstream writes into it

    @staticmethod
    def _print(*values: object, **options: object) -> None:
        _log.debug(" ".join(map(str, values)))


def _replaced(module: ModuleType, **attributes: object) -> ModuleType:
    """A copy of a module with other attributes; the module itself stays as it is, and what it gets later is found."""
    copied = ModuleType(module.__name__)
    vars(copied).update(vars(module), **attributes, __getattr__=lambda name: getattr(module, name))
    return copied


@contextmanager
def process_kept() -> Iterator[None]:
    """Put back what a checkout's code changed of the process.

    That is working directory, environment, `sys.path`, warning filters, signal handlers; the random states of Python,
    NumPy and torch's CPU; torch's default dtype, gradient mode, number of threads, deterministic algorithms, matrix
    precision and cuDNN switches.
    """
    before = [get() for get, _ in _PROCESS]
    try:
        yield
    finally:
        for value, (get, put) in zip(before, _PROCESS, strict=True):
            if get() != value:
                put(value)


def _put_environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def _put_path(values: list[str]) -> None:
    sys.path[:] = values


def _put_filters(values: list[Any]) -> None:
    warnings.resetwarnings()  # this tells Python that the filters have changed
    warnings.filters[:] = values  # type: ignore[index]


def _handlers() -> dict[int, Any]:
    if threading.current_thread() is not threading.main_thread():
        return {}  # Python changes them in the main thread only
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _put_handlers(values: dict[int, Any]) -> None:
    for number, handler in values.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _numpy_random() -> tuple[Any, ...]:
    state: Any = np.random.get_state()  # noqa: NPY002 (upstream's is the global one)
    name, keys, *rest = state
    return (name, tuple(keys.tolist()), *rest)


def _put_torch_random(state: list[int]) -> None:
    torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))


def _cudnn() -> tuple[bool, ...]:
    return (cudnn.enabled, cudnn.benchmark, cudnn.deterministic)


def _put_cudnn(values: tuple[bool, ...]) -> None:
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = values


_PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (os.getcwd, os.chdir),
    (lambda: dict(os.environ), _put_environment),
    (lambda: list(sys.path), _put_path),
    (lambda: list(warnings.filters), _put_filters),
    (_handlers, _put_handlers),
    (random.getstate, random.setstate),
    (_numpy_random, np.random.set_state),
    (lambda: torch.get_rng_state().tolist(), _put_torch_random),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_cudnn, _put_cudnn),
)
