"""Training a router: against a hand-written computation, and what it leaves behind."""

import copy
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import reference
from support.routers import Trajectories, checkpoint, diffusers_call
from support.small import generate, labels, noise
from torch import nn

import forecache as fc
from forecache import zoo
from forecache.evaluate import psnr
from forecache.fit import routers
from forecache.fit.router_loss import RouterLoss, frozen
from forecache.models import find
from forecache.sampling.sources import Sampling
from forecache.zoo import load_digits

STEPS = 6
SHORT = {"num_steps": STEPS, "iterations": 3, "batch": 2, "lr": 0.1, "lam": 1e-4}


@pytest.fixture
def source(facebook):
    return Trajectories(facebook)


def logits(sites, seed=3, steps=STEPS):
    return torch.randn(steps // 2, sites, generator=torch.Generator().manual_seed(seed))


def loss_of_a_run(model, values, lam=1e-3, steps=STEPS):
    """The library's loss on one run: (gradient, errors, losses)."""
    parameter = nn.Parameter(values.clone())
    watched = RouterLoss(find.layout(model), parameter, lam, steps)
    with frozen(model), watched.watching():
        generate(model, steps) if hasattr(model, "config") else by_hand_call(model, steps)
    return parameter.grad, torch.stack(watched.errors), torch.stack(watched.losses)


def by_hand_call(model, steps):
    return reference.ddim(lambda x, t, step: model(x, t, labels()), noise(), steps)


def by_hand(forward, model, values, lam=1e-3, steps=STEPS):
    """The published objective written out, with the reference's blocks and sampling loop."""
    values = values.clone().requires_grad_()
    cached, errors, losses = {}, [], []
    kinds = {"attn": 0, "mlp": 1}

    def predict(x, t, step):
        def keep(key, compute):
            cached[key] = compute()
            return cached[key]

        def mix(key, compute):
            p = torch.sigmoid(values[step // 2, 2 * key[0] + kinds[key[1]]])
            return (1 - p) * cached[key] + p * compute()

        if step % 2 == 0:
            return forward(model, x, t, labels(), keep)
        full = forward(model, x, t, labels(), lambda key, compute: compute())
        with torch.enable_grad():
            error = nn.functional.mse_loss(forward(model, x, t, labels(), mix), full)
            loss = error + lam * torch.sigmoid(values[step // 2]).sum()
            loss.backward()
        errors.append(error.detach())
        losses.append(loss.detach())
        return full

    reference.ddim(predict, noise(), steps)
    return values.grad, torch.stack(errors), torch.stack(losses)


# ---- the objective --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 6])
def test_gradient_and_loss_agree_with_the_independent_ones(dit, steps):
    values = logits(6, steps=steps)
    got = loss_of_a_run(dit, values, steps=steps)
    with frozen(dit):
        expected = by_hand(reference.diffusers_dit, dit, values, steps=steps)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-7)
        assert other.abs().max() > 0


def test_module_sites_agree_too(facebook):
    values = logits(6)
    got = loss_of_a_run(facebook, values)
    with frozen(facebook):
        expected = by_hand(reference.facebook_dit, facebook, values)
    for one, other in zip(got, expected, strict=True):
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-7)


def test_the_price_of_a_site_is_what_lam_adds(dit):
    values = logits(6)
    free, error, _ = loss_of_a_run(dit, values, lam=0.0)
    priced, same, loss = loss_of_a_run(dit, values, lam=0.5)
    p = values.sigmoid()
    assert torch.equal(error, same)
    assert torch.allclose(priced - free, 0.5 * p * (1 - p), atol=1e-6)
    assert torch.allclose(loss - error, 0.5 * p.sum(1), rtol=1e-5)


def test_computing_everything_has_no_error_and_reusing_everything_that_of_the_plan(dit):
    """p = 1 gives the full output; p = 0 what a plan gives that skips this call."""
    _, error, _ = loss_of_a_run(dit, torch.full((1, 6), 40.0), steps=2)
    assert error.item() < 1e-12
    _, error, _ = loss_of_a_run(dit, torch.full((1, 6), -40.0), steps=2)
    outputs = {}
    for name, method in (("full", fc.fora(1)), ("skipped", fc.fora(2))):
        with fc.apply(dit, method.plan(fc.grid(dit, 2))):
            seen = dit.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output[0]}))
            generate(dit, 2)
            seen.remove()
    assert error.item() == pytest.approx(nn.functional.mse_loss(outputs["skipped"], outputs["full"]).item(), rel=1e-4)


