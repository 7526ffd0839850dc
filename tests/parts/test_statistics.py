"""Statistics: where a gradient points the wrong way, the gate that asks it, and the file that keeps them."""

import json
import random
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support.statistics import GRID, SITES, D, N, T, measured, same

import forecache as fc
from forecache.io.tensor_files import KEY
from forecache.parts import gates
from forecache.parts.statistics import Origin, Statistics, inverse_gradient, inverse_table

# ---- the gradient ---------------------------------------------------------------------------------------------------


def some_eta_helps(before, last, truth):
    """A search in exact arithmetic. The distance is convex and piecewise linear in eta: it is least at a kink."""
    r, d = ([Fraction(x) - Fraction(y) for x, y in zip(a, b, strict=True)] for a, b in ((truth, last), (last, before)))
    kinks = [x / y for x, y in zip(r, d, strict=True) if y and x / y > 0]
    distance = [sum(abs(x - eta * y) for x, y in zip(r, d, strict=True)) for eta in (0, *kinks)]
    return min(distance) < distance[0]


def threes(values):
    """Averages of three steps, (before, last, truth) in each place."""
    return st.lists(st.tuples(values, values, values), min_size=1, max_size=12)


@given(threes(st.integers(-3, 3)) | threes(st.integers(-256, 256).map(lambda number: number / 64)))
def test_a_gradient_is_inverse_where_a_search_finds_no_eta_that_helps(places):
    """Small whole numbers meet every tie: truths that equal the last average, changes of 0, slopes of exactly 0."""
    before, last, truth = zip(*places, strict=True)
    found = inverse_gradient(*(torch.tensor(step, dtype=torch.float32) for step in (before, last, truth)))
    assert found is not some_eta_helps(before, last, truth)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_gradient_is_inverse_where_a_fine_scan_of_eta_finds_nothing(share):
    """On features of normal numbers, of which a share did not change at all at the last step."""
    generator, seen = torch.Generator().manual_seed(5), set()
    etas = torch.logspace(-5, 1, 400, dtype=torch.float64)
    for _ in range(100):
        before, last, truth = torch.randn(3, 4, 5, generator=generator)
        pull = torch.rand(1, generator=generator) * 0.6 - 0.3  # so that both answers come up
        truth = torch.where(torch.rand(4, 5, generator=generator) < share, last, truth + pull * (last - before))
        r, d = truth.double() - last.double(), last.double() - before.double()
        distances = (r - etas[:, None, None] * d).abs().sum((1, 2))
        assert inverse_gradient(before, last, truth) is not bool((distances < r.abs().sum()).any())
        seen.add(inverse_gradient(before, last, truth))
    assert seen == ({True, False} if share < 0.9 else {True})


def test_the_table_of_inverse_gradients_asks_each_step_about_the_two_before():
    straight, zigzag = torch.arange(6.0), torch.tensor([0.0, 1, 0, 1, 0, 1])
    turns = torch.tensor([0.0, 1, 2, 3, 2, 1])  # at step 4 alone the last change points away
    table = inverse_table([means.reshape(6, 1, 1) for means in (straight, zigzag, turns)])
    assert table.T.int().tolist() == [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 0]]


def test_the_table_of_random_averages_is_that_of_the_search():
    """Of eight sites on random walks in whole numbers, so that some changes are 0."""
    generator = torch.Generator().manual_seed(0)
    means = list(torch.randint(-4, 5, (8, T, N, D), generator=generator).float().cumsum(1))
    found, flat = inverse_table(means), [mean.flatten(1).tolist() for mean in means]
    hand = [[c >= 2 and not some_eta_helps(*mean[c - 2 : c + 1]) for mean in flat] for c in range(T)]
    assert found.tolist() == hand
    assert 0 < found[2:].double().mean() < 1


def test_the_inverse_share_of_a_step_is_that_of_its_sites():
    inverse = [
        [False] * 4,
        [False] * 4,
        [True, False, False, False],
        [True, True, False, True],
        [True] * 4,
        [False] * 4,
    ]
    assert measured(inverse=inverse).inverse_shares == (0, 0, 0.25, 0.75, 1, 0)
    assert measured(inverse=inverse).inverse_counts == (0, 0, 1, 2, 2, 0), "blocks of two sites, one inverse or both"


def test_the_mean_change_of_a_step_is_that_over_its_sites_since_the_step_before():
    stats = measured()
    stats.changes[3] = torch.tensor([[0.1, 9.0], [0.2, 9.0], [0.3, 9.0], [0.6, 9.0]])[:, : stats.changes.shape[2]]
    assert stats.mean_changes[3] == pytest.approx(0.3)
    assert len(stats.mean_changes) == stats.num_steps


