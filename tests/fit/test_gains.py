"""Gains: the response of samplers, finite differences in double precision, models where the prediction is exact."""

import itertools
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from support.small import small_dit
from torch import nn

import forecache as fc
from forecache.fit.gains import Gains, gains_bytes, measure_gains
from forecache.fit.gains.gains import Origin, estimates_of
from forecache.fit.gains.sampler import response
from forecache.fit.gains.solve import Moved, best_schedule, solve
from forecache.parts.forecasts import Reuse, Taylor
from forecache.sampling.loop import generators
from forecache.sampling.sources import Sampling
from forecache.zoo.digits import Digits

STEPS = 5
LABELS = [1, 4]


def source(scheduler=None, model=None):
    model = (model or small_dit(num_layers=2)).double()
    return Digits(model, scheduler or diffusers.DDIMScheduler(clip_sample=False))


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


class Straight(nn.Linear):
    """A linear layer in place of an attention."""

    def forward(self, x, **_):
        return super().forward(x)


def straight_dit(norm):
    """A small DiT that is affine in its input: `norm` in place of every block's norms, linear attentions and MLPs."""
    model = small_dit(num_layers=2)
    width = model.transformer_blocks[0].norm3.normalized_shape[0]
    model.norm_out = nn.Identity()
    for block in model.transformer_blocks:
        block.norm1.norm, block.norm3 = norm(), norm()
        block.attn1, block.ff = Straight(width, width), Straight(width, width)
    return model


def directions(own, gains, shape):
    """The random directions (D, B, ...), as they are documented: standard normal, by sample."""
    seeds = generators(gains.origin.seed + 0x9E37, range(len(LABELS)))
    return torch.stack([torch.randn((own, *shape), generator=one) for one in seeds], 1).double()


def last_sample(own, labels, guidance, num_steps=STEPS):
    """The last sample before it becomes an image."""
    return fc.sampling.loop.sample(
        own.transformer, own.scheduler, labels, num_steps=num_steps, guidance=guidance, seed=0
    )


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        diffusers.DPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
)
def test_a_samplers_response_is_what_its_steps_add_up_to(scheduler):
    scheduler.set_timesteps(7)
    times, generator = scheduler.timesteps.clone(), torch.Generator().manual_seed(0)
    table = response(scheduler, times, lambda one: one.set_timesteps(7))
    x = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    predictions, samples = torch.randn(7, 2, 3, generator=generator, dtype=torch.float64), [x]
    scheduler.set_timesteps(7)
    for t, prediction in zip(times, predictions, strict=True):
        samples.append(scheduler.step(prediction, t, samples[-1], return_dict=False)[0])
    for step, sample in enumerate(samples):
        said = table.of_noise[step] * x + torch.tensordot(table.of_predictions[step], predictions, 1)
        torch.testing.assert_close(said, sample, rtol=1e-5, atol=1e-6)


def adding(added, at):
    """A hook that adds to the output of one call."""
    numbers = itertools.count()
    return lambda _, __, output: output + added if next(numbers) == at else output


@pytest.mark.parametrize(
    ("scheduler", "guidance", "by", "tolerance"),
    [
        (diffusers.DDIMScheduler(clip_sample=False), 1.5, 1e-4, 2e-4),
        (diffusers.DPMSolverMultistepScheduler(), 1.0, 0.03, 0.02),
        (diffusers.UniPCMultistepScheduler(), 1.5, 0.03, 0.02),
    ],
)
def test_the_products_are_finite_differences(scheduler, guidance, by, tolerance):
    """The contribution of a site, added to the stream before the last layer at a step, moves the sample that much.

    diffusers' DPM-Solver++ and UniPC hold the sample in single precision, which wants larger differences.
    """
    own = source(scheduler)
    gains = measure_gains(own, LABELS, num_steps=STEPS, guidance=guidance, directions=2, reach=2)
    model, features, gates = own.transformer, {}, {}
    whole = fc.grid(own, STEPS)
    plan = fc.explicit(compute=range(STEPS)).plan(whole)
    layout = fc.models.find.layout_for(model, whole)
    watch = lambda step, site, feature: features.__setitem__((step, site), feature.clone())  # noqa: E731
    calls, block = [], model.transformer_blocks[1]

    def note(module, args, kwargs):
        embedding = module.norm1.emb(kwargs["timestep"], kwargs["class_labels"], hidden_dtype=torch.float64)
        rows = module.norm1.linear(module.norm1.silu(embedding)).chunk(6, dim=1)
        gates[len(calls)] = {2: rows[2][:, None], 3: rows[5][:, None]}
        calls.append(1)

    hook = block.register_forward_pre_hook(note, with_kwargs=True)
    x_BCHW = last_sample(own, LABELS, guidance)
    hook.remove()
    with fc.runtime.session.Session(fc.runtime.plan_source.Fixed(plan), [layout], watch=watch) as session:
        session.new_run()
        last_sample(own, LABELS, guidance)
    v_DBX = directions(2, gains, x_BCHW.shape[1:])
    for step, site, back in [(4, 2, 0), (4, 3, 1), (2, 2, 0), (2, 3, 2), (1, 3, 1)]:
        added = gates[step][site] * features[step - back, site]
        moved = []
        for sign in (1, -1):
            hook = block.register_forward_hook(adding(sign * by * added, at=step))
            moved.append(last_sample(own, LABELS, guidance))
            hook.remove()
        slope = (v_DBX * (moved[0] - moved[1]) / (2 * by)).flatten(2).sum(2) / x_BCHW[0].numel() ** 0.5
        torch.testing.assert_close(gains.products[:, :, step, site, back], slope.T, rtol=tolerance, atol=tolerance * by)