def test_samples_are_the_models_own_while_it_learns(dit):
    alone = generate(dit, STEPS)
    watched = RouterLoss(find.layout(dit), nn.Parameter(logits(6)), 1e-3, STEPS)
    with frozen(dit), watched.watching():
        assert torch.equal(generate(dit, STEPS), alone)


def test_one_iteration_is_one_step_of_adam_on_the_hand_written_gradient(facebook, source):
    seen = []

    class Recorded(Trajectories):
        def generate(self, *args, **kwargs):
            seen.append((args[0], args[1].seed, kwargs["first_index"]))
            return super().generate(*args, **kwargs)

    router = fc.train_router(Recorded(facebook), **SHORT | {"iterations": 1})
    ((conditions, seed, first),) = seen
    start = torch.full((3, 6), routers.START, requires_grad=True)
    training = RouterLoss(find.layout(facebook), start, 1e-4, STEPS)
    with frozen(facebook), training.watching():
        source.generate(conditions, Sampling(STEPS, 1.5, seed), first)
    expected = routers.START - 0.1 * start.grad / (start.grad.abs() + 1e-8)
    assert torch.allclose(router.logits[1::2], expected, atol=1e-6)
    assert router.skippable == (1, 3, 5)


def test_a_dear_site_is_skipped_and_a_free_one_computed(source):
    dear = fc.train_router(source, **SHORT | {"lam": 10.0, "lr": 3.0})
    assert dear.level() == 0.5
    assert dear.logits[1::2].min() == -5
    free = fc.train_router(source, **SHORT | {"lam": 0.0, "lr": 3.0})
    assert free.level() == 0
    assert free.logits.max() == 5


def test_gradients_reach_the_odd_calls_alone(source):
    """Rows of even calls stay as they were, parameters of the model get nothing."""
    router = fc.train_router(source, **SHORT)
    assert not router.logits[::2].any()
    assert (router.logits[1::2] != routers.START).all()
    assert all(parameter.grad is None for parameter in source.target.parameters())


def test_training_on_diffusers_branches(dit):
    router = fc.train_router(Trajectories(dit, diffusers_call), **SHORT)
    assert router.sites == tuple(site.name for site in fc.grid(dit, STEPS).sites)
    assert fc.l2c(router, 0.9).plan(fc.grid(dit, STEPS))


def test_training_on_named_modules(dit):
    patterns = ["transformer_blocks.*.ff"]
    router = fc.train_router(Trajectories(dit, diffusers_call), sites=patterns, **SHORT)
    assert router.sites == tuple(f"transformer_blocks.{i}.ff" for i in range(3))
    assert fc.l2c(router).plan(fc.grid(dit, STEPS, sites=patterns))


def test_training_on_a_pipeline(pipe):
    router = fc.train_router(pipe, num_steps=2, iterations=1, batch=1)
    assert router.num_steps == 2
    assert router.provenance["model"] == "DiTTransformer2DModel"


def test_provenance_says_how_it_was_made(source):
    router = fc.train_router(source, threshold=0.3, **SHORT)
    assert router.provenance | {"lr": "0.1", "lam": "0.0001", "batch": "2", "iterations": "3"} == router.provenance
    assert float(router.provenance["level"]) == pytest.approx(router.level(0.3), abs=1e-4)
    assert {"seconds", "hardware", "torch", "loss", "error", "seed", "processes"} <= set(router.provenance)


# ---- what it leaves behind ------------------------------------------------------------------------------------------


def state_of(model):
    return (
        {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name: dict(vars(module)) for name, module in model.named_modules()},
    )


def assert_same(before, after):
    assert all(
        torch.equal(value, after[0][name][0]) and pointer == after[0][name][1]
        for name, (value, pointer) in before[0].items()
    )
    assert before[1:] == after[1:]


