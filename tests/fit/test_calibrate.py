"""Calibration: the streaming averages are those of a plain loop that keeps everything, interrupted or not, in one
process or two.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from support import reference
from support.small import CLASSES, small_dit
from support.sources import Mine
from support.statistics import same
from support.traces import everything

import forecache as fc
from forecache import distributed
from forecache.fit import accumulators
from forecache.parts.statistics import Statistics, inverse_table
from forecache.sampling.loop import noise, sample
from forecache.zoo import Digits

T, GAPS = 4, 3
LABELS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
SITES, N, D = 6, 16, 16
V_PREDICTION = {"prediction_type": "v_prediction", "clip_sample": False, "steps_offset": 1}
CALIBRATE = sys.modules["forecache.fit.calibrate"]


@pytest.fixture
def digits(dit):
    """A small random DiT in double precision, so that batches of another size differ by nothing that could be seen."""
    return Digits(dit.double(), DDIMScheduler(**V_PREDICTION))


def calibrate(target, labels=LABELS, **options):
    return fc.calibrate(target, labels, **({"num_steps": T, "batch": 4, "gaps": GAPS, "seed": 7} | options))


# ---- a plain loop that keeps everything -----------------------------------------------------------------------------


def recorded(modules, run):
    """What these modules give out while ``run()`` samples from the bare model: (T, S) lists of (rows, N, D)."""
    seen = []
    hooks = [module.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone())) for module in modules]
    run()
    for hook in hooks:
        hook.remove()
    return [seen[first : first + len(modules)] for first in range(0, len(seen), len(modules))]


def branches(dit):
    return [module for block in dit.transformer_blocks for module in (block.attn1, block.ff)]


def all_features(digits, half, batch=1, guidance=1.5, shared_noise=False):
    """All features of all samples, (K, T, S, N, D) in double: ``half`` picks the rows of a batch that count."""
    samples = []
    for first in range(0, len(LABELS), batch):
        batch_labels = LABELS[first : first + batch]
        indices = [0] * len(batch_labels) if shared_noise else range(first, first + len(batch_labels))
        options = {"num_steps": T, "guidance": guidance, "seed": 7, "indices": indices}
        table = recorded(
            branches(digits.transformer),
            lambda batch_labels=batch_labels, options=options: sample(
                digits.transformer, digits.scheduler, batch_labels, **options
            ),
        )
        whole = torch.stack([torch.stack(row) for row in table]).double()  # (T, S, rows, N, D)
        samples.append(whole.movedim(2, 0)[half(len(batch_labels))])
    return torch.cat(samples)


HALVES = {
    "first": lambda count: slice(count),  # noqa: PLW0108 - a row like the others
    "second": lambda count: slice(count, None),
    "all": lambda count: slice(None),
}
"""The rows of a guidance batch [conditional; unconditional] that count."""


def changes_by_hand(features):
    """Mean over samples of |g(c) - g(c-k)|_1 / |g(c)|_1, one number at a time."""
    table = torch.zeros(T, SITES, GAPS)
    for c in range(T):
        for site in range(SITES):
            for k in range(1, min(c, GAPS) + 1):
                ratios = [
                    (sample[c, site] - sample[c - k, site]).abs().sum() / sample[c, site].abs().sum()
                    for sample in features
                ]
                table[c, site, k - 1] = sum(ratios) / len(ratios)
    return table


def assert_measured(stats, features, rtol=1e-6):
    for site, mean in enumerate(stats.means):
        expected = features[:, :, site].mean(0)
        assert mean.dtype == torch.float32
        torch.testing.assert_close(mean.double(), expected, rtol=0, atol=rtol * expected.abs().max().item())
    torch.testing.assert_close(stats.changes, changes_by_hand(features), rtol=rtol, atol=0)


# ---- what is measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 10, 32])
def test_means_and_changes_are_those_of_all_features_kept(digits, batch):
    """Against samples made one by one: neither the batch nor the last, smaller one changes noise or weight."""
    stats = calibrate(digits, batch=batch)
    assert_measured(stats, all_features(digits, HALVES["first"]))
    assert torch.equal(stats.inverse, inverse_table(stats.means))
    assert (stats.count, stats.is_partial) == (10, False)
    assert torch.equal(stats.counts, torch.full((T, SITES), 10))


ROWS = {
    "the unconditional half": ("second", 1.5, HALVES["second"]),
    "both halves": ("all", 1.5, HALVES["all"]),
    "no guidance": ("first", 1.0, HALVES["first"]),
    "no guidance, all rows": ("all", 1.0, HALVES["first"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_rows_that_were_asked_for_are_measured(digits, name):
    rows, guidance, half = ROWS[name]
    stats = calibrate(digits, rows=rows, guidance=guidance)
    assert_measured(stats, all_features(digits, half, guidance=guidance))
    assert stats.count == 10, "samples are counted, not rows"


def test_the_halves_can_be_told_apart(digits):
    first, second, both = (calibrate(digits, rows=rows) for rows in ("first", "second", "all"))
    pairs = list(zip(first.means, second.means, both.means, strict=True))
    assert min((a - b).abs().max() for a, b, _ in pairs) > 1e-3
    for a, b, mean in pairs:
        torch.testing.assert_close((a + b) / 2, mean, rtol=0, atol=1e-6)


def test_rows_of_a_pair_that_is_not_there_are_refused(digits):
    with pytest.raises(fc.errors.InputError, match=r"rows='second'.*guidance"):
        calibrate(digits, rows="second", guidance=1.0)


def test_all_samples_can_start_from_one_noise(digits):
    shared = calibrate(digits, shared_noise=True)
    assert_measured(shared, all_features(digits, HALVES["first"], shared_noise=True))
    assert (shared.means[0] - calibrate(digits).means[0]).abs().max() > 1e-3


def test_they_are_the_averages_of_the_model_written_out_by_hand(dit):
    """In single precision, with DDIM and the blocks of tests/support/reference.py."""
    seen = {}

    def record(memory, step, compute):
        feature = compute()
        memory.setdefault("steps", []).append(feature[: len(LABELS)])  # the conditional half
        seen[id(memory)] = memory
        return feature

    y = torch.tensor(LABELS + [CLASSES] * len(LABELS))
    start = noise((4, 8, 8), 7, range(len(LABELS)))
    reference.ddim(reference.cached(reference.diffusers_dit, dit, y, record), start, T)
    stats = calibrate(Digits(dit, DDIMScheduler(**V_PREDICTION)))
    expected = [torch.stack(memory["steps"]).double().mean(1) for memory in seen.values()]  # sites in order
    for mean, hand in zip(stats.means, expected, strict=True):
        torch.testing.assert_close(mean.double(), hand, rtol=0, atol=1e-5)


def test_features_in_bfloat16_are_averaged_in_single_precision(digits):
    """Against the same batches; the sums of rounded features, and the differences of close ones, are not rounded."""
    digits.transformer.to(torch.bfloat16)
    stats = calibrate(digits)
    assert_measured(stats, all_features(digits, HALVES["first"], batch=4), rtol=2e-6)


def test_where_the_accumulators_are_kept_changes_no_bit(digits):
    assert same(calibrate(digits, keep_on="cpu"), calibrate(digits))


def test_gaps_longer_than_the_run_have_no_change(digits):
    stats = calibrate(digits, gaps=6)
    assert stats.changes.shape == (T, SITES, 6)
    assert torch.equal(stats.changes[..., :GAPS], calibrate(digits).changes)
    assert not stats.changes[..., T - 1 :].any()


def test_a_pipeline_is_measured_while_it_makes_its_images(pipe):
    stats = calibrate(pipe, LABELS[:4])
    generators = [fc.sampling.loop.generators(7, [index])[0] for index in range(4)]
    run = lambda: pipe(LABELS[:4], guidance_scale=1.5, num_inference_steps=T, generator=generators)  # noqa: E731
    table = recorded(branches(pipe.transformer), run)
    features = torch.stack([torch.stack(row) for row in table]).double().movedim(2, 0)[:4]
    assert_measured(stats, features)


def test_their_origin_says_what_was_run(pipe):
    stats = calibrate(pipe, [1, 2], guidance=4, shared_noise=True)
    grid, origin = fc.grid(pipe, T), stats.origin
    assert (stats.sites, stats.num_steps, stats.resolution) == (grid.sites, T, "token")
    assert (origin.model, origin.fingerprint, origin.scheduler) == (grid.model, grid.fingerprint, grid.scheduler)
    assert (origin.guidance, origin.seed, origin.shared_noise) == (4.0, 7, True)
    assert (origin.rows, origin.batch, origin.conditions) == ("first", 4, (1, 2))
    assert origin.forecache == fc.__version__
    stats.check(grid)


@pytest.mark.parametrize("labels", [np.array([1, 2, 3]), torch.tensor([1, 2, 3]), [np.int64(1), 2, 3], range(1, 4)])
def test_labels_of_any_kind_of_number_are_kept_as_numbers(digits, tmp_path, labels):
    stats = calibrate(digits, labels, num_steps=2, path=tmp_path / "stats")
    assert json.dumps(stats.origin.conditions) == "[1, 2, 3]"
    assert same(Statistics.load(tmp_path / "stats"), stats)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": []}, "at least one condition"),
        ({"batch": 0}, "a batch and gaps of at least 1"),
        ({"gaps": 0}, "a batch and gaps of at least 1"),
        ({"rows": "conditional"}, "rows must be 'first', 'second' or 'all', not 'conditional'"),
        ({"labels": [3, CLASSES]}, "classes 0 to 9; 10 is not among them"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(digits, tmp_path, options, words):
    with pytest.raises(fc.errors.InputError, match=words):
        calibrate(digits, path=tmp_path / "stats", **options)
    assert not (tmp_path / "stats").exists()


# ---- nothing stays --------------------------------------------------------------------------------------------------


def test_after_calibration_nothing_of_ours_is_on_the_model(digits):
    before = everything(digits.transformer)
    during = []
    calibrate(digits, on_step=lambda step: during.append(everything(digits.transformer) != before))
    assert all(during)
    assert everything(digits.transformer) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_exception_nothing_of_ours_is_on_the_pipeline(pipe, error):
    before, names = everything(pipe.transformer, pipe.vae, pipe), set(vars(pipe.scheduler))
    with pytest.raises(error):
        calibrate(pipe, on_step=stop_at(5, error))
    after = everything(pipe.transformer, pipe.vae, pipe)
    assert after[: len(before) - 1] == before[: len(before) - 1]  # a pipeline notes its own last call
    assert set(vars(pipe.scheduler)) == names
    assert not pipe.transformer._forward_hooks


def test_a_model_that_samples_by_a_plan_is_not_calibrated(digits):
    with fc.apply(digits.transformer, fc.fora(2).plan(fc.grid(digits, T))):
        with pytest.raises(fc.errors.AlreadyAppliedError, match="leave its `with"):
            calibrate(digits)
        assert torch.equal(*[sample(digits.transformer, digits.scheduler, [1], num_steps=T) for _ in range(2)])


# ---- interruptions --------------------------------------------------------------------------------------------------

CALLS = 3 * T
"""Ten labels are three batches of 4, 4 and 2."""


def stop_at(call, error=KeyboardInterrupt):
    """An ``on_step``, or a hook, that raises when it is called for the time of this number, from 0."""
    calls = iter(range(call + 1))

    def on_step(*_):
        if next(calls) == call:
            raise error

    return on_step


@pytest.mark.parametrize("rows", ["first", "all"])
@pytest.mark.parametrize("call", range(CALLS))
def test_an_interrupted_run_goes_on_where_it_was_to_the_same_bits(digits, tmp_path, call, rows):
    """After every model call: in the first batch, in the middle, and in the last, which is smaller."""
    path, batch = tmp_path / "stats", {"labels": LABELS[:5], "batch": 2} if rows == "all" else {}
    with pytest.raises(KeyboardInterrupt):
        calibrate(digits, path=path, rows=rows, on_step=stop_at(call), **batch)
    partial = Statistics.load(path)
    assert partial.is_partial is (call < CALLS - 1)  # after the last call nothing is missing
    size = 2 if rows == "all" else 4
    done = min(size * ((call + 1) // T), len(partial.origin.conditions))
    assert partial.count == done
    assert [path.name] == [file.name for file in tmp_path.iterdir()]
    whole = calibrate(digits, rows=rows, **batch)
    assert same(calibrate(digits, path=path, rows=rows, **batch), whole)
    assert same(Statistics.load(path), whole)


@pytest.mark.parametrize("call", [1, 6])
def test_an_interruption_in_the_middle_of_a_model_call_counts_nothing_twice(digits, tmp_path, call):
    path = tmp_path / "stats"
    hook = digits.transformer.transformer_blocks[1].ff.register_forward_pre_hook(stop_at(call, KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        calibrate(digits, path=path)
    hook.remove()
    partial = Statistics.load(path)
    assert len(set(partial.counts[call % T].tolist())) == 2, "some sites of this step were seen, and some were not"
    assert same(calibrate(digits, path=path), calibrate(digits))


def test_a_run_can_be_interrupted_again_and_again(digits, tmp_path):
    path, steps = tmp_path / "stats", []
    for call in (2, 5, 1, 4, 0):
        with pytest.raises(KeyboardInterrupt):
            calibrate(digits, path=path, on_step=stop_at(call))
    assert same(calibrate(digits, path=path, on_step=steps.append), calibrate(digits))
    assert steps == [0, 1, 2, 3] * (len(steps) // 4)


def test_a_run_that_goes_on_makes_only_the_calls_that_are_missing(digits, tmp_path):
    path, announced, steps = tmp_path / "stats", [], []
    with pytest.raises(KeyboardInterrupt):
        calibrate(digits, path=path, on_start=announced.append, on_step=stop_at(9))
    calibrate(digits, path=path, on_start=announced.append, on_step=steps.append)
    assert announced == [CALLS, T]  # the third batch was not finished
    assert steps == [0, 1, 2, 3]


@pytest.mark.parametrize("where", ["on_start", "the model's first block"])
def test_an_interruption_before_a_first_step_leaves_no_file(digits, tmp_path, where):
    path = tmp_path / "stats"
    if where == "on_start":
        options = {"on_start": stop_at(0)}
    else:
        digits.transformer.transformer_blocks[1].register_forward_pre_hook(stop_at(0, KeyboardInterrupt))
        options = {}
    with pytest.raises(KeyboardInterrupt):
        calibrate(digits, path=path, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_what_was_measured_as_well(digits, tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"):
        calibrate(digits, path=tmp_path / "stats", on_step=stop_at(6, RuntimeError("out of memory")))
    assert Statistics.load(tmp_path / "stats").count == 4


def test_a_finished_file_is_returned_without_a_sample(digits, tmp_path):
    path = tmp_path / "stats"
    whole = calibrate(digits, path=path)
    before = path.read_bytes()
    digits.transformer.register_forward_pre_hook(stop_at(0, AssertionError))
    again = calibrate(digits, path=path, on_start=stop_at(0, AssertionError), on_step=stop_at(0, AssertionError))
    assert same(again, whole)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("seconds", "counts"), [(-1.0, [None, 4, 8]), (3600.0, [None, None, None])])
def test_a_long_run_writes_its_file_between_batches(digits, tmp_path, monkeypatch, seconds, counts):
    """Should the machine go down, this is what is left: read at the first step of each batch."""
    monkeypatch.setattr(CALIBRATE, "CHECKPOINT_SECONDS", seconds)
    path, written = tmp_path / "stats", []

    def on_step(step):
        if step == 0:
            written.append(Statistics.load(path).count if path.exists() else None)

    calibrate(digits, path=path, on_step=on_step)
    assert written == counts
    assert Statistics.load(path).count == 10


OTHERS = {
    "seed": {"seed": 8},
    "guidance": {"guidance": 4.0},
    "shared_noise": {"shared_noise": True},
    "rows": {"rows": "all"},
    "batch": {"batch": 5},
    "conditions": {"labels": LABELS[::-1]},
    "gaps": {"gaps": 2},
    "sites or steps": {"num_steps": T + 1},
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", [*OTHERS, "fingerprint", "scheduler"])
def test_the_file_of_another_run_is_refused_with_what_differs_and_kept(digits, tmp_path, name, finished):
    path = tmp_path / "stats"
    try:
        calibrate(digits, path=path, on_step=None if finished else stop_at(6))
    except KeyboardInterrupt:
        assert not finished
    before = path.read_bytes()
    other = {
        "fingerprint": Digits(small_dit(seed=9).double(), digits.scheduler),
        "scheduler": Digits(digits.transformer, DDIMScheduler()),
    }.get(name, digits)
    words = rf"stats holds statistics of another run \({name} differ.*: write to another file, or delete it first\."
    with pytest.raises(fc.errors.StatisticsError, match=words):
        calibrate(other, path=path, on_step=stop_at(0, AssertionError), **OTHERS.get(name, {}))
    assert path.read_bytes() == before


def test_compact_statistics_cannot_go_on_but_finished_ones_are_returned(digits, tmp_path):
    path, whole = tmp_path / "stats", calibrate(digits)
    whole.compact().save(path)
    assert same(calibrate(digits, path=path), whole.compact())
    with pytest.raises(KeyboardInterrupt):
        calibrate(digits, path=tmp_path / "partial", on_step=stop_at(6))
    Statistics.load(tmp_path / "partial").compact().save(path)
    with pytest.raises(
        fc.errors.StatisticsError, match="compact and partial: write to another file, or delete it first"
    ):
        calibrate(digits, path=path)


def test_a_file_that_is_not_statistics_is_not_written_over(digits, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("three weeks of work")
    with pytest.raises(fc.errors.StatisticsFileError, match=r"notes\.txt is not a readable statistics file"):
        calibrate(digits, path=path)
    assert path.read_text() == "three weeks of work"


# ---- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [4, 12])
def test_what_is_held_does_not_depend_on_the_number_of_conditions(digits, monkeypatch, dtype, count):
    """And it is what `calibration_bytes` says: one mean a cell and a spare one a site, and the last features."""
    digits.transformer.to(dtype)
    owners, recents, peak = {}, {}, []

    class Watched(accumulators.Accumulators):
        def add(self, step, site, feature, recent, *args, **kwargs):
            super().add(step, site, feature, recent, *args, **kwargs)
            owners[id(self)], recents[site] = self, recent

    def on_step(step):
        cells = [cell for owner in owners.values() for row in owner.cells for cell in row if cell]
        storages = {cell.mean.untyped_storage().data_ptr(): cell.mean.untyped_storage().nbytes() for cell in cells}
        peak.append((sum(storages.values()), sum(feature.nbytes for recent in recents.values() for feature in recent)))

    monkeypatch.setattr(CALIBRATE, "Accumulators", Watched)
    calibrate(digits, [1] * count, num_steps=6, batch=4, on_step=on_step)
    need = fc.fit.calibration_bytes(digits, 6, batch=4, gaps=GAPS)
    assert need.means == 7 * SITES * N * D * 4
    assert need.recent == GAPS * SITES * 4 * N * D * dtype.itemsize
    assert tuple(map(max, zip(*peak, strict=True))) == need
    assert peak[5] == need


# ---- other sources --------------------------------------------------------------------------------------------------


def test_a_source_of_the_users_own_is_measured(facebook):
    source = Mine(facebook)
    stats = calibrate(source, shared_noise=True)
    modules = [module for block in facebook.blocks for module in (block.attn, block.mlp)]
    table = recorded(modules, lambda: Mine(facebook).generate(LABELS, source.given[0][1]))
    features = torch.stack([torch.stack(row) for row in table]).double().movedim(2, 0)
    for site, mean in enumerate(stats.means):
        torch.testing.assert_close(mean.double(), features[:, :, site].mean(0), rtol=0, atol=1e-5)
    assert [(labels, first) for labels, _, first in source.given] == [
        ((3, 1, 4, 1), 0),
        ((5, 9, 2, 6), 4),
        ((5, 3), 8),
    ]
    assert {(how.num_steps, how.seed, how.shared_noise) for _, how, _ in source.given} == {(T, 7, True)}
    assert stats.origin.scheduler == ""


@pytest.mark.parametrize("target", [torch.nn.Linear(1, 1), object(), "digits"])
def test_what_cannot_be_sampled_from_is_refused_with_what_is_needed(target):
    with pytest.raises(
        fc.errors.InputError, match=r"does not know how to sample from a \w+: pass a DiTPipeline.* `generate`"
    ):
        calibrate(target)


def test_the_bare_transformer_is_refused_as_it_has_no_loop(dit):
    with pytest.raises(fc.errors.InputError, match="sample from a DiTTransformer2DModel"):
        calibrate(dit)


def test_a_source_that_calls_another_model_is_refused(facebook, tmp_path):
    source = Mine(facebook)
    source.generate = lambda *args: None
    with pytest.raises(fc.errors.StatisticsError, match="does not sample with the model that it names as its target"):
        calibrate(source, path=tmp_path / "stats")
    assert not (tmp_path / "stats").exists()


@pytest.mark.parametrize("calls", [T - 1, T + 1])
def test_a_source_that_makes_another_number_of_calls_is_refused(facebook, calls):
    """At once, and not after the last batch."""
    source = Mine(facebook, calls)
    with pytest.raises(fc.errors.StepCountError, match=rf"plan has {T} steps"):
        calibrate(source)
    assert len(source.given) == 1


def test_a_source_that_gives_three_rows_a_sample_is_refused(facebook):
    with pytest.raises(fc.errors.InputError, match=r"has 12 rows for 4 samples.*one row a sample, or with a guidance"):
        calibrate(Mine(facebook, rows=3))


# ---- several processes ----------------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

import forecache as fc
from forecache.distributed import started
from forecache.zoo import Digits

folder, files, labels, options = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
sys.modules["forecache.fit.calibrate"].CHECKPOINT_ROUNDS = 1  # the processes meet after every batch
torch.set_num_threads(1)
model = DiTTransformer2DModel.from_pretrained(folder, dtype=torch.float64).eval()
digits = Digits(model, DDIMScheduler.from_pretrained(folder))
with started() as world:
    calls = []
    for file in files:
        stats = fc.calibrate(digits, labels, path=folder / file, on_start=calls.append, **options)
        stats.save(folder / f"{file}.rank{world.rank}")
    (folder / f"world{world.rank}").write_text(json.dumps([world.size, calls]))
"""

BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--standalone", "--nproc_per_node", "2"]


def test_two_processes_measure_what_one_does(digits, tmp_path):
    """Five batches for two: one process has a round without a batch. One file is new, the others were interrupted."""
    options = {"num_steps": T, "batch": 2, "gaps": GAPS, "seed": 7}
    digits.transformer.save_pretrained(tmp_path)
    digits.scheduler.save_pretrained(tmp_path)
    for name, call in (("early", 1), ("middle", 6)):
        with pytest.raises(KeyboardInterrupt):
            fc.calibrate(digits, LABELS, **options, path=tmp_path / name, on_step=stop_at(call))
    whole = fc.calibrate(digits, LABELS, **options)
    names = ["new", "early", "middle"]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [tmp_path, json.dumps(names), json.dumps(LABELS), json.dumps(options)]
    done = subprocess.run([*TORCHRUN, script, *words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    worlds = [json.loads((tmp_path / f"world{rank}").read_text()) for rank in (0, 1)]
    # three batches and two; a first batch that was begun is made again; of the four left after it, two each
    calls = [[3 * T, 3 * T, 2 * T], [2 * T, 2 * T, 2 * T]]
    assert worlds == [[2, calls[rank][: len(names)]] for rank in (0, 1)]
    for name in names:
        shared = Statistics.load(tmp_path / name)
        assert all(same(Statistics.load(tmp_path / f"{name}.rank{rank}"), shared) for rank in (0, 1))
        assert (shared.sites, shared.origin) == (whole.sites, whole.origin)
        assert torch.equal(shared.counts, whole.counts)
        assert torch.equal(shared.inverse, whole.inverse)
        torch.testing.assert_close(shared.changes, whole.changes, rtol=1e-6, atol=0)
        for a, b in zip(shared.means, whole.means, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6 * b.abs().max().item())


def test_sums_over_gpus_of_what_lies_on_the_cpu(monkeypatch):
    """nccl refuses tensors on the CPU; its GPU is another tensor here, and the other process has the same."""
    staged = []

    def all_reduce(tensor):
        if not any(tensor is copy for copy in staged):
            raise RuntimeError("No backend type associated with device type cpu")
        tensor.mul_(2)

    def cuda(self):
        staged.append(self.clone())
        return staged[-1]

    monkeypatch.setattr(distributed.dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.Tensor, "cuda", cuda)
    count, table = torch.tensor([3]), torch.arange(6.0).view(2, 3)
    distributed.World(0, 2).sum_([count, table[1]])
    assert count.tolist() == [6]
    assert table.tolist() == [[0, 1, 2], [6, 8, 10]]
