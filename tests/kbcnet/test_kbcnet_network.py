"""The network's parts: what each computes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kbcnet_helpers import shaken, small_config, turnable
from torch.nn import functional

from kbc.errors import InputError
from kbc.kbcnet.backbone import Backbone, align, oriented_edges
from kbc.kbcnet.checkpoint import empty_network
from kbc.kbcnet.csfa import CSFA, _position_code
from kbc.kbcnet.decoder import nearness, pooled, unpooled
from kbc.kbcnet.model import Network, corners, rows_at
from kbc.matchers.resnet import ResNet
from kbc.tensors import Grid


def images(count: int = 2, size: tuple[int, int] = (64, 64), seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize(("stride", "to"), [(4, 8), (16, 8)])
def test_align_keeps_every_cell_at_its_pixel(offset: float, stride: int, to: int) -> None:
    """A map that holds its own pixel coordinates still holds them on the other grid."""
    grids = [Grid(float(s), offset * (s - 1)) for s in (stride, to)]
    size, cells = 64 // stride, 64 // to
    at = grids[0].to_pixels(torch.arange(size).float())
    maps = torch.stack([at.expand(size, size), at[:, None].expand(size, size)])[None]
    found = align(maps, grids[0], grids[1], (cells, cells))
    wanted = grids[1].to_pixels(torch.arange(cells).float()).clamp(at[0], at[-1])  # edges are repeated
    assert torch.allclose(found[0, 0, 0], wanted, atol=1e-4)
    assert torch.allclose(found[0, 1, :, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_align_of_a_half_precision_map_looks_at_the_same_places(dtype: torch.dtype) -> None:
    """As under autocast, at 768 px: 192 and 96 cells. Places in half precision were up to 1.25 cells off."""
    maps = torch.randn(1, 4, 192, 192, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = align(maps, Grid(4.0, 1.5), Grid(8.0, 3.5), (96, 96))
    assert found.dtype == dtype
    exact = functional.avg_pool2d(maps.float(), 2)  # a cell's centre lies between four of the finer ones
    assert torch.allclose(found.float(), exact, atol=1e-2)


def test_autocast_leaves_features_where_they_are() -> None:
    """At 320 px."""
    network = shaken(empty_network(small_config(hypercolumn=(1, 2, 3))))
    image = images(1, (320, 320))
    with torch.no_grad():
        exact = network.describe(image)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network.describe(image)
    for one, other in zip(exact, rounded, strict=True):
        assert float((one * other.float()).sum(1).min()) > 0.995


@pytest.mark.parametrize(
    ("backbone", "size"), [("tiny", (64, 96)), ("tiny", (96, 64)), ("resnet18", (65, 97)), ("resnet18", (97, 81))]
)
def test_turning_the_image_turns_the_maps_and_their_grids(backbone: str, size: tuple[int, int]) -> None:
    """Cell i of the tiny backbone is centred on pixel i·s + (s − 1)/2, of a ResNet on i·s: only so are the cells of an
    image turned by 180° the turned cells, at the turned pixels."""
    config = small_config(backbone=backbone, layers=(1, 2, 3), hypercolumn=(2, 3))
    network = Backbone(config)
    turnable(network)
    image = images(1, size)
    with torch.no_grad():
        upright, turned = network(image), network(image.flip(-1, -2))
    for level, (one, other) in enumerate(zip(upright, turned, strict=True)):
        assert float(one.std()) > 1e-3
        assert torch.allclose(one, other.flip(-1, -2), atol=1e-4 * float(one.abs().max()))
        for pixels, cells in zip(size, one.shape[-2:], strict=True):
            at = network.grid(level).to_pixels(torch.arange(float(cells)))
            assert torch.equal(at + at.flip(0), torch.full_like(at, pixels - 1))


def test_a_blob_lies_in_its_cell() -> None:
    for config in (small_config(), small_config(backbone="resnet18", layers=(1, 2, 3), hypercolumn=(2, 3))):
        backbone = Backbone(config).eval()
        grid = backbone.grid(0)
        image = torch.zeros(1, 3, 64, 64)
        x, y = (int(grid.to_pixels(torch.tensor(float(c)))) for c in (9, 4))
        image[..., y : y + 2, x : x + 2] = 5.0
        change = (backbone(image)[0] - backbone(image * 0)[0]).abs()
        if config.backbone == "tiny":  # the stem sees only its patch; group norm moves the rest evenly
            stem = backbone.network.patches
            change = (stem(image) - stem(image * 0)).abs()  # type: ignore[operator]
        peak = int(change.sum(1).flatten().argmax())
        assert (peak % change.shape[-1], peak // change.shape[-1]) == (9, 4)


def test_layers_beyond_the_deepest_are_left_out_and_change_nothing() -> None:
    """Each layer of the network has a gradient; what is drawn after the backbone is what it was."""
    config = small_config(backbone="resnet18", layers=(1, 2, 3))
    network = empty_network(config)
    assert not any("layer4" in name for name in network.state_dict())
    network(images(), images(seed=1)).refined.sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ResNet("resnet18")
        drawn = CSFA(network.backbone.channels, network.width, config.csfa_dim, config.csfa_heads).state_dict()
    assert network.csfa is not None
    assert all(torch.equal(value, drawn[name]) for name, value in network.csfa.state_dict().items())
    wide = empty_network(small_config(widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1)))
    assert not any("layers.3" in name for name in wide.state_dict())


def test_the_position_code_of_a_pixel_is_the_same_on_every_grid() -> None:
    fine, coarse = Grid(4.0, 0.0), Grid(8.0, 0.0)
    a = _position_code(torch.zeros(1, 16, 8, 8), fine)
    b = _position_code(torch.zeros(1, 16, 4, 4), coarse)
    assert torch.allclose(a[..., ::2, ::2], b, atol=1e-6)
    assert not torch.allclose(a[..., 0, 0], a[..., 0, 1], atol=1e-2)
    assert not torch.allclose(a[..., 0, 0], a[..., 1, 0], atol=1e-2)


# --- CSFA ------------------------------------------------------------------------------------------------------------


def maps_of(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, c, s, s, generator=generator) for c, s in ((4, 16), (8, 8), (12, 4))]


GRIDS = [Grid(4.0, 1.5), Grid(8.0, 3.5), Grid(16.0, 7.5)]


def test_csfa_starts_as_the_identity() -> None:
    features = torch.randn(2, 8, 8, 8)
    assert torch.equal(CSFA((4, 8, 12), 8, 16, 2)(features, maps_of(), GRIDS), features)


@pytest.mark.parametrize("level", [0, 2])
def test_csfa_reads_both_other_scales_from_everywhere(level: int) -> None:
    """A change in one corner of another scale reaches the opposite corner: attention, not alignment alone."""
    csfa = CSFA((4, 8, 12), 8, 16, 2)
    torch.nn.init.normal_(csfa.mix[-1].weight)  # type: ignore[arg-type]
    first, second = maps_of(), maps_of()
    second[level][:, :, 0, 0] += 3.0
    features = torch.zeros(2, 8, 8, 8)
    moved = (csfa(features, first, GRIDS) - csfa(features, second, GRIDS)).abs()
    assert moved[..., 0, 0].max() > 1e-3
    assert moved[..., -1, -1].max() > 1e-6


def test_csfa_is_a_small_part_of_the_network() -> None:
    network = Network(small_config(backbone="resnet18", layers=(2, 3, 4), csfa_dim=64, csfa_heads=4))
    assert network.csfa is not None
    count = sum(p.numel() for p in network.csfa.parameters())
    assert count < 0.03 * sum(p.numel() for p in network.parameters())


# --- correlation and decoder -----------------------------------------------------------------------------------------


def test_an_untrained_decoder_changes_nothing_without_votes() -> None:
    network = empty_network(small_config(votes=()))
    scores = network(images(), images(seed=1))
    assert torch.equal(scores.plain, scores.refined)


def test_an_image_matches_itself(network: Network) -> None:
    plain = network(images(), images()).plain
    diagonal = plain.flatten(1, 2).flatten(2).diagonal(dim1=1, dim2=2)
    assert torch.allclose(diagonal, torch.ones_like(diagonal), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel": 5},
        {"decoder": (4, 4)},
        {"position_sigma": None},
        {"votes": ()},
        {"vote_pool": 3},
        {"decoder": ()},
    ],
)
def test_queried_rows_equal_the_whole_evaluation(changes: dict[str, Any]) -> None:
    network = shaken(empty_network(small_config(**changes)))
    source, target = images(size=(64, 96)), images(size=(48, 80), seed=1)
    cells = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([11.0, 7.0])
    cells[0, 0] = torch.tensor([-0.4, 7.4])  # beyond the outer centres: repeated edge
    with torch.no_grad():
        whole = rows_at(network(source, target).refined, cells)
        asked = network.query(network.describe(source), network.describe(target), cells)
    assert asked.shape == (2, 5, 6, 10)
    assert torch.allclose(whole, asked, atol=2e-6)


def test_corners_interpolate_and_repeat_edges() -> None:
    values = torch.arange(12.0).view(3, 4)
    index, weight = corners(torch.tensor([[1.25, 0.5], [3.6, 2.9], [-1.0, 0.0], [torch.nan, 1.0]]), (3, 4))
    found = (values.flatten()[index] * weight).sum(-1)
    assert torch.allclose(found, torch.tensor([3.25, 11.0, 0.0, 4.0]))


def test_nearness_peaks_at_the_same_place_whatever_the_grids() -> None:
    values = nearness((4, 6), (8, 12), 0.2)
    assert values.shape == (4, 6, 8, 12)
    row = values[1, 2]  # centre at (1.5/4, 2.5/6): between cells 2 and 3, 4 and 5 of the other grid
    assert torch.allclose(row[2:4, 4:6], row[2, 4].expand(2, 2))
    assert row.max() == row[2, 4]


def test_pooling_keeps_the_sum_and_the_place() -> None:
    values = torch.rand(2, 5, 4, 7, 6, generator=torch.Generator().manual_seed(0))
    small = pooled(values, 2)
    assert small.shape == (2, 3, 2, 4, 3)
    assert torch.allclose(small.sum((1, 2, 3, 4)), values.sum((1, 2, 3, 4)))
    assert torch.allclose(small[:, 1, 0, 2, 1], values[:, 2:4, :2, 4:6, 2:4].sum((1, 2, 3, 4)))
    axes = torch.meshgrid(*(torch.arange(float(n)) for n in (6, 4, 8, 6)), indexing="ij")
    place = axes[0] + 2 * axes[1] - axes[2] + 3 * axes[3]  # grows evenly, so between the blocks it comes back
    back = unpooled(pooled(place[None], 2) / 16, 2, (1, 6, 4, 8, 6))[0]
    inner = (slice(1, -1),) * 4
    assert torch.allclose(back[inner], place[inner], atol=1e-5)
    assert unpooled(small, 2, values.shape).shape == values.shape
    assert pooled(values, 1) is values
    assert unpooled(values, 1, values.shape) is values


def test_pooled_votes_are_about_the_votes() -> None:
    network = empty_network(small_config(input_size=128))
    pools = network.eval(), empty_network(small_config(input_size=128, vote_pool=2)).eval()
    with torch.no_grad():
        sides = [images(size=(128, 128)), images(size=(128, 128)).roll(8, -1)]
        found = [net.compare(*(net.describe(side) for side in sides))[1][:, -1] for net in pools]
    assert torch.corrcoef(torch.stack([votes.flatten() for votes in found]))[0, 1] > 0.9  # measured 0.94


def test_source_and_target_may_differ_in_size(network: Network) -> None:
    assert network(images(size=(64, 32)), images(size=(48, 64))).refined.shape == (2, 8, 4, 6, 8)


def test_a_truncated_weight_file_gets_a_learned_layer() -> None:
    config = small_config(backbone="resnet18", layers=(2, 3, 4))
    network = Network(config, learned_coarse=True).eval()
    raw = network.backbone.raw(images())
    assert [m.shape[-1] for m in raw] == [8, 4]
    assert [m.shape[-1] for m in network.backbone(images())] == [8, 4, 2]
    assert network(images(), images()).refined.shape == (2, 4, 4, 4, 4)


def test_batch_norms_keep_their_statistics_in_training() -> None:
    network = Network(small_config(backbone="resnet18", layers=(1, 2, 3)))
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" in k}
    network.train()
    network.backbone(images())
    assert network.training
    assert all(torch.equal(network.state_dict()[k], v) for k, v in before.items())


def test_gradients_reach_every_part(network: Network) -> None:
    scores = network(images(), images(seed=1))
    scores.refined.square().mean().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


# --- environments ----------------------------------------------------------------------------------------------------


def test_autocast_stays_close(network: Network) -> None:
    with torch.no_grad():
        exact = network(images(), images(seed=1)).refined
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(images(), images(seed=1)).refined
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.1
    assert not torch.equal(exact, rough)


def test_compiles_in_one_piece(network: Network) -> None:
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # no graph breaks; code generation is torch's
    source, target = images(), images(seed=1)
    assert torch.allclose(compiled(source, target).refined, network(source, target).refined, atol=1e-5)


def test_wrong_images(network: Network) -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        network(torch.zeros(3, 64, 64), images())
    with pytest.raises(InputError, match="16×16"):
        network(images(size=(8, 64)), images())
    with pytest.raises(InputError, match="device"):
        network(images().to("meta"), images())
    with pytest.raises(InputError, match="device"):
        network.compare(network.describe(images()), [m.to("meta") for m in network.describe(images())])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_gives_the_cpu_result(network: Network) -> None:
    with torch.no_grad():
        here = network(images(), images(seed=1)).refined
        there = network.to("cuda")(images().cuda(), images(seed=1).cuda()).refined.cpu()
    assert torch.allclose(here, there, atol=1e-3)


def test_edges_follow_direction_and_forget_contrast() -> None:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    across, down = ((wave / 3).sin().expand(1, 3, 32, 32) for wave in (x, y))
    found, turned, faint = (oriented_edges(image) for image in (across, down, 0.5 * across))
    assert found.shape == (1, 24, 8, 8)
    middle = (0, slice(0, 8), 4, 4)
    assert int(found[middle].argmax()) == 0  # dx alone: doubled angle 0
    assert int(turned[middle].argmax()) == 4
    assert torch.allclose(found, faint, rtol=0.2, atol=0.05)
    assert oriented_edges(torch.zeros(1, 3, 30, 18)).shape == (1, 24, 8, 5)