class Broken(Trajectories):
    """Fails in the third model call of the second run."""

    runs = 0

    def generate(self, *args, **kwargs):
        self.runs += 1
        if self.runs == 2:
            calls = []

            def fail(module, args):
                calls.append(0)
                if len(calls) == 3:
                    raise ZeroDivisionError

            with self.target.register_forward_pre_hook(fail):
                return super().generate(*args, **kwargs)
        return super().generate(*args, **kwargs)


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(facebook, broken):
    facebook.train()
    facebook.blocks[1].attn.eval()
    facebook.blocks[0].mlp.requires_grad_(False)
    before = state_of(facebook)
    if broken:
        with pytest.raises(ZeroDivisionError):
            fc.train_router(Broken(facebook), **SHORT)
    else:
        fc.train_router(Trajectories(facebook), **SHORT)
    after = state_of(facebook)
    for state in (before, after):  # torch leaves an empty dict of hooks behind
        for attributes in state[3].values():
            attributes["_forward_pre_hooks"] = attributes["_forward_pre_hooks_with_kwargs"] = None
    assert_same(before, after)


def test_the_users_random_numbers_go_on_as_if_nothing_happened(source):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    fc.train_router(source, **SHORT)
    assert torch.equal(torch.rand(3), expected)


def test_nothing_of_the_teacher_is_kept(dit):
    """After a pair of calls no feature and no graph is alive."""
    watched = RouterLoss(find.layout(dit), nn.Parameter(logits(6)), 1e-3, STEPS)
    with frozen(dit), watched.watching():
        generate(dit, STEPS)
    assert not watched._cached
    assert not any(value.requires_grad for value in (*watched.errors, *watched.losses))


# ---- seeds, checkpoints, processes ----------------------------------------------------------------------------------


def test_a_seed_reproduces_the_router_exactly(source):
    first, again, other = (fc.train_router(source, seed=seed, **SHORT) for seed in (7, 7, 8))
    assert torch.equal(first.logits, again.logits)
    assert not torch.equal(first.logits, other.logits)


def stopped(source, path, after):
    """A training that is interrupted after so many iterations."""

    def stop(progress):
        if progress.iteration == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fc.train_router(source, checkpoint=path, on_iteration=stop, **SHORT)


def test_a_resumed_training_goes_on_as_if_never_stopped(source, tmp_path, monkeypatch):
    monkeypatch.setattr(routers, "SAVE_SECONDS", 0)
    through = fc.train_router(source, **SHORT)
    for after in (1, 2):
        stopped(source, tmp_path / "state", after)
        seen = []
        resumed = fc.train_router(
            source, checkpoint=tmp_path / "state", on_iteration=lambda p, seen=seen: seen.append(p.iteration), **SHORT
        )
        assert seen == list(range(after + 1, 4))
        assert torch.equal(resumed.logits, through.logits)
        (tmp_path / "state").unlink()
    assert not list(tmp_path.iterdir())


def test_a_finished_training_is_not_repeated_and_can_be_prolonged(source, tmp_path):
    done = fc.train_router(source, checkpoint=tmp_path / "state", **SHORT)
    seen = []
    again = fc.train_router(source, checkpoint=tmp_path / "state", on_iteration=seen.append, **SHORT)
    assert again == done
    assert not seen
    longer = fc.train_router(source, checkpoint=tmp_path / "state", **SHORT | {"iterations": 5})
    assert torch.equal(longer.logits, fc.train_router(source, **SHORT | {"iterations": 5}).logits)
    with pytest.raises(fc.errors.InputError, match="holds 5 iterations, and 3 were asked for"):
        fc.train_router(source, checkpoint=tmp_path / "state", **SHORT)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": 0.2}, r"its lr is 0\.1, and 0\.2 was asked for\. Repeat its settings"),
        ({"lam": 0.5}, r"its lam is 0\.0001, and 0\.5"),
        ({"num_steps": 4}, "its num_steps is 6, and 4"),
        ({"batch": 3}, "its batch is 2"),
        ({"seed": 1}, "its seed is 0"),
        ({"guidance": 1.0}, r"its guidance is 1\.5"),
        ({"sites": ["blocks.*.attn"]}, "its model is 'DiT"),
    ],
)
def test_other_settings_do_not_continue_a_checkpoint(source, tmp_path, changed, words):
    fc.train_router(source, checkpoint=tmp_path / "state", **SHORT)
    before = (tmp_path / "state").read_bytes()
    with pytest.raises(fc.errors.InputError, match=f"state is the checkpoint of another training: {words}"):
        fc.train_router(source, checkpoint=tmp_path / "state", **SHORT | changed)
    assert (tmp_path / "state").read_bytes() == before


