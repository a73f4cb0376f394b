"""DDIM: eq. 2 and 3 undo each other, timesteps and alphas are Stable Diffusion v1's."""

import pytest
import torch

from fz.ddim import CLEAN, Schedule, ddim_inverse_step, ddim_step
from fz.errors import FzError

SD1 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}


@pytest.mark.parametrize(
    "steps, first, last", [(50, 981, 1), (10, 901, 1), (6, 831, 1), (1, 1, 1), (30, 958, 1), (1000, 999, 0)]
)
def test_timesteps(steps, first, last):
    schedule = Schedule.from_config(SD1, steps)
    assert (schedule.timesteps[0], schedule.timesteps[-1], len(set(schedule.timesteps))) == (first, last, steps)


def test_alpha_bars_are_the_scaled_linear_products():
    schedule = Schedule.from_config(SD1, 50)
    alpha_bar = 1.0
    for i in range(1000):
        beta = (0.00085**0.5 + i / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
        alpha_bar *= 1 - beta
        if i in (0, 1, 500, 981, 999):
            assert schedule.alpha_bar(i) == pytest.approx(alpha_bar, rel=1e-12)
    assert schedule.alpha_bar(CLEAN) == schedule.alpha_bar(0)
    assert Schedule.from_config({**SD1, "set_alpha_to_one": True}, 50).alpha_bar(CLEAN) == 1


def test_what_a_scheduler_does_not_say_is_stable_diffusions():
    assert Schedule.from_config({}, 50) == Schedule.from_config({**SD1, "set_alpha_to_one": False}, 50)
    for name in SD1:
        left_out = {key: value for key, value in SD1.items() if key != name}
        assert Schedule.from_config(left_out, 50) == Schedule.from_config(SD1, 50), name


def test_alpha_bars_of_a_linear_schedule():
    schedule = Schedule.from_config({**SD1, "beta_schedule": "linear", "beta_end": 0.02}, 50)
    alpha_bar = 1.0
    for i in range(1000):
        alpha_bar *= 1 - (0.00085 + i / 999 * (0.02 - 0.00085))
    assert schedule.alpha_bar(999) == pytest.approx(alpha_bar, rel=1e-12)


def test_inversion_goes_to_each_step_where_denoising_starts():
    schedule = Schedule.from_config(SD1, 7)
    up, down = list(schedule.upward()), list(schedule.downward())
    assert up[0][0] == CLEAN and down[-1][2] == CLEAN
    assert [(t, t_prev) for t_prev, t in reversed(up)] == [(t, t_prev) for _, t, t_prev in down]
    assert [k for k, _, _ in down] == list(range(7))


def test_inverting_then_denoising_with_the_same_noise_returns_the_clip():
    schedule = Schedule.from_config(SD1, 20)
    z0 = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    eps = {t: torch.randn_like(z0) for t in schedule.timesteps}
    z = z0
    for t_prev, t in schedule.upward():
        z = ddim_inverse_step(z, eps[t], schedule.alpha_bar(t_prev), schedule.alpha_bar(t))
    assert (z - z0).abs().max() > 1
    for _, t, t_prev in schedule.downward():
        z = ddim_step(z, eps[t], schedule.alpha_bar(t), schedule.alpha_bar(t_prev))
    assert torch.allclose(z, z0, atol=1e-10)


def test_steps_equal_the_released_code_s(golden):
    from safetensors.torch import load_file

    tensors = load_file(golden / "08_plain.safetensors")
    schedule = Schedule.from_config(SD1, 10)
    assert list(schedule.timesteps) == tensors["timesteps"].tolist()
    t_prev, t = next(iter(schedule.upward()))
    z1 = ddim_inverse_step(
        tensors["inv_latents"][0], tensors["inv_eps_00"], schedule.alpha_bar(t_prev), schedule.alpha_bar(t)
    )
    assert torch.allclose(z1, tensors["inv_latents"][1], atol=1e-5)


@pytest.mark.parametrize(
    "config, steps, message",
    [
        (SD1, 0, "steps: got 0"),
        (SD1, 1001, "steps: got 1001"),
        ({**SD1, "prediction_type": "v_prediction"}, 10, "v_prediction"),
        ({**SD1, "beta_schedule": "squaredcos_cap_v2"}, 10, "squaredcos_cap_v2"),
        ({**SD1, "beta_schedule": "scaled-linear"}, 10, "Did you mean 'scaled_linear'"),
        ({**SD1, "beta_schedule": ["linear"]}, 10, "beta_schedule is"),
        ({**SD1, "steps_offset": -1000}, 10, "steps_offset is -1000"),
        ({**SD1, "steps_offset": 0.5}, 10, "steps_offset is 0.5"),
        ({**SD1, "steps_offset": None}, 10, "steps_offset is None"),
        ({**SD1, "beta_start": 0, "beta_end": 0}, 10, "betas go from 0 to 0"),
        ({**SD1, "beta_start": 0.02, "beta_end": 0.01}, 10, "betas go from 0.02 to 0.01"),
        ({**SD1, "beta_end": 1.0}, 10, "betas go from"),
        ({**SD1, "beta_start": float("nan")}, 10, "betas go from nan"),
        ({**SD1, "beta_start": -0.1}, 10, "betas go from -0.1"),
        ({**SD1, "beta_end": "0.012"}, 10, "betas go from"),
        ({**SD1, "num_train_timesteps": 300_000_000}, 10, "num_train_timesteps is 300000000"),
        ({**SD1, "num_train_timesteps": 0}, 10, "num_train_timesteps is 0"),
        ({**SD1, "num_train_timesteps": True}, 1, "num_train_timesteps is True"),
        ({**SD1, "num_train_timesteps": "1000"}, 10, "num_train_timesteps is '1000'"),
    ],
)
def test_refusals(config, steps, message):
    with pytest.raises(FzError, match=message):
        Schedule.from_config(config, steps)


def test_inversion_refuses_to_remove_noise():
    with pytest.raises(ValueError, match="adds noise"):
        ddim_inverse_step(torch.zeros(1), torch.zeros(1), 0.5, 0.6)