def errors_by_hand(own, gains, plan):
    """The projections (B * D,) of what a plan changes in the last samples."""
    bare = last_sample(own, LABELS, 1.5)
    with fc.apply(own, plan):
        cached = last_sample(own, LABELS, 1.5)
    v_DBX = directions(gains.origin.directions, gains, bare.shape[1:])
    return ((v_DBX * (cached - bare)).flatten(2).sum(2).T / bare[0].numel() ** 0.5).flatten().numpy()


@pytest.mark.parametrize(
    "method", [fc.fora(3), fc.taylorseer(fc.fora(3), 1), fc.goc(fc.fora(2), 0.8), fc.explicit(skip=[3, 4])]
)
def test_the_prediction_is_exact_where_features_do_not_depend_on_the_sample(method):
    """Then nothing responds to an earlier error but the last layer, which is linear: any plan, before it is sampled."""
    own = source(model=straight_dit(Zero))
    gains = measure_gains(own, LABELS, num_steps=STEPS, directions=2, batch=1)
    plan = method.plan(fc.grid(own, STEPS))
    by_hand = errors_by_hand(own, gains, plan)
    assert np.abs(by_hand).max() > 1e-6
    assert gains.projections(plan) == pytest.approx(by_hand, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("level", ["branches", "blocks", "stack"])
def test_the_prediction_of_one_skipped_step_is_exact_on_an_affine_model(step, level):
    """At every level; on DPM-Solver++, whose history carries the error on."""
    own = source(diffusers.DPMSolverMultistepScheduler(), straight_dit(nn.Identity))
    sites = fc.grid(own, STEPS, level=level)
    gains = measure_gains(own, LABELS, num_steps=STEPS, directions=2, sites=sites)
    plan = fc.explicit(skip=[step]).plan(sites)
    assert gains.projections(plan) == pytest.approx(errors_by_hand(own, gains, plan), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(
    ("around", "other"),
    [
        ("#.#.#", "#.###"),
        ("##.#.", "##..."),
        ("#..#.", "##.#."),
        ("##...", "##..#"),
    ],
)
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler(clip_sample=False), diffusers.UniPCMultistepScheduler()])
def test_around_a_plan_the_prediction_is_exact_where_one_step_changes_on_an_affine_model(around, other, scheduler):
    """Later estimates answer to the features that they read, and not to the sample of their step: that is linear."""
    own = source(scheduler, straight_dit(nn.Identity))
    whole = fc.grid(own, STEPS)
    plans = [fc.explicit(pattern=pattern).plan(whole) for pattern in (around, other)]
    changed = next(step for step in range(STEPS) if around[step] != other[step])
    cells = [row[changed] for row in plans[1].rows]
    rows = tuple(
        tuple(cell if step == changed else cell_of for step, cell_of in enumerate(row))
        for row, cell in zip(plans[0].rows, cells, strict=True)
    )
    mixed = replace(plans[0], rows=rows)
    gains = measure_gains(own, LABELS, num_steps=STEPS, directions=2, batch=1, around=plans[0])
    images = [own.generate(LABELS, Sampling(STEPS, 1.5, 0))]
    with fc.apply(own, plans[0]):
        images.append(own.generate(LABELS, Sampling(STEPS, 1.5, 0)))
    measured = -10 * np.log10((images[0] - images[1]).double().square().mean().item())
    assert gains.predict(plans[0]) == pytest.approx(measured, abs=1e-3)
    by_hand = errors_by_hand(own, gains, plans[0])
    assert np.abs(by_hand).max() > 1e-6
    assert gains.projections(plans[0]) == pytest.approx(by_hand, rel=1e-5, abs=1e-9)
    assert gains.projections(mixed) == pytest.approx(errors_by_hand(own, gains, mixed), rel=1e-4, abs=1e-9)