# ---- the gate that asks ---------------------------------------------------------------------------------------------

SHARES = (0, 0, 0, 0.5, 0, 0.25, 0, 1, 0, 0)
"""N of ten steps, in quarters: so many of the four sites are inverse."""
TEN = replace(GRID, num_steps=10)


def shared(grid=TEN):
    return measured(grid, inverse=[[site < 4 * share for site in range(4)] for share in SHARES])


def rows(gamma, threshold, **options):
    method = fc.goc(fc.fora(2), 0.8, gate=gates.god(shared(), gamma, threshold), **options)
    return set(method.plan(TEN).rows)


@pytest.mark.parametrize(
    ("gamma", "threshold", "opened"),
    [
        # at 1 the position alone: 3/9, 5/9, 7/9, 9/9
        (1.0, 0.7, {3, 5}),
        (1.0, 5 / 9, {3}),
        # at 0 the share alone: 1/2, 1/4, 1, 0; the bound itself is closed
        (0.0, 0.5, {5, 9}),
        (0.0, 0.51, {3, 5, 9}),
        # half and half: (3/9 + 1/2)/2 = 0.417, (5/9 + 1/4)/2 = 0.403, (7/9 + 1)/2 = 0.889, (9/9 + 0)/2 = 0.5
        (0.5, 0.6, {3, 5, 9}),
        (0.5, 0.45, {3, 5}),
        (0.5, 0.41, {5}),
        # a quarter and three quarters: 0.458, 0.326, 0.944, 0.25
        (0.25, 0.3, {9}),
    ],
)
def test_god_opens_exactly_where_position_and_share_stay_below_the_threshold(gamma, threshold, opened):
    """Step 1 has a single feature in its queue, so that an open gate changes nothing there."""
    drawn = "".join("#" if c % 2 == 0 else "~" if c in opened else "." for c in range(10))
    assert {"".join(cell.sign for cell in row) for row in rows(gamma, threshold)} == {drawn}
    assert rows(gamma, threshold, whole_blocks=False) == rows(gamma, threshold)


def test_god_is_a_list_of_steps_that_the_statistics_chose():
    listed = fc.goc(fc.fora(2), 0.8, steps=(1, 3, 5, 9)).plan(TEN)
    assert rows(0.5, 0.6) == set(listed.rows)


def test_the_picture_of_god_is_in_the_plan_and_in_its_file(tmp_path):
    plan = fc.goc(fc.fora(2), 0.8, gate=gates.god(shared(), 0.5, 0.6)).plan(TEN)
    lines = plan.show().splitlines()
    # B is 0, .056, .111, .417, .222, .403, .333, .889, .444, .5; a bar is an eighth high
    assert lines[-4:] == [
        "gate god(gamma=0.5, threshold=0.6): ~ where B is below the threshold",
        "  N     ▁▁▁▅▁▃▁█▁▁",
        "  B     ▁▁▁▄▂▄▃█▄▅",
        "  open  ~~~~~~~.~~",
    ]
    assert "goc(fora(interval=2), eta=0.8, stats=" in lines[0]
    plan.save(tmp_path / "plan.json")
    assert fc.Plan.load(tmp_path / "plan.json").show() == plan.show()


@pytest.mark.parametrize("gamma", [-0.01, 1.01, float("nan")])
def test_god_refuses_a_gamma_that_is_no_share(gamma):
    with pytest.raises(
        fc.errors.PlanError, match=r"gamma weighs the position against N, from 0 to 1; \S+ was asked for"
    ):
        gates.god(shared(), gamma, 0.6)


def test_god_that_opens_nowhere_is_refused():
    with pytest.raises(fc.errors.PlanError, match="closed in every skipped cell"):
        rows(0.5, 0.0)


