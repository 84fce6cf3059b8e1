"""Training: the same recipe gives the same weights, interrupted or not, on one process or two."""

from __future__ import annotations

import argparse
import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kbcnet_helpers import SMALL, small_config, small_recipe
from test_kbcnet_samples import photo_set

from kbc.cli import train as command
from kbc.errors import DataError, InputError, KBCError
from kbc.evaluation.runner import torchrun_rank
from kbc.files import LineFile
from kbc.kbcnet.checkpoint import empty_network, load_checkpoint
from kbc.kbcnet.training.batches import Mixture, indices_of, workers_told
from kbc.kbcnet.training.pool import _digest
from kbc.kbcnet.training.recipe import CONFIGS, Recipe, read_recipe
from kbc.kbcnet.training.sources import HELD_OUT
from kbc.kbcnet.training.state import learning_rate
from kbc.kbcnet.training.trainer import Options, TrainingError, World, run, train
from kbc.matchers.resnet import ResNet
from kbc.weights import load_metadata, load_safetensors, save_safetensors

TRAIN = ["-m", "kbc", "train", "kbcnet"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def options(out: Path, **changes: object) -> Options:
    return Options(out, **({"workers": 0, "progress": False} | changes))  # type: ignore[arg-type]


def same(first: Path, second: Path) -> bool:
    a, b = load_safetensors(first), load_safetensors(second)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_recipe(recipe: Recipe, path: Path) -> Path:
    path.write_text(recipe.model_dump_json())
    return path


def test_training_lowers_the_loss_and_writes_a_checkpoint(tmp_path: Path) -> None:
    recipe = small_recipe(steps=30, lr=3e-3, backbone_lr=3e-3, ema=0.8, validate_every=15)
    path = train(recipe, options(tmp_path))
    log = rows_of(tmp_path)
    losses = [float(row["loss"]) for row in log]
    assert [int(row["step"]) for row in log] == list(range(1, 31))
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert log[0]["pck"] == ""
    assert 0 <= float(log[-1]["pck"]) <= 100
    network, card = load_checkpoint(path)
    assert network.config == recipe.model
    assert Recipe.model_validate(card.training["recipe"]) == recipe


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = small_recipe()
    whole = train(recipe, options(tmp_path / "whole"))
    assert train(recipe, options(tmp_path / "parts", stop_after=3)).name == "last.safetensors"
    assert load_metadata(tmp_path / "parts" / "last.safetensors")["step"] == "3"
    parts = train(recipe, options(tmp_path / "parts"))
    assert same(whole, parts)
    assert whole.with_suffix(".json").read_text() == parts.with_suffix(".json").read_text()
    assert [row["loss"] for row in rows_of(tmp_path / "whole")] == [row["loss"] for row in rows_of(tmp_path / "parts")]


def test_a_finished_run_that_is_run_again_stays_as_it_is(tmp_path: Path) -> None:
    recipe = small_recipe(steps=3)
    path = train(recipe, options(tmp_path))
    before = path.read_bytes(), path.with_suffix(".json").read_text()
    assert "validation_pck" in before[1]
    assert train(recipe, options(tmp_path)) == path
    assert (path.read_bytes(), path.with_suffix(".json").read_text()) == before


def test_amp_trains_in_bfloat16_and_gives_about_the_same(tmp_path: Path) -> None:
    recipe = small_recipe(steps=4, decoder_start=0.0, validate_pairs=0)
    paths = [commanded(recipe, tmp_path / name, *flags) for name, flags in (("fp32", ()), ("bf16", ("--amp",)))]
    assert not same(*paths)
    first, second = (load_safetensors(path.parent / "last.safetensors") for path in paths)
    assert apart(first, second, "model/") < 0.05
    losses = [[float(row["loss"]) for row in rows_of(path.parent)] for path in paths]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.slow
def test_compiled_training_gives_the_same_but_for_rounding(tmp_path: Path) -> None:
    recipe = small_recipe(steps=2, decoder_start=0.5, validate_pairs=0)
    paths = [
        commanded(recipe, tmp_path / name, *flags) for name, flags in (("plain", ()), ("compiled", ("--compile",)))
    ]
    first, second = (load_safetensors(path.parent / "last.safetensors") for path in paths)
    assert apart(first, second, "exp_avg/") < 1e-3


def commanded(recipe: Recipe, out: Path, *flags: str) -> Path:
    """The checkpoint that `kbc train kbcnet` writes."""
    out.mkdir()
    config = write_recipe(recipe, out / "recipe.json")
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = ["kbcnet", "--config", str(config), "--out", str(out), "--workers", "0", "--quiet", *flags]
    assert command.run(parser.parse_args(arguments)) == 0
    return out / f"{recipe.name}.safetensors"


def test_the_result_lies_between_the_initial_and_the_trained_weights(tmp_path: Path) -> None:
    recipe = small_recipe(lr=3e-3, validate_pairs=0)
    trained = load_safetensors(train(recipe, options(tmp_path / "all")))
    blended = recipe.model_copy(update={"blend": 0.25})
    train(blended, options(tmp_path / "part", stop_after=4))
    mixed = load_safetensors(train(blended, options(tmp_path / "part")))
    initial = empty_network(recipe.model, seed=recipe.seed).state_dict()
    assert any(not torch.equal(trained[name], initial[name]) for name in trained)
    for name, value in mixed.items():
        torch.testing.assert_close(value, initial[name] + 0.25 * (trained[name] - initial[name]))


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    recipe = small_recipe(steps=24, validate_pairs=0)
    config = write_recipe(recipe, tmp_path / "recipe.json")
    out = tmp_path / "killed"
    arguments = [*TRAIN, "--config", str(config), "--out", str(out), "--workers", "0", "--threads", "1", "--quiet"]
    process = subprocess.Popen([sys.executable, *arguments])
    while not (out / "last.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = int(load_metadata(out / "last.safetensors")["step"])
    assert 2 <= step < 24
    assert same(train(recipe, options(tmp_path / "whole")), train(recipe, options(out)))


def test_workers_do_not_change_the_weights(tmp_path: Path) -> None:
    recipe = small_recipe(steps=3)
    first, second = (train(recipe, options(tmp_path / str(n), workers=n)) for n in (0, 1))
    assert same(first, second)


def trained_by_one_and_by_two(recipe: Recipe, tmp_path: Path) -> tuple[dict[str, torch.Tensor], ...]:
    """What a run leaves behind: of this process alone, and of two under torchrun."""
    config = write_recipe(recipe, tmp_path / "recipe.json")
    arguments = [*TRAIN, "--config", str(config), "--out", str(tmp_path / "two"), "--workers", "0", "--quiet"]
    done = subprocess.run([*TORCHRUN, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    train(recipe, options(tmp_path / "one"))
    return tuple(load_safetensors(tmp_path / name / "last.safetensors") for name in ("one", "two"))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photograph_is_told_in_a_line(tmp_path: Path, workers: int) -> None:
    recipe = small_recipe(data=[photo_set(tmp_path) | {"views": {"size": 64}}], validate_pairs=0)
    path = tmp_path / "blobs" / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"^`image` must be a complete image file, received .*1\.png.*[^\n]$"):
        train(recipe, options(tmp_path / "run", workers=workers))


def test_a_process_that_draws_pairs_and_dies_is_told_in_a_line() -> None:
    with (
        pytest.raises(KBCError, match=r"a process that draws training pairs ended .* take fewer --workers"),
        workers_told(),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    with pytest.raises(RuntimeError, match="out of memory"), workers_told():
        raise RuntimeError("out of memory")


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    recipe = small_recipe(steps=4, validate_pairs=0)
    first, second = trained_by_one_and_by_two(recipe, tmp_path)
    # The averaged gradients agree to rounding. Weights agree less: where a gradient is zero but for rounding (a bias
    # in front of a norm), AdamW makes a step of it all the same.
    assert apart(first, second, "exp_avg/") < 1e-4
    assert apart(first, second, "model/") < 1e-3
    shorter = tmp_path / "shorter"
    train(recipe, options(shorter, stop_after=3))
    assert apart(first, load_safetensors(shorter / "last.safetensors"), "exp_avg/") > 0.1


@pytest.mark.parametrize(
    "model",
    [{"backbone": "resnet18"}, {"backbone": "resnet18", "csfa": False, "hypercolumn": (1, 2)}],
    ids=["fine-tuned", "a layer that nothing reads"],
)
def test_two_processes_train_whatever_has_no_gradient(model: dict[str, object], tmp_path: Path) -> None:
    recipe = small_recipe(model=SMALL | model, steps=2, batch=2, decoder_start=0.0, validate_pairs=0)
    first, second = trained_by_one_and_by_two(recipe, tmp_path)
    assert apart(first, second, "exp_avg/") < 1e-2  # after two steps; see above


def test_processes_that_do_not_share_the_folder_go_on_together(tmp_path: Path) -> None:
    """As on two machines: the second sees no state of the run and is given the first one's."""
    recipe = small_recipe(steps=5, validate_pairs=0)
    train(recipe, options(tmp_path / "rank0", stop_after=3))
    script = tmp_path / "train.py"
    script.write_text(
        "import os, pathlib, torch\n"
        "from kbc.kbcnet.training.recipe import read_recipe\n"
        "from kbc.kbcnet.training.trainer import Options, train\n"
        "here = pathlib.Path(__file__).parent\n"
        "torch.set_num_threads(1)\n"
        "out = here / f\"rank{os.environ['RANK']}\"\n"
        "train(read_recipe(here / 'recipe.json'), Options(out, workers=0, progress=False))\n"
    )
    write_recipe(recipe, tmp_path / "recipe.json")
    done = subprocess.run([*TORCHRUN, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "rank1").exists()
    assert [row["step"] for row in rows_of(tmp_path / "rank0")] == ["1", "2", "3", "4", "5"]
    train(recipe, options(tmp_path / "whole"))
    first, second = (load_safetensors(tmp_path / name / "last.safetensors") for name in ("whole", "rank0"))
    assert apart(first, second, "exp_avg/") < 1e-3


@pytest.mark.parametrize("size", ["x", "", "-1", "²", "9" * 5000])
def test_a_number_of_processes_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(InputError, match="`WORLD_SIZE` must be a whole number"):
        train(small_recipe(), options(tmp_path))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(InputError, match="`WORLD_SIZE` must be a whole number"):
        torchrun_rank()


def test_each_process_takes_its_own_gpu_before_they_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[object] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("kbc.kbcnet.training.trainer.usable_device", torch.device)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)

    def met(backend: str) -> None:
        done.append(backend)
        raise InterruptedError

    monkeypatch.setattr(torch.distributed, "init_process_group", met)
    with pytest.raises(InterruptedError):
        train(small_recipe(), options(tmp_path, device="cuda"))
    assert done == [torch.device("cuda:1"), "nccl"]
    with pytest.raises(InputError, match="`device` must be 'cpu' or 'cuda' under torchrun"):
        train(small_recipe(), options(tmp_path, device="cuda:0"))


def test_what_cannot_run_is_refused_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mixture, "__getitem__", lambda *_: pytest.fail("drew a pair first"))
    (tmp_path / "file").write_text("")
    for changes, message in (
        ({"device": "tpu"}, "`device` must be"),
        ({"workers": -1}, "`workers` must be"),
        ({"workers": 1.5}, "`workers` must be"),
        ({"out": tmp_path / "file"}, "`out` must be a folder"),
        ({"cache": tmp_path / "file"}, "`cache` must be a folder"),
    ):
        with pytest.raises(InputError, match=message):
            train(small_recipe(), Options(**({"out": tmp_path / "run", "progress": False} | changes)))  # type: ignore[arg-type]


def apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], kind: str) -> float:
    """Norm of the difference over the norm, of all tensors of a kind together."""
    names = [name for name in first if name.startswith(kind)]
    a, b = (torch.cat([tensors[name].flatten() for name in names]) for tensors in (first, second))
    return float((a - b).norm() / a.norm())


def test_the_last_steps_see_larger_views_and_a_stop_in_between_changes_nothing(tmp_path: Path) -> None:
    recipe = small_recipe(steps=5, late_size=96, late_start=0.5)
    pairs = Mixture(recipe, {})
    sides = [pairs[index]["source"].shape[-1] for index in (0, 11, 12, 19, HELD_OUT)]
    assert sides == [64, 64, 96, 96, 96]  # steps 0 … 2, steps 3 and 4, validation
    whole = train(recipe, options(tmp_path / "whole"))
    train(recipe, options(tmp_path / "parts", stop_after=3))
    assert same(whole, train(recipe, options(tmp_path / "parts")))
    with pytest.raises(ValueError, match="`late_size` must be left out with a pool"):
        small_recipe(late_size=96, pool=8)


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of the 3 processes"):
        run(small_recipe(), options(tmp_path), {}, World(0, 3, torch.device("cpu")))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(validate_pairs=0)
    train(recipe, options(tmp_path, stop_after=2))
    before = (tmp_path / "last.safetensors").read_bytes()
    monkeypatch.setattr("kbc.kbcnet.training.objective.cell_loss", lambda rows, *_: rows.sum() * float("nan"))
    with pytest.raises(TrainingError, match="step 2"):
        train(recipe, options(tmp_path))
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_another_recipe_or_a_damaged_state_in_the_folder(tmp_path: Path) -> None:
    train(small_recipe(), options(tmp_path, stop_after=1))
    with pytest.raises(InputError, match="same recipe"):
        train(small_recipe(lr=0.5), options(tmp_path))
    last = tmp_path / "last.safetensors"
    about, tensors = load_metadata(last), load_safetensors(last)
    save_safetensors(last, tensors, about | {"kbc": "0.0.1"})
    with pytest.raises(InputError, match="same version of kbc"):
        train(small_recipe(), options(tmp_path))
    save_safetensors(last, tensors, about | {"step": "3"})
    with pytest.raises(DataError, match=r"it says step 3, and AdamW has done 1\); remove it to begin anew"):
        train(small_recipe(), options(tmp_path))
    last.write_bytes(last.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a folder with a whole last\.safetensors, .*remove it to begin anew"):
        train(small_recipe(), options(tmp_path))


def test_a_state_of_before_versions_were_noted_is_gone_on_from(tmp_path: Path) -> None:
    train(small_recipe(), options(tmp_path, stop_after=3))
    last = tmp_path / "last.safetensors"
    about = {key: value for key, value in load_metadata(last).items() if key not in ("kbc", "backbone")}
    save_safetensors(last, load_safetensors(last), about)
    assert same(train(small_recipe(), options(tmp_path)), train(small_recipe(), options(tmp_path / "whole")))


@pytest.mark.parametrize("name", ["last.safetensors", "small.safetensors", "small.json", "log.csv"])
def test_what_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"`out` must be a file's name, received the folder '.*{name}'"):
        train(small_recipe(), options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with LineFile(tmp_path / "log.csv", alone=True), pytest.raises(InputError, match="by one process at a time"):
        train(small_recipe(), options(tmp_path))
    train(small_recipe(), options(tmp_path, stop_after=1))


def test_a_run_stops_after_at_least_one_step(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`stop_after` must be at least 1, received 0"):
        train(small_recipe(), options(tmp_path, stop_after=0))


@pytest.mark.parametrize("change", ["points", "picture"])
def test_a_run_does_not_go_on_with_other_photographs(tmp_path: Path, change: str) -> None:
    photos = photo_set(tmp_path) | {"views": {"size": 64}}
    recipe = small_recipe(data=[photos], validate_pairs=0)
    train(recipe, options(tmp_path / "run", stop_after=1))
    before = Mixture(recipe, {}).content()
    folder = tmp_path / "blobs"
    if change == "points":
        text = (folder / "annotations.json").read_text()
        content = json.loads(text)
        content["annotations"][0]["keypoints"][0] += 1
        (folder / "annotations.json").write_text(json.dumps(content))
    else:
        (folder / "images" / "1.png").write_bytes((folder / "images" / "0.png").read_bytes())
    assert Mixture(recipe, {}).content() != before
    with pytest.raises(InputError, match="same photographs and points"):
        train(recipe, options(tmp_path / "run"))


def test_a_run_does_not_go_on_with_another_frozen_backbone(tmp_path: Path) -> None:
    weights = tmp_path / "resnet18.pth"
    model = SMALL | {"backbone": "resnet18", "layers": (2, 3, 4)}
    recipe = small_recipe(model=model, backbone_weights=str(weights), backbone_lr=0, validate_pairs=0)
    for seed in (1, 2):
        torch.manual_seed(seed)
        torch.save(ResNet("resnet18").state_dict(), weights)
        if seed == 1:
            train(recipe, options(tmp_path / "run", stop_after=1))
    with pytest.raises(InputError, match="same backbone weights"):
        train(recipe, options(tmp_path / "run"))


def test_a_frozen_backbone_is_seen_once_per_pair_and_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    state = {k: v for k, v in ResNet("resnet18").state_dict().items() if not k.startswith("layer4.")}
    torch.save(state, tmp_path / "resnet18.pth")
    model = SMALL | {"backbone": "resnet18", "layers": (2, 3, 4)}
    changes = {
        "model": model,
        "backbone_weights": str(tmp_path / "resnet18.pth"),
        "backbone_lr": 0,
        "validate_pairs": 0,
    }
    recipe = small_recipe(**changes, pool=5)
    seen: list[int] = []
    raw = torch.nn.Module.__call__

    def counted(module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        if isinstance(module, ResNet):
            seen.append(len(args[0]))  # type: ignore[arg-type]
        return raw(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counted)
    path = train(recipe, options(tmp_path / "a", cache=tmp_path))
    assert sum(seen) == 2 * 5
    seen.clear()
    again = train(recipe, options(tmp_path / "b", cache=tmp_path))
    assert seen == []
    (kept,) = tmp_path.glob("pool-*.safetensors")
    content = kept.read_bytes()
    kept.write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"`cache` must be a folder of whole files, received .*pool-.*; remove it"):
        train(recipe, options(tmp_path / "c", cache=tmp_path))
    assert same(path, again)
    network, card = load_checkpoint(path, tmp_path / "resnet18.pth")
    assert card.learned_coarse
    trained = network.backbone.network.state_dict()
    assert all(torch.equal(trained[k], v) for k, v in state.items())


def test_tensorboard_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(small_recipe(steps=1, validate_pairs=0), options(tmp_path, tensorboard=True))
    assert list(tmp_path.glob("events.out.tfevents.*"))


# --- schedules and recipes -------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = small_recipe(steps=100, warmup=0.1)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_the_pairs_of_a_step() -> None:
    assert indices_of(small_recipe(), 2) == [8, 9, 10, 11]
    pooled = small_recipe(pool=3)
    assert indices_of(pooled, 2) == indices_of(pooled, 2)
    assert set(indices_of(pooled, 2)) <= {0, 1, 2}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("kbcnet-*.json")), ids=lambda p: p.stem)
def test_the_recipes_that_come_with_kbc(path: Path) -> None:
    recipe = read_recipe(path.stem)
    assert recipe.name == path.stem
    assert recipe.shares
    if recipe.model.backbone == "tiny":
        assert {data.kind for data in recipe.data} == {"scenes"}


def test_recipes_refuse_what_they_do_not_know(tmp_path: Path) -> None:
    path = write_recipe(small_recipe(), tmp_path / "recipe.json")
    assert read_recipe(path, {"model.csfa": False, "data.0.views.kbc": False}).data[0].views.kbc is False
    for changes, message in (
        ({"stepz": 3}, "stepz"),
        ({"model.kernel": 4}, "kernel"),
        ({"model.layers": [1, 3, 4]}, "consecutive"),
        ({"data.7.seed": 1}, "data.7.seed"),
        ({"steps": 0}, "steps"),
        ({"model.widths": [8, 12, 16]}, "widths"),
        ({"model.widths": [0, 8, 16]}, "widths"),
        ({"model.blocks": [1, -1, 1]}, "blocks"),
        ({"data.0.views.margin": [2.0, 1.0]}, "margin"),
        ({"data.0.views.margin": [0.0, 1.0]}, "margin"),
        ({"data.0.views.wide_margin": [1.0, float("inf")]}, "wide_margin"),
        ({"data.0.object_fraction": [0.5, 1.5]}, "object_fraction"),
        ({"data.0.heights": []}, "heights"),
        ({"data.0.heights": [16]}, "heights"),
    ):
        with pytest.raises(InputError, match=message):
            read_recipe(path, changes)
    with pytest.raises(InputError, match="kbcnet-tiny"):
        read_recipe("nothing")
    path.write_text("{")
    with pytest.raises(InputError, match="JSON"):
        read_recipe(path)
    with pytest.raises(InputError, match="mix"):
        _ = small_recipe(mix=(1.0, 2.0)).shares


def test_the_digest_holds_what_a_split_holds(tmp_path: Path) -> None:
    split = tmp_path / "split.json"
    photos = {"kind": "photos", "sets": ["a"], "split": str(split)}
    digests = []
    for names in (["1.png", "2.png"], ["1.png", "3.png"]):
        split.write_text(json.dumps({"a": {"train": names, "test": []}}))
        recipe = small_recipe(data=[photos])
        network = empty_network(small_config(backbone="resnet18"))
        digests.append((recipe.digest(), _digest(network, recipe, "")))
    assert digests[0][0] != digests[1][0]
    assert digests[0][1] != digests[1][1]
    assert _digest(network, recipe, "other pictures") != digests[1][1]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_recipe(small_recipe(), tmp_path / "recipe.json")
    parser = argparse.ArgumentParser()
    command.configure(parser)
    arguments = ["kbcnet", "--config", str(path), "--out", str(tmp_path / "run"), "--workers", "0", "--quiet"]
    assert command.run(parser.parse_args([*arguments, "--set", "steps=1", "--set", "model.csfa=false"])) == 0
    written = Path(capsys.readouterr().out.strip())
    assert json.loads(written.with_suffix(".json").read_text())["model"]["csfa"] is False
    assert not any(name.startswith("csfa") for name in load_safetensors(written))
    with pytest.raises(InputError, match="KEY=VALUE"):
        command.run(parser.parse_args([*arguments, "--set", "steps"]))