def random_gains(steps=7, samples=8, sites=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    places = tuple(fc.parts.Site(f"blocks.{depth}.block", depth, "block") for depth in range(sites))
    about = Origin("M", "", "", 1.5, 0, 2, steps - 1, tuple(range(samples)))
    products = torch.randn(samples, 2, steps, sites, steps, generator=generator, dtype=torch.float64)
    base = torch.zeros(steps, sites, steps, dtype=torch.float64)
    base[..., 0] = 1.0
    return Gains(places, steps, about, products, 0.5, base, torch.zeros(samples, 2, dtype=torch.float64))


def test_a_predictions_error_is_that_of_the_sums_written_out():
    gains, plan_rows = random_gains(), [(3, {2: 1.0}), (4, {2: 2.0, 0: -1.0}), (6, {5: 1.0})]
    error = torch.zeros(8, 2, dtype=torch.float64)
    for step, weights in plan_rows:
        for site in range(2):
            error -= gains.products[:, :, step, site, 0]
            for source_step, weight in weights.items():
                error += weight * gains.products[:, :, step, site, step - source_step]

    class Written:
        def reads(self, step, computed, site=None):
            return dict(plan_rows)[step]

    projections = gains.projections_of("###..#.", Written())
    assert projections == pytest.approx(error.flatten().numpy())
    assert gains.decibels(projections) == pytest.approx(-10 * np.log10((error**2).mean().item() / 4))


def test_averaged_gains_predict_the_mean_of_the_projected_errors():
    one, other = random_gains(), random_gains(seed=1)
    offset = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    base = torch.zeros_like(other.base)
    base[:5, :, 0], base[5:, :, 2] = 1.0, 1.0
    other = replace(other, offset=offset, base=base, scale=0.7)
    both, pattern = one.averaged(other), "##.#..."
    mean = sum(gains.scale * gains.projections_of(pattern, Taylor(1)) for gains in (one, other)) / 2
    assert both.scale * both.projections_of(pattern, Taylor(1)) == pytest.approx(mean)
    assert both.decibels(both.projections_of(pattern, Taylor(1))) == pytest.approx(-10 * np.log10((mean**2).mean()))
    with pytest.raises(fc.errors.StatisticsError, match="average those of the same samples"):
        one.averaged(one.part(slice(3)))


def test_the_best_schedule_is_that_of_all_schedules():
    gains = random_gains()
    scores = {}
    for others in itertools.combinations(range(1, 7), 3):
        pattern = "".join("#" if step in (0, *others) else "." for step in range(7))
        scores[pattern] = np.square(gains.projections_of(pattern, Taylor(1))).mean()
    assert best_schedule(gains, 4, Taylor(1), longest=7) == min(scores, key=scores.__getitem__)
    with pytest.raises(fc.errors.InputError, match="1 to 7"):
        best_schedule(gains, 8, Reuse())
    with pytest.raises(fc.errors.InputError, match="reach back"):
        best_schedule(
            replace(gains, origin=replace(gains.origin, reach=2), products=gains.products[..., :3]), 2, Reuse()
        )


def test_solved_weights_find_the_moves_that_cancel_the_error_and_keep_their_sum():
    """Features whose error under reuse is 0.3 moves of weight at one step, for every sample alike."""
    gains = random_gains(samples=40)
    products = gains.products.clone()
    products[:, :, 3, :, 0] = 0.7 * products[:, :, 3, :, 1] + 0.3 * products[:, :, 3, :, 2]
    pattern, exact = "###.###", replace(gains, products=products)
    solved = solve(exact, pattern, Reuse())
    [(_, reads)] = estimates_of(pattern, solved, exact.sites[0])
    assert reads == pytest.approx({2: 0.7, 1: 0.3, 0: 0.0}, abs=0.02)
    assert sum(reads.values()) == pytest.approx(1)
    before, after = (np.square(exact.projections_of(pattern, one)).mean() for one in (Reuse(), solved))
    assert after < before / 50


def test_weights_are_left_alone_where_moves_do_not_help_left_out_samples():
    gains = random_gains(samples=4, seed=3)
    pattern = "##......"[:7]
    solved = solve(gains, pattern, Reuse())
    assert isinstance(solved, Moved)
    with pytest.raises(fc.errors.InputError, match="at least 4 samples"):
        solve(gains.part(slice(3)), pattern, Reuse())


def test_gains_are_kept_continued_and_merged(tmp_path):
    own, path = source(), tmp_path / "gains.safetensors"
    how = {"num_steps": 3, "directions": 2, "batch": 1}
    whole = measure_gains(own, [1, 4, 2], **how)

    class EnoughError(Exception):
        pass

    steps = []

    def stop(step):
        steps.append(step)
        if len(steps) == 5:
            raise EnoughError

    with pytest.raises(EnoughError):
        measure_gains(own, [1, 4, 2], **how, path=path, on_step=stop)
    assert Gains.load(path).count == 1
    announced = []
    again = measure_gains(own, [1, 4, 2], **how, path=path, on_start=announced.append)
    assert announced == [6]
    torch.testing.assert_close(again.products, whole.products, rtol=1e-6, atol=1e-9)
    assert torch.equal(Gains.load(path).products, again.products)
    with pytest.raises(fc.errors.StatisticsError, match=r"another measurement \(seed differ\)"):
        measure_gains(own, [1, 4, 2], **how, path=path, seed=9)
    other = measure_gains(own, [3], **how, seed=7)
    both = whole.merged(other)
    assert both.count == 4
    assert both.origin.conditions == (1, 4, 2, 3)
    assert torch.equal(both.part(slice(3, 4)).products, other.products)
    with pytest.raises(fc.errors.StatisticsError, match="guidance differ"):
        whole.merged(replace(other, origin=replace(other.origin, guidance=3.0)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(fc.errors.StatisticsFileError, match="file of gains"):
        Gains.load(path)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (diffusers.DDPMScheduler(), "no linear function of the model's predictions"),
        (diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=0.1), "no linear function"),
        (diffusers.HeunDiscreteScheduler(), "steps in a run of 3"),
    ],
)
def test_samplers_that_are_not_linear_are_refused(scheduler, message):
    with pytest.raises(fc.errors.InputError, match=message):
        measure_gains(source(scheduler), LABELS, num_steps=3, directions=1)