OTHERS = {
    "steps": (replace(TEN, num_steps=8), "are of 10 steps, and the plan is for 8"),
    "sites": (
        replace(TEN, sites=SITES[:2], model="Short"),
        "a SmallDiT with 4 sites .*, and the plan is for Short with 2",
    ),
    "names of sites": (
        replace(TEN, sites=(*SITES[:3], fc.parts.Site("blocks.1.ff", 1, "ff"))),
        "a SmallDiT with 4 sites",
    ),
    "structure": (replace(TEN, fingerprint="ffffffffffffffff:0.5,-0.25"), "a SmallDiT with other weights"),
    "weights": (replace(TEN, fingerprint="0123456789abcdef:0.5,0.25"), "a SmallDiT with other weights"),
    "scheduler": (
        replace(TEN, scheduler=json.dumps({"class": "DDIMScheduler", "steps_offset": 0})),
        r"another scheduler \(steps_offset: 1, not 0\)",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("method", ["god", "eoc"])
def test_statistics_of_another_run_are_refused_with_what_differs(method, name):
    grid, words = OTHERS[name]
    made = (
        fc.goc(fc.fora(2), 0.8, gate=gates.god(shared(), 0.5, 0.6)) if method == "god" else fc.eoc(fc.fora(2), shared())
    )
    with pytest.raises(
        fc.errors.StatisticsError, match=rf"{words}.*: calibrate for this run with forecache\.calibrate"
    ):
        made.plan(grid)


@pytest.mark.parametrize("name", OTHERS)
def test_god_asks_in_every_cell_so_that_no_wrapping_hides_it(name):
    grid, _ = OTHERS[name]
    with pytest.raises(fc.errors.StatisticsError):
        gates.god(shared(), 0.5, 0.6)(3, SITES[0], grid)


def test_what_a_grid_does_not_know_is_not_held_against_the_statistics():
    shared().check(fc.Grid(10, SITES))
    shared().check(replace(TEN, fingerprint="0123456789abcdef:"))  # the model on the meta device


def test_statistics_that_lack_a_step_are_refused():
    """They were interrupted in the first batch: the averages of the steps that never came are zeros."""
    stats = measured()
    stats.counts[4:] = 0
    with pytest.raises(fc.errors.StatisticsError, match=r"interrupted before every step was measured.*calibrate"):
        stats.check(GRID)


# ---- what they hold -------------------------------------------------------------------------------------------------


def test_means_are_given_per_token_and_per_channel():
    stats = measured()
    given = stats.means[2][3]
    assert torch.equal(stats.mean(3, SITES[2]), given)
    by_hand = torch.tensor([sum(given[:, d].tolist()) / N for d in range(D)])
    torch.testing.assert_close(stats.mean(3, SITES[2], "channel"), by_hand, rtol=1e-6, atol=1e-7)


def test_compact_statistics_keep_half_precision_means_per_channel():
    stats = measured()
    small = stats.compact()
    assert (stats.resolution, small.resolution) == ("token", "channel")
    assert stats.nbytes == 4 * T * N * D * 4
    assert small.nbytes == 4 * T * D * 2
    assert stats.compact(torch.float32).nbytes == 4 * T * D * 4
    exact = stats.mean(3, SITES[1], "channel")
    torch.testing.assert_close(small.mean(3, SITES[1], "channel"), exact, rtol=2**-10, atol=1e-7)
    assert same(small, replace(stats, means=small.means)), "nothing but the means changes"


@pytest.mark.parametrize("ask", [lambda small: small.mean(0, SITES[0]), lambda small: small.mean(0, SITES[0], "token")])
def test_compact_statistics_have_no_mean_per_token(ask):
    with pytest.raises(
        fc.errors.StatisticsError, match=r"one mean per channel, and a mean per token was asked for: use per="
    ):
        ask(measured().compact())


def test_the_count_is_that_of_the_cell_with_the_fewest_samples():
    stats = measured()
    assert (stats.count, stats.is_partial) == (8, False)
    stats.counts[5, 2] = 4
    assert (stats.count, stats.is_partial) == (4, True)


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stats.safetensors"
    measured().save(path)
    return path


@pytest.mark.parametrize("change", [lambda s: s, lambda s: s.compact(), lambda s: s.compact(torch.bfloat16)])
def test_statistics_are_the_same_after_saving_and_loading(tmp_path, change):
    stats = change(measured())
    stats.save(tmp_path / "new folder" / "stats.safetensors")
    again = Statistics.load(str(tmp_path / "new folder" / "stats.safetensors"))
    assert same(again, stats)
    assert again.inverse_shares == stats.inverse_shares


def test_any_text_and_number_of_their_origin_is_kept(tmp_path):
    odd = Origin("DiT (2 x 'ü')", "", "", 4.0, 2**62, True, "all", 1, ("a cat", 3, "ein Hund 🐕", ""), "0.0")
    stats = replace(measured(), origin=odd)
    stats.save(tmp_path / "stats")
    assert Statistics.load(tmp_path / "stats").origin == odd


def test_saving_leaves_no_other_file_and_replaces_the_old_one(file):
    other = measured(seed=1)
    other.save(file)
    assert same(Statistics.load(file), other)
    assert [path.name for path in file.parent.iterdir()] == ["stats.safetensors"]


def taken_apart(path):
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(opened.metadata()[KEY])  # noqa: SIM118


def tensors(change):
    """The file after ``change(tensors)``."""

    def make(path):
        kept, document = taken_apart(path)
        change(kept)
        save_file(kept, path, {KEY: json.dumps(document)})

    return make


def text(words):
    """The file with these words for its document."""
    return lambda path: save_file(taken_apart(path)[0], path, {KEY: words})


def document(change):
    """The file after ``change(document)``."""

    def make(path):
        kept, read = taken_apart(path)
        change(read)
        save_file(kept, path, {KEY: json.dumps(read)})

    return make


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def put(name, value):
    """One number of one tensor is replaced."""
    return tensors(lambda t: t[name].view(-1).__setitem__(5, value))


def older(read):
    """The document of the version before, which had no signals."""
    read.pop("signals")
    read["version"] = 2


def test_a_file_of_the_version_before_is_read_and_has_no_signals(tmp_path):
    path, stats = tmp_path / "statistics.safetensors", measured()
    stats.save(path)
    document(older)(path)
    loaded = Statistics.load(path)
    assert same(loaded, stats)
    assert loaded.signals is None
    with pytest.raises(fc.errors.StatisticsError, match="calibrate again, into another file"):
        loaded.known_signals()


DAMAGED = {
    "signals without their power": (tensors(lambda t: t.update({"signals.outputs": torch.ones(1, 21)})), "lacks power"),
    "signals of other steps": (
        lambda path: (
            document(lambda d: d.update(signals={"power": 2.0}))(path),
            tensors(lambda t: t.update({"signals.outputs": torch.ones(1, 20)}))(path),
        ),
        "does not belong to 6 steps",
    ),
    "empty": (lambda path: path.write_bytes(b""), "length of a safetensors header"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n" + bytes(500)), "length of a safetensors header"),
    "a plan": (lambda path: fc.fora(2).plan(GRID).save(path), "length of a safetensors header"),
    "cut in its header": (cut(0.05), "length of a safetensors header"),
    "cut in its tensors": (cut(0.9), "not fully covered"),
    "without metadata": (lambda path: save_file(taken_apart(path)[0], path), "its metadata is"),
    "metadata that is not JSON": (text("{"), "property name"),
    "metadata that never ends": (text("[" * 100_000), "nested too deeply"),
    "a list": (text("[]"), "document must be an object"),
    "other metadata": (
        lambda path: save_file(taken_apart(path)[0], path, {"forecache-statistics": "{}"}),
        r"metadata is \['forecache-statistics'\], not \['forecache'\]",
    ),
    "another format": (
        document(lambda d: d.update(format="forecache-router")),
        "format is 'forecache-router', not 'forecache-statistics'",
    ),
    "no format": (document(lambda d: d.pop("format")), "it lacks format"),
    "another version": (document(lambda d: d.update(version=1)), "version is 1; this forecache reads version 3"),
    "version true": (document(lambda d: d.update(version=True)), "version is True; this forecache reads version 3"),
    "version 2.0": (document(lambda d: d.update(version=2.0)), r"version is 2\.0; this forecache reads version 2"),
    "an unknown key": (document(lambda d: d.update(pickle="x")), "unknown keys .*pickle"),
    "no origin": (document(lambda d: d.pop("origin")), "it lacks origin"),
    "an unknown key of the origin": (document(lambda d: d["origin"].update(path="/")), "unknown keys .*path"),
    "no seed": (document(lambda d: d["origin"].pop("seed")), "it lacks seed"),
    "a seed in words": (document(lambda d: d["origin"].update(seed="7")), "seed must be of type int"),
    "a seed true": (document(lambda d: d["origin"].update(seed=True)), "seed must be of type int"),
    "guidance NaN": (document(lambda d: d["origin"].update(guidance=float("nan"))), "NaN"),
    "a condition that is a list": (document(lambda d: d["origin"].update(conditions=[[1]])), "numbers or texts"),
    "no sites": (document(lambda d: d.update(sites=[])), "at least one site"),
    "a site without a kind": (document(lambda d: d["sites"][0].pop("kind")), "it lacks kind"),
    "a site's depth in words": (document(lambda d: d["sites"][0].update(depth="0")), "depth must be of type int"),
    "a site twice": (document(lambda d: d["sites"][0].update(name="blocks.0.mlp")), "stands more than once"),
    "a site at depth -1": (document(lambda d: d["sites"][0].update(depth=-1)), "depth of a site is at least 0"),
    "a site more": (
        document(lambda d: d["sites"].append({"name": "x", "depth": 0, "kind": ""})),
        "other sites than its 5",
    ),
    "no mean of a site": (tensors(lambda t: t.pop("means.3")), "other sites than its 4"),
    "no changes": (tensors(lambda t: t.pop("changes")), "tensors for other sites"),
    "a tensor more": (tensors(lambda t: t.update(extra=torch.zeros(1))), "tensors for other sites"),
    "a mean of fewer steps": (tensors(lambda t: t.update({"means.0": torch.zeros(T - 1, N, D)})), "belong together"),
    "a mean without tokens": (tensors(lambda t: t.update({"means.0": torch.zeros(T, D)})), "belong together"),
    "a mean of no tokens": (tensors(lambda t: t.update({"means.0": torch.zeros(T, 0, D)})), "belong together"),
    "a mean in whole numbers": (
        tensors(lambda t: t.update({"means.0": torch.zeros(T, N, D, dtype=torch.int32)})),
        "belong together",
    ),
    "changes of fewer sites": (tensors(lambda t: t.update(changes=torch.zeros(T, 3, 2))), "belong together"),
    "changes without gaps": (tensors(lambda t: t.update(changes=torch.zeros(T, 4))), "belong together"),
    "changes in double": (tensors(lambda t: t.update(changes=t["changes"].double())), "belong together"),
    "inverse in numbers": (tensors(lambda t: t.update(inverse=torch.zeros(T, 4))), "belong together"),
    "inverse of another run": (tensors(lambda t: t.update(inverse=torch.zeros(T, 5).bool())), "belong together"),
    "counts of one dimension": (tensors(lambda t: t.update(counts=torch.ones(T).long())), "belong together"),
    "no steps": (
        tensors(lambda t: t.update({name: tensor[:0].clone() for name, tensor in t.items()})),
        "belong together",
    ),
    "a mean NaN": (put("means.1", float("nan")), "numbers that are not finite"),
    "a mean infinite": (put("means.3", float("-inf")), "numbers that are not finite"),
    "a change NaN": (put("changes", float("nan")), "numbers that are not finite"),
    "a negative count": (put("counts", -1), "negative"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_with_its_name_and_the_reason(file, damage):
    change, words = DAMAGED[damage]
    change(file)
    with pytest.raises(fc.errors.StatisticsFileError, match=words) as caught:
        Statistics.load(file)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file} is not a readable statistics file: ")
    assert sentence.endswith("Make it with forecache.calibrate.")
    assert len(sentence) < len(str(file)) + 400, "an error is a sentence, not the file"


def test_a_missing_file_is_refused_with_what_makes_one(tmp_path):
    with pytest.raises(
        fc.errors.StatisticsFileError, match=r"no statistics file at .*nowhere\. Make it with forecache\.calibrate"
    ):
        Statistics.load(tmp_path / "nowhere")


def test_a_folder_is_refused_with_its_name(tmp_path):
    with pytest.raises(fc.errors.StatisticsFileError, match=tmp_path.name):
        Statistics.load(tmp_path)


def test_a_file_of_a_size_that_no_statistics_have_is_refused_unread(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(fc.errors.StatisticsFileError, match=r"huge.*at most"):
        Statistics.load(path)


@pytest.mark.parametrize("seed", range(6))
def test_a_file_with_one_changed_byte_is_statistics_or_refused(file, seed):
    """Nothing but a StatisticsError comes out, of a plan's check as well; what is still statistics can be used."""
    generator, whole = random.Random(seed), file.read_bytes()
    loaded = 0
    for _ in range(100):
        mutant = bytearray(whole)
        place = generator.randrange(
            len(mutant) if seed % 2 else 2200
        )  # in any place, or in the words before the numbers
        mutant[place : place + (seed % 3 < 2)] = bytes([generator.choice([generator.randrange(256), *b'"{}[],:09'])])
        file.write_bytes(mutant)
        try:
            stats = Statistics.load(file)
            loaded += 1
            stats.check(replace(GRID, sites=stats.sites))
        except fc.errors.StatisticsError:
            continue
        assert all(0 <= share <= 1 for share in stats.inverse_shares)
        stats.save(file)
        assert same(Statistics.load(file), stats)
    assert loaded or seed % 3 == 2  # a byte more is always seen


def test_a_byte_that_is_neither_0_nor_1_counts_as_one(file):
    """A bool with another bit pattern would count as a number of its own."""
    whole = bytearray(file.read_bytes())
    header = int.from_bytes(whole[:8], "little")
    start = json.loads(whole[8 : 8 + header])["inverse"]["data_offsets"][0] + 8 + header
    whole[start + 9] = 0x37
    file.write_bytes(whole)
    assert Statistics.load(file).inverse.view(torch.uint8).max() == 1