def test_a_damaged_checkpoint_is_refused_with_a_sentence(source, tmp_path):
    path = tmp_path / "state"
    fc.train_router(source, checkpoint=path, **SHORT)
    whole = path.read_bytes()
    for content in (b"", whole[:-5], whole[:300], whole.replace(b"exp_avg_sq", b"exp_avg_xx")):
        path.write_bytes(content)
        with pytest.raises(
            fc.errors.RouterFileError, match=r"state is not a readable checkpoint .* Remove it to start again"
        ):
            fc.train_router(source, checkpoint=path, **SHORT)
    fc.Router(torch.zeros(2, 1), ("a",), (1,)).save(path)
    with pytest.raises(fc.errors.RouterFileError, match="state is not a readable checkpoint"):
        fc.train_router(source, checkpoint=path, **SHORT)


RANK = """
import sys
sys.path.insert(0, {tests!r})
import torch, forecache as fc
from forecache import distributed
from support.facebook_dit import DiT
from support.routers import Trajectories
torch.set_num_threads(1)
torch.manual_seed(1)
model = DiT(depth=3, num_classes=10).eval()
with distributed.started() as world:
    router = fc.train_router(Trajectories(model), checkpoint=fc.fit.routers.Path({folder!r} + "/state"), **{settings!r})
router.save({folder!r} + f"/{{world.rank}}.safetensors")
"""


