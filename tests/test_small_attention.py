"""Self-attention of small maps in one call: against the reference that builds maps, in float64; what it takes."""

import pytest
import torch

from fz import kernels
from fz.kernels import reference, small, torch_ops

OWN_AND_MID = [[0, 1], [1, 1], [2, 1]]
TABLES = {"own and mid": OWN_AND_MID, "previous and first": [[0, 0], [0, 0], [1, 0]], "own": [[0], [1], [2]]}


def operands(branches: int, d: int, seed: int = 0, dtype=torch.float64):
    """q, k, v (B, 3, 7, 2, D) and the source's q, k."""
    g = torch.Generator().manual_seed(seed)
    make = lambda *shape: torch.randn(*shape, 3, 7, 2, d, generator=g, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(branches), make(branches), make(branches), make(), make()


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("d", [10, 16, 40])
@pytest.mark.parametrize("how", ["plain", "source", "mask", "nothing masked"])
def test_equals_the_maps(table, d, how):
    q, k, v, q_src, k_src = operands(2, d)
    options = {}
    if how != "plain":
        options = {"q_src": q_src, "k_src": k_src}
    if "mask" in how:
        mask = torch.zeros(3, 7, dtype=torch.bool)
        if how == "mask":
            mask[0, 2:5] = mask[2] = True
        options["mask"] = mask
    if how == "source":
        q, k = q[:1], k[:1]  # the edit's own rows are not needed
    frames = torch.tensor(table)
    wanted = reference.self_attention(q, k, v, frames, **options)
    torch.testing.assert_close(small.self_attention(q, k, v, frames, **options), wanted, rtol=1e-12, atol=1e-12)


def test_strides_and_half_types():
    q, k, v, *_ = operands(1, 10, dtype=torch.bfloat16)
    spread = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    frames = torch.tensor(OWN_AND_MID)
    wanted = reference.self_attention(*(x.double() for x in (q, k, v)), frames)
    out = small.self_attention(*spread, frames)
    assert out.dtype == torch.bfloat16 and out.shape == v.shape
    plain = torch_ops.self_attention(q, k, v, frames)
    assert (out.double() - wanted).abs().max() <= 2 * (plain.double() - wanted).abs().max()


def test_takes_small_maps_of_narrow_heads_with_different_anchors_only(monkeypatch):
    q, k, v, *_ = operands(2, 10)
    frames, same = torch.tensor(OWN_AND_MID), torch.tensor([[1], [1], [1]])
    assert small.serves(v, frames, None)
    assert not small.serves(v, same, None)  # one call without copies as it is
    assert not small.serves(v, frames, torch.ones(2, 3, 7, dtype=torch.bool))
    large = torch.empty(2, 8, 4096, 8, 20, device="meta")
    assert not small.serves(large, torch.tensor([[i, 3] for i in range(8)]), None)
    deepest_of_sd = torch.empty(2, 8, 16, 8, 160, device="meta")
    assert not small.serves(deepest_of_sd, torch.tensor([[i, 3] for i in range(8)]), None)
    assert small.serves(torch.empty(2, 8, 256, 4, 10, device="meta"), torch.tensor([[i, 3] for i in range(8)]), None)

    taken = []
    monkeypatch.setattr(small, "self_attention", lambda *args, **options: taken.append(args) or v)
    monkeypatch.delenv("FZ_KERNELS", raising=False)
    kernels.self_attention(q, k, v, frames)
    kernels.self_attention(q, k, v, same)
    assert len(taken) == 1
    monkeypatch.setenv("FZ_KERNELS", "reference")
    kernels.self_attention(q, k, v, frames)
    assert len(taken) == 1 and kernels.which() == "reference"


def test_gradients_flow():
    q, k, v, *_ = operands(1, 10)
    q.requires_grad_()
    frames = torch.tensor(OWN_AND_MID)
    (mine,) = torch.autograd.grad(small.self_attention(q, k, v, frames).square().sum(), q)
    (wanted,) = torch.autograd.grad(reference.self_attention(q, k, v, frames).square().sum(), q)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
