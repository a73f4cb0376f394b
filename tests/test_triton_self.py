"""The self-attention kernels in the forms that GPUs take, interpreted: TMA, warp-specialised; how they are launched."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from attention_cases import INDICES, check, error, self_case, up  # noqa: E402

from fz.kernels import reference, rows, torch_ops, triton_ops, triton_plain, triton_self  # noqa: E402
from fz.kernels.triton_tiles import FAMILIES, FUSED, PLAIN, Tiles, self_tiles  # noqa: E402

pytestmark = pytest.mark.usefixtures("poisoned")

SMALL = Tiles(32, 32, 4, 2, tma=True)
SPECIAL = replace(SMALL, special=True)


@pytest.mark.parametrize("pattern", ("plain", "no mask", "random"))
@pytest.mark.parametrize(("tokens", "d"), [(64, 40), (50, 40), (33, 80), (32, 160), (17, 8)], ids=str)
def test_by_tma(tokens, d, pattern):
    """Whole tiles and tails, heads in one part and in two."""
    check("triton", "self_attention", *self_case(tokens, d, pattern=pattern, dtype=torch.float16), tiles=SMALL)


@pytest.mark.parametrize("index", INDICES)
def test_by_tma_with_a_key_mask(index):
    check("triton", "self_attention", *self_case(40, 40, index, dtype=torch.float16, keep=True), tiles=SMALL)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
@pytest.mark.parametrize("index", INDICES)
def test_a_warp_group_that_loads(monkeypatch, index, dtype):
    """Taken by whole tiles, on slices of one projection; what it is not made for goes the other way, to one result."""
    taken = []
    attend = triton_plain.attend
    monkeypatch.setattr(triton_plain, "attend", lambda *args: taken.append(1) or attend(*args))
    for tokens in (32, 36):
        check("triton", "self_attention", *self_case(tokens, 40, index, "plain", dtype), tiles=SPECIAL)
    assert len(taken) == 1


def test_a_warp_group_that_loads_is_not_for_everything():
    def operands(frames=3, tokens=64, d=40):
        return torch.zeros(2, frames, tokens, 2, d, dtype=torch.float16)

    q = operands()
    assert triton_plain.serves(q, q, q, SPECIAL)
    assert not triton_plain.serves(q, q, q, SMALL)
    assert not triton_plain.serves(operands(2), q, q, SPECIAL)
    # frames of chunks lie apart
    assert not triton_plain.serves(operands(6)[:, ::2], q, q, SPECIAL)
    x = operands(tokens=50)
    assert not triton_plain.serves(x, x, x, SPECIAL)
    # heads of 8 bytes begin where TMA cannot
    x = operands(d=4)
    assert not triton_plain.serves(x, x, x, SPECIAL)


def test_operands_that_tma_cannot_read_come_by_pointers():
    (q, k, v, frames), _ = self_case(48, 40, pattern="plain", dtype=torch.float16)
    odd = torch.zeros(v.numel() + 1, dtype=v.dtype)[1:].view(v.shape).copy_(v)
    exact = reference.self_attention(*map(up, (q, k, v)), frames)
    assert error(triton_ops.self_attention(q, k, odd, frames, tiles=SMALL), exact) < 2e-3


@pytest.mark.parametrize("version", (torch_ops, triton_ops), ids=("torch", "triton"))
def test_key_mask_with_fewer_query_frames(version):
    """Queries of a chunk's frames, keys of all: branch 1 read the mask of other frames (an error of 0.88)."""
    (q, k, v, frames), options = self_case(18, 40, pattern="plain", keep=True)
    exact = reference.self_attention(*map(up, (q, k, v)), frames, **options)
    q, frames = q[:, 1:], frames[1:]
    got = version.self_attention(q, k, v, frames, **options)
    assert error(got, exact[:, 1:]) < 1e-6


def test_two_runs_are_equal_to_the_bit():
    args, options = self_case(50, 40, dtype=torch.float16, keep=True)
    runs = [triton_ops.self_attention(*args, **options, tiles=SMALL) for _ in range(2)]
    assert torch.equal(*runs)


class Launched:
    """In a kernel's place: keeps what it would be launched with."""

    def __getitem__(self, grid):
        self.grid = grid
        return self.launch

    def launch(self, *args, **options):
        self.args, self.options = args, options


@pytest.mark.parametrize("pattern", ("plain", "no mask", "random"))
def test_every_pointer_is_on_the_operands_device(monkeypatch, pattern):
    """The table of frames lies on the CPU: a kernel was given its address."""
    launched = Launched()
    monkeypatch.setattr(triton_self, "self_attention_kernel", launched)
    (q, k, v, frames), options = self_case(18, 40, pattern=pattern, keep=pattern == "random")
    there = {name: x.to("meta") if torch.is_tensor(x) else x for name, x in options.items()}
    triton_self.self_attention(*(x.to("meta") for x in (q, k, v)), frames, **there)
    assert {x.device.type for x in launched.args if torch.is_tensor(x)} == {"meta"}


def test_multiply_adds_are_fused_by_demand(monkeypatch):
    """Triton 3.9 warns of a default that 3.10 changes."""
    launched = Launched()
    monkeypatch.setattr(triton_self, "self_attention_kernel", launched)
    args, options = self_case(18, 40)
    triton_self.self_attention(*args, **options)
    assert launched.options["enable_fp_fusion"] is True and len(launched.grid) == 1


def test_rows_and_tables_are_made_once(monkeypatch):
    made = []
    pack, merge = rows.pack_rows, rows.merge_anchors
    monkeypatch.setattr(rows, "pack_rows", lambda mask: made.append("rows") or pack(mask))
    monkeypatch.setattr(rows, "merge_anchors", lambda frames: made.append("anchors") or merge(frames))
    cpu, mask = torch.device("cpu"), torch.rand(3, 4, 4) > 0.5
    for _ in range(2):
        kept = rows.rows_of(mask.flatten(1), 3, 16, cpu)
        rows.anchors_of(torch.tensor([[0, 7], [1, 7]]), cpu)
    assert made == ["rows", "anchors"]
    # other parts of it, and the same after it was written to, are others
    rows.rows_of(mask[1:].flatten(1), 2, 16, cpu)
    mask.logical_not_()
    again = rows.rows_of(mask.flatten(1), 3, 16, cpu)
    assert made.count("rows") == 3 and torch.equal(again[1], 16 - kept[1])
    kept_now = len(rows._packed)
    del mask
    assert len(rows._packed) < kept_now


@pytest.mark.parametrize("fused", (False, True))
def test_the_table_has_tiles_for_every_gpu(fused):
    for capability in (*FAMILIES, 75, 130):
        for d in (8, 40, 64, 80, 128, 160, 256):
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                tiles = self_tiles(d, dtype, capability, fused)
                assert tiles.tma is False or FAMILIES[capability] >= 90
                assert not (tiles.special and (fused or dtype == torch.float32))
    assert set(PLAIN) <= set(FUSED)