def test_what_gains_cannot_predict_is_refused():
    own = source()
    gains = measure_gains(own, LABELS[:1], num_steps=4, directions=1, reach=1)
    grid = fc.grid(own, 4)
    with pytest.raises(fc.errors.PlanMismatchError, match="larger reach"):
        gains.predict(fc.explicit(compute=[0]).plan(grid))
    with pytest.raises(fc.errors.StatisticsError, match="4 steps and"):
        gains.predict(fc.fora(2).plan(fc.grid(own, 5)))
    with pytest.raises(fc.errors.InputError, match="directions=0"):
        measure_gains(own, LABELS, num_steps=4, directions=0)
    with pytest.raises(fc.errors.InputError, match="without of='output'"):
        measure_gains(own, LABELS, num_steps=4, sites=fc.grid(own, 4, level="stack", of="output"))


def test_memory_is_known_from_shapes():
    own = source()
    sites = fc.grid(own, 4, level="stack")
    told = gains_bytes(own, 4, batch=2, directions=3, paired=True, whole=sites)
    gains = measure_gains(own, LABELS, num_steps=4, directions=3, sites=sites)
    assert told.kept == gains.products.numel() * 8
    config = own.transformer.config
    tokens, width = (
        (config.sample_size // config.patch_size) ** 2,
        config.num_attention_heads * config.attention_head_dim,
    )
    assert told.features == 4 * 4 * tokens * width * 8
    assert told.products == 4 * 3 * tokens * width * 8


def test_the_predicted_psnr_is_that_of_the_images():
    """Digits' images are the samples over two, moved; the predicted PSNR is that of the images."""
    own = source(model=straight_dit(Zero))
    gains = measure_gains(own, LABELS, num_steps=STEPS, directions=64)
    assert gains.scale == pytest.approx(0.5, rel=1e-4)
    plan = fc.fora(3).plan(fc.grid(own, STEPS))
    bare = last_sample(own, LABELS, 1.5)
    with fc.apply(own, plan):
        cached = last_sample(own, LABELS, 1.5)
    measured = -10 * np.log10(((cached - bare) / 2).square().mean().item())
    assert gains.predict(plan) == pytest.approx(measured, abs=1.0)
