"""A model's digest: hashed once, and again after whatever may have changed its weights."""

import copy
import gc

import pytest
import torch

from fz.memory import inversions
from fz.memory.inversions import model_digest


@pytest.fixture
def hashed(monkeypatch):
    """Models that were hashed, not remembered."""
    count, digest_of = [], inversions.digest_of
    monkeypatch.setattr(inversions, "digest_of", lambda state: count.append(1) or digest_of(state))
    return count


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))


def optimised(m, **options):
    m(torch.ones(3, 8)).sum().backward()
    m[0].weight.grad.add_(1)
    torch.optim.AdamW([m[0].weight], lr=0.1, **options).step()


def at_the_same_place(m):
    """Rounded, by way of another dtype; the allocator may give the first storage's place again."""
    for _ in range(20):
        m.half().float()


def loaded_in_place(m):
    m.load_state_dict({name: t + 1 for name, t in m.state_dict().items()})


def assigned(m):
    m.load_state_dict({name: t + 1 for name, t in m.state_dict().items()}, assign=True)


def written(m):
    with torch.no_grad():
        m[0].weight[0, 0] += 1


def swapped(m):
    """Two weights of one shape that change places."""
    m[0].weight.data, m[1].running_mean = m[0].weight.data.T, m[1].running_var.clone()


def replaced(m):
    m[0] = torch.nn.Linear(8, 8)


CHANGES = {
    "an optimiser, one by one": lambda m: optimised(m, foreach=False),
    "an optimiser, all at once": lambda m: optimised(m, foreach=True),
    "a fused optimiser": lambda m: optimised(m, fused=True),
    "in place": written,
    "loaded": loaded_in_place,
    "assigned": assigned,
    "another dtype": lambda m: m.to(torch.float64),
    "rounded": at_the_same_place,
    "a buffer": lambda m: m[1].running_mean.add_(1),
    "other views": swapped,
    "a module replaced": replaced,
    "data replaced": lambda m: setattr(m[0].weight, "data", m[0].weight.data + 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change, hashed):
    m = model()
    before = model_digest(m)
    assert model_digest(m) == before and len(hashed) == 1
    CHANGES[change](m)
    after = model_digest(m)
    assert after != before and len(hashed) == 2
    assert model_digest(m) == after == model_digest(copy.deepcopy(m)) and len(hashed) == 3


def test_what_changes_no_weight_changes_no_digest(hashed):
    m = torch.nn.Conv2d(4, 4, 3)
    before = model_digest(m)
    m.eval().requires_grad_(False)
    m(torch.ones(1, 4, 5, 5))
    assert model_digest(m) == before and len(hashed) == 1
    m.to(memory_format=torch.channels_last)
    assert model_digest(m) == before and len(hashed) == 2


def test_weights_that_torch_does_not_watch_are_hashed_each_time(hashed):
    with torch.inference_mode():
        m = model()
        before = model_digest(m)
        m[0].weight.add_(1)
        assert model_digest(m) != before and len(hashed) == 2


def test_no_model_is_kept_alive():
    count = len(inversions.DIGESTS)
    m = model()
    model_digest(m)
    assert len(inversions.DIGESTS) == count + 1
    del m
    gc.collect()
    assert len(inversions.DIGESTS) == count
