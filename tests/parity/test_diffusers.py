"""Our samplers beside diffusers' schedulers, on the same noise and the same stand-in network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.functional import schedules
from aigc_jax.functional.diffusion import predict, target
from aigc_jax.samplers import diffusion as samplers

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]  # diffusers' own warnings

SHAPE, STEPS = (4, 6, 6, 3), 20
X = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def network(x, t):
    """A smooth stand-in that any array library evaluates alike; it outputs about unit noise."""
    return 0.8 * x + 0.1 * x * (t / 1000)


def blind(x, t):
    """The same without time, for schedulers whose times lie between ours."""
    return 0.8 * x


def ours(sample, kind, schedule, times, x=X, network=network, **options):
    def predictor(xt, t):
        output = network(xt, t[:, None, None, None])
        return predict(kind, output, xt, schedule.alpha(t), schedule.sigma(t))

    keys = jax.random.split(jax.random.key(0), len(x))
    run = jax.jit(lambda x: sample(predictor, schedule, times, x, keys, **options))
    return np.asarray(run(jnp.asarray(x)))


def theirs(scheduler, x=X, network=network):
    import torch

    x = torch.from_numpy(x)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x).prev_sample
    return x.numpy()


@pytest.mark.parametrize("kind", ["eps", "x0", "v"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim(kind, clip):
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        clip_sample=clip is not None,
        prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[kind],
        set_alpha_to_one=True,
    )
    scheduler.set_timesteps(STEPS)
    schedule = schedules.linear()
    times = schedules.uniform_times(schedule, STEPS)
    expected = theirs(scheduler)
    actual = ours(samplers.sample_ddim, kind, schedule, times, clip=clip)
    np.testing.assert_allclose(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_spacing(spacing):
    import diffusers

    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(STEPS)
    make = {"leading": schedules.uniform_times, "trailing": schedules.trailing_times}[spacing]
    times = make(schedules.linear(), STEPS)
    np.testing.assert_array_equal(times[:-1], scheduler.timesteps.numpy())


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_alphas(name):
    import diffusers

    known = {
        "linear": {},
        "scaled_linear": {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
        },
        "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    }
    scheduler = diffusers.DDPMScheduler(**known[name])
    schedule = getattr(schedules, name)()
    actual = schedule.alpha(np.arange(1000)) ** 2
    np.testing.assert_allclose(actual, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_variances(variance):
    """Its last steps are deterministic in the mean: compare variances at every step."""
    import diffusers

    from aigc_jax.functional.diffusion import transition

    scheduler = diffusers.DDPMScheduler(variance_type=variance)
    t = np.arange(1, 1000)
    back = transition(schedules.linear(), t, t - 1)
    actual = back.posterior_variance if variance == "fixed_small" else back.variance
    expected = [float(scheduler._get_variance(int(i))) for i in t]
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_karras_sampling(name):
    """Theirs integrates x = x0 + r·ε from r·noise; ours the same ODE, variance preserving."""
    import diffusers

    kinds = {"euler": diffusers.EulerDiscreteScheduler, "heun": diffusers.HeunDiscreteScheduler}
    scheduler = kinds[name](use_karras_sigmas=True)
    scheduler.set_timesteps(STEPS)
    sigmas = np.unique(scheduler.sigmas.numpy())[::-1]
    schedule = schedules.linear(low=1e-4, high=0.02)
    times = np.array(schedule.time_of_ratio(sigmas.copy()))
    times[-1] = -1.0

    # Their times are linear in log r between the integers, ours in r.
    expected = theirs(scheduler, X * sigmas[0], blind)
    start = X * sigmas[0] * float(schedule.alpha(times[0]))
    sample = getattr(samplers, f"sample_{name}")
    actual = ours(sample, "eps", schedule, times, start, blind, clip=None)
    np.testing.assert_allclose(actual, expected, atol=1e-3, rtol=1e-3)


def test_dpmpp_2m():
    import diffusers

    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(STEPS)
    schedule = schedules.linear()
    times = np.append(scheduler.timesteps.numpy(), -1).astype(np.float32)
    actual = ours(samplers.sample_dpmpp_2m, "eps", schedule, times, clip=None)
    np.testing.assert_allclose(actual, theirs(scheduler), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_targets(kind):
    import diffusers
    import torch

    rng = np.random.default_rng(1)
    x0, eps = rng.normal(size=(2, *SHAPE)).astype(np.float32)
    t = np.array([0, 10, 500, 999])
    scheduler, schedule = diffusers.DDPMScheduler(), schedules.linear()
    expected = eps
    if kind == "v":
        args = (torch.from_numpy(x0), torch.from_numpy(eps), torch.from_numpy(t))
        expected = scheduler.get_velocity(*args).numpy()
    actual = target(kind, x0, eps, schedule.alpha(t), schedule.sigma(t))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