def test_two_processes_average_their_gradients(facebook, source, tmp_path):
    """Two runs an iteration, each with its own noise: the same as their mean gradient in one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = RANK.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), settings=SHORT)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], env=os.environ | place | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (fc.Router.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert torch.equal(first.logits, second.logits)
    assert first.provenance["processes"] == "2"
    values = nn.Parameter(torch.full((3, 6), routers.START))
    optimizer = torch.optim.AdamW([values], lr=0.1, weight_decay=0)
    settings = routers.Settings("", 2, STEPS, 1.5, 2, 0.1, 1e-4, 0)
    for iteration in range(3):
        for rank in range(2):
            with frozen(facebook), RouterLoss(find.layout(facebook), values, 1e-4, STEPS).watching():
                routers._trajectory(source, settings, 2 * iteration + rank, torch.device("cpu"))
        values.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
    assert torch.allclose(first.logits[1::2], values.detach(), atol=1e-5)
    with pytest.raises(fc.errors.InputError, match="its processes is 2, and 1"):
        fc.train_router(source, checkpoint=tmp_path / "state", **SHORT)


def test_trajectories_differ_by_number_and_seed_and_not_by_batch(source):
    drawn = {}

    class Seen(Trajectories):
        def generate(self, labels, how, first_index=0, on_step=None):
            drawn[self.key] = (tuple(labels), how.seed, first_index)

    seen = Seen(source.target)
    settings = routers.Settings("", 1, STEPS, 1.5, 16, 0.1, 1e-4, 0)
    for seed in (0, 1):
        for number in (0, 1):
            seen.key = (seed, number)
            routers._trajectory(seen, replace(settings, seed=seed), number, torch.device("cpu"))
    assert len({draw[0] for draw in drawn.values()}) == 4
    assert drawn[0, 0][1] != drawn[1, 0][1]
    assert {draw[2] for draw in drawn.values()} == {0, 16}
    assert drawn[0, 0][1] != 0, "sampling with the training's seed draws other noise"


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_steps": 1}, "at least 2 steps and a batch of 1; 1 and 2 were asked for"),
        ({"batch": 0}, "a batch of 1; 6 and 0"),
        ({"lr": 0.0}, "lr > 0"),
        ({"lr": float("nan")}, "lr > 0"),
        ({"lam": -1.0}, "lam >= 0"),
        ({"seed": -1}, "seed >= 0"),
        ({"iterations": 0}, "at least one iteration; 0 were asked for"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(source, changed, words):
    with pytest.raises(fc.errors.InputError, match=words):
        fc.train_router(source, **SHORT | changed)


def test_what_cannot_be_sampled_from_is_refused(facebook):
    with pytest.raises(fc.errors.InputError, match=r"how to sample from a DiT: pass a DiTPipeline, .*a bundled model"):
        fc.train_router(facebook, **SHORT)


class Twice(Trajectories):
    """Two model calls a step."""

    def generate(self, labels, how, first_index=0, on_step=None):
        return super().generate(labels, replace(how, num_steps=2 * how.num_steps), first_index)


class Shorter(Trajectories):
    def generate(self, labels, how, first_index=0, on_step=None):
        return super().generate(labels, replace(how, num_steps=how.num_steps - 1), first_index)


@pytest.mark.parametrize(("kind", "calls"), [(Twice, "more than 6"), (Shorter, "5")])
def test_a_run_of_another_length_is_refused(facebook, kind, calls):
    with pytest.raises(fc.errors.StepCountError, match=f"trained for 6 steps, and the run made {calls} model calls"):
        fc.train_router(kind(facebook), **SHORT)


def test_a_model_that_samples_by_a_plan_is_refused(facebook, source):
    with (
        fc.apply(facebook, fc.fora(2).plan(fc.grid(facebook, STEPS))),
        pytest.raises(fc.errors.AlreadyAppliedError, match="leave its"),
    ):
        fc.train_router(source, **SHORT)


def test_inference_mode_is_refused(facebook):
    class Inference(Trajectories):
        @torch.inference_mode()
        def generate(self, *args, **kwargs):
            return super().generate(*args, **kwargs)

    with pytest.raises(fc.errors.RunError, match="inference_mode: sample under torch.no_grad"):
        fc.train_router(Inference(facebook), **SHORT)


def test_a_model_that_gives_no_numbers_is_refused(facebook):
    broken = copy.deepcopy(facebook)
    with torch.no_grad():
        broken.blocks[0].mlp.fc1.weight.fill_(float("nan"))
    with pytest.raises(fc.errors.RunError, match="loss of iteration 1 is nan"):
        fc.train_router(Trajectories(broken), **SHORT)


def test_a_site_that_runs_twice_is_refused(facebook):
    facebook.blocks.append(facebook.blocks[0])
    with pytest.raises(fc.errors.RunError, match=r"blocks\.3\.attn ran twice in one model call"):
        fc.train_router(Trajectories(facebook), **SHORT)


def test_a_feature_that_is_written_into_is_noticed(facebook):
    handle = facebook.blocks[0].mlp.register_forward_hook(lambda module, args, output: output.mul_(1.0))
    with pytest.raises(fc.errors.RunError, match=r"The output of blocks\.0\.mlp was changed in place"):
        fc.train_router(Trajectories(facebook), sites=["blocks.*.mlp"], **SHORT)
    handle.remove()


# ---- the bundled routers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "range_"), [(22, (0.2, 0.24)), (40, (0.38, 0.42))])
def test_the_bundled_routers_fit_digits_and_are_near_their_level(level, range_):
    digits = load_digits()
    path = zoo.record("digits").router_path(level)
    router = fc.Router.load(path)
    assert path.stat().st_size < 8192
    assert range_[0] < router.level() < range_[1]
    assert float(router.provenance["level"]) == pytest.approx(router.level(), abs=1e-4)
    plan = fc.l2c(path).plan(fc.grid(digits.transformer, 20))
    assert 1 - plan.computed_share == pytest.approx(router.level())


def test_the_bundled_router_is_better_than_skipping_whole_calls():
    """22 % by the router, against 20 % in the first, the last or alternate odd calls."""
    source = load_digits()

    def sampled(method):
        with fc.apply(source.target, method.plan(fc.grid(source.target, 20))):
            return source.generate(list(range(8)), Sampling(20, 1.5, 11))

    uncached = sampled(fc.fora(1))
    calls = ([1, 3, 5, 7], [13, 15, 17, 19], [1, 5, 9, 13])
    whole = [psnr(sampled(fc.explicit(skip=skip)), uncached).mean() for skip in calls]
    assert psnr(sampled(fc.l2c(zoo.record("digits").router_path(22))), uncached).mean() > max(whole) + 1


def test_a_level_without_a_bundled_router_is_refused():
    with pytest.raises(fc.errors.InputError, match="routers for 22 and 40 % of the cells; 50 was asked for"):
        zoo.record("digits").router_path(50)


def test_a_checkpoint_says_what_it_belongs_to(source, tmp_path):
    fc.train_router(source, checkpoint=tmp_path / "state", **SHORT)
    assert checkpoint(tmp_path / "state")["settings"]["lr"] == 0.1
    assert checkpoint(tmp_path / "state")["iteration"] == 3


def test_a_model_of_texts_without_any_is_refused(pixart_folder):
    from diffusers import PixArtAlphaPipeline

    with pytest.raises(fc.errors.InputError, match=r"samples of classes.*PixArtAlphaPipeline has neither"):
        fc.train_router(PixArtAlphaPipeline.from_pretrained(pixart_folder), num_steps=4, iterations=1)
