"""`forecache sample`: a few images with a record, or many in shards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import forecache as fc
from forecache import distributed
from forecache.cli.levels import takes_level_options
from forecache.cli.options import NONE, MethodOptions, Typed, takes_method_options
from forecache.cli.parameters import DEFAULT_MODEL, MAX_STEPS, AsJson, Guidance, Model, Rounds, out_folder
from forecache.cli.pipelines import PipelineOptions, guidance_of, nouns, takes_pipeline_options
from forecache.cli.terminal import app, emit, interruptible, progress, say, typed_command
from forecache.fit import step_errors
from forecache.models.levels import FINEST, AskedSites
from forecache.sampling import runs, sources
from forecache.sampling.shards import CALL_SIZE
from forecache.sampling.timing import ROUNDS


@app.command("sample")
@takes_method_options
@takes_level_options
@takes_pipeline_options
def sample_command(
    *,
    labels: Annotated[
        str | None, typer.Option(help="Classes by number or name, one image each: 207,360 or 'shark,umbrella'.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt, for text-to-image models; repeatable.")] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of images, sampled in shards and written as samples.npz; labels or prompts are cycled.",
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="--num-samples: a file of prompts, one a line.")] = None,
    model: Model = DEFAULT_MODEL,
    out: Annotated[Path, out_folder("Folder for images and run.json; an earlier run in it is replaced.")] = Path(
        "out/sample"
    ),
    steps: Annotated[
        int | None, typer.Option(min=1, max=MAX_STEPS, help="Sampling steps [20, or those of --plan].")
    ] = None,
    guidance: Guidance = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise: the same seed gives the same images.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Most images in a model call; does not change the noise.")] = 16,
    plan: Annotated[Path | None, typer.Option(help="A plan file, instead of a method.")] = None,
    method: Annotated[str, typer.Option(help="none samples without a cache.")] = NONE,
    typed: Typed,
    sites: AskedSites,
    compare: Annotated[bool, typer.Option(help="Sample without a cache too, for PSNR, SSIM and speed-up.")] = False,
    rounds: Rounds = None,
    errors: Annotated[
        bool, typer.Option("--errors", help="Measure every estimate's error, in one more run without a cache.")
    ] = False,
    shard_size: Annotated[int | None, typer.Option(min=1, help="--num-samples: images in a file [256].")] = None,
    call_size: Annotated[
        int | None, typer.Option(min=1, help="--num-samples: images in every model call, for equal bytes [16].")
    ] = None,
    exact: Annotated[
        bool | None,
        typer.Option(help="--num-samples: --no-exact calls the model with --batch images; bytes may then differ."),
    ] = None,
    random_classes: Annotated[
        bool | None, typer.Option("--random-classes", help="--num-samples: draw classes at random.")
    ] = None,
    png: Annotated[bool | None, typer.Option("--png", help="--num-samples: write PNGs as well.")] = None,
    as_json: AsJson = False,
    pipeline: PipelineOptions,
) -> None:
    """Sample images or videos from class labels or prompts, with a method or a plan file, and record how it was done.

    Example: `forecache sample --model digits --labels 3,1,4,1,5 --method goc --interval 2 --compare --out out/digits`

    Example: `forecache sample --model digits --labels 2,7 --method eoc --stats digits --form additive --compare`

    Example: `forecache sample --model digits --labels 2,7 --method goc --base l2c --router digits-22 --eta 1 --compare`

    Example: `forecache sample --model digits --labels 2,7 --steps 50 --method procache --pattern published --compare`

    Example: `forecache sample --model digits-text --prompt "a seven left of a three" --method goc --compare`

    Example: `forecache sample --model facebook/DiT-XL-2-256 --labels 207,360 --steps 20 --method goc --base fora
    --interval 2 --eta 1.2 --out out/`

    Example: `forecache sample --model PixArt-alpha/PixArt-XL-2-512x512 --prompt "a small cactus with a happy face"
    --steps 20 --method goc --out out/`

    Example: `forecache sample --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --prompt "a happy cat" --height 480 --width 832
    --frames 33 --steps 30 --method taylorseer --out out/wan`

    With --num-samples, images are sampled in shards and written as an .npz for ADM's evaluation suite. The same command
    continues after an interruption, and several GPUs or machines share the work:
    `torchrun --nproc-per-node 8 -m forecache sample ...`, or `accelerate launch -m forecache sample ...`.

    Example: `forecache sample --model digits --num-samples 1000 --method goc --out out/goc-1000`
    """
    many = _Many(num_samples, prompts, shard_size, call_size, exact, random_classes, png)
    many.check(labels is not None or bool(prompt), compare, errors)
    if rounds is not None and not compare:
        raise fc.errors.InputError("--rounds times a run beside one without a cache: give --compare, too.")
    options = typed(method)
    saved_plan = _load(plan, options, steps)
    num_steps = _steps_of(saved_plan) if saved_plan is not None else steps or 20
    built = options.build(num_steps, model, sites.level)
    if built is None and sites != FINEST:
        raise fc.errors.InputError("--level is that of a method, and a plan file has its own sites: give a --method.")
    if num_samples is None:
        runs.check_folder(out)
    else:
        distributed.take_gpu()
    source = pipeline.open(model)
    scale = guidance_of(source, guidance)
    needs_conditions = labels is not None or bool(prompt) or num_samples is None
    conditions = runs.parse_conditions(source, labels, prompt or []) if needs_conditions else ()
    settings = runs.Settings(conditions, num_steps, scale, seed, batch)
    run_plan = saved_plan
    if built is not None:
        own_grid = fc.grid(source.target, num_steps, **sites.options, ends=built.ends(sites.level))
        run_plan = built.plan(own_grid)
    if num_samples is None:
        if errors and run_plan is None:
            raise fc.errors.InputError("--errors are those of a plan's estimates: give --method or --plan, too.")
        timed_rounds = ROUNDS if rounds is None else rounds
        with interruptible(lambda: f"Nothing was written to {out}: the {nouns(source)} are written at the end."):
            saved = _sample_few(out, source, run_plan, settings, model, compare, timed_rounds, errors)
        _say_few(saved, run_plan, out, source, options.unasked(run_plan, model), as_json=as_json)
    else:
        _sample_many(out, source, run_plan, settings, many, options.unasked(run_plan, model), as_json=as_json)


def _load(path: Path | None, options: MethodOptions, steps: int | None) -> fc.Plan | None:
    """The plan of --plan. Raises InputError or PlanError for options that contradict it."""
    if path is None:
        return None
    if options.method != NONE:
        raise fc.errors.InputError("--plan and --method both say how to sample: give one of them.")
    plan = fc.Plan.load(path)
    if steps not in (None, own := _steps_of(plan)):
        raise fc.errors.PlanError(
            f"{path} is a plan for {own} steps, --steps {steps} was asked for: leave --steps out, or make "
            "a plan for that number."
        )
    if options.given:
        raise fc.errors.InputError(f"{path} has all that its method needs: leave {', '.join(options.given)} out.")
    return plan


def _steps_of(plan: fc.Plan) -> int:
    """The steps that a plan is sampled in: of a sampler that it brings, which may call the model more often."""
    return plan.num_steps if plan.sampler is None else plan.sampler.num_steps


def _sample_few(
    out: Path,
    source: sources.Source,
    plan: fc.Plan | None,
    settings: runs.Settings,
    model: str,
    compare: bool,
    rounds: int,
    errors: bool,
) -> runs.SavedRun:
    batches = -(-len(settings.conditions) // settings.batch)
    generations = batches * (1 + compare) + 2 * rounds * compare + errors
    with progress(settings.num_steps * generations) as (bar, task):
        table = None
        if errors and plan is not None:
            bar.update(task, description="measuring features")
            how = sources.Sampling(settings.num_steps, settings.guidance, settings.seed)
            first = settings.conditions[: settings.batch]
            gram = step_errors.measured_features(
                source, first, how, settings.batch, lambda _: bar.advance(task), plan.grid
            )
            table = step_errors.document(gram, plan)
        return runs.sample_to(
            out,
            source,
            plan,
            settings,
            model=model,
            compare=compare,
            rounds=rounds,
            command=typed_command(),
            on_phase=lambda phase: bar.update(task, description=phase),
            on_step=lambda _: bar.advance(task),
            errors=table,
        )


def _say_few(
    saved: runs.SavedRun, plan: fc.Plan | None, out: Path, source: sources.Source, unasked: str, *, as_json: bool
) -> None:
    if as_json:
        emit(saved.record)
        return
    if plan is not None:
        say(f"{_description(plan)}\n{unasked}{saved.cost or 'The cost is not known from shapes alone.'}")
    if "decided" in saved.record:
        say(_decided(saved.record))
    if "uncached" in saved.record:
        say(_comparison(saved.record))
    say(f"Wrote {len(saved.record['images'])} {nouns(source)} and run.json to {out}.")


def _description(plan: fc.Plan) -> str:
    return f"{plan.provenance.get('method', 'plan')}\n{plan.picture()}"


def _decided(record: Mapping[str, Any]) -> str:
    """What a plan that decides while it runs came to."""
    computed, skipped = record["stats"]["computed"], record["stats"]["skipped"]
    text = f"Decided while it ran: {computed / (computed + skipped):.1%} of features computed, {record['decided']}"
    return text if skipped else f"{text}. Nothing was skipped: a higher threshold skips more."


def _comparison(record: Mapping[str, Any]) -> str:
    decibels = [image["psnr"] for image in record["images"]]
    quality = "all equal" if not any(decibels) else _range([value for value in decibels if value is not None])
    if "timing" not in record:
        return f"Compared with no cache: {quality}. No time was measured."
    ratio, timing = record["time_ratio"], record["timing"]
    return (
        f"Compared with no cache: {quality}; {ratio['median']:.2f}x as fast ({ratio['low']:.2f} to "
        f"{ratio['high']:.2f} in {ratio['count']} rounds of {timing['samples']}, in turn)."
    )


def _range(decibels: list[float]) -> str:
    return f"PSNR {min(decibels):.1f} to {max(decibels):.1f} dB"


@dataclass(frozen=True)
class _Many:
    """The options that belong to --num-samples, as typed; None where one was not given."""

    num_samples: int | None
    prompts: Path | None
    shard_size: int | None
    call_size: int | None
    exact: bool | None
    random_classes: bool | None
    png: bool | None

    def check(self, has_conditions: bool, compare: bool, errors: bool) -> None:
        """Raises InputError for options that do not apply, or that contradict each other.

        has_conditions: whether --labels or --prompt were given.
        """
        if self.num_samples is None:
            names = ("prompts", "shard_size", "call_size", "exact", "random_classes", "png")
            if idle := [name for name in names if getattr(self, name) is not None]:
                raise fc.errors.InputError(f"--{idle[0].replace('_', '-')} belongs to --num-samples.")
        elif compare or errors:
            raise fc.errors.InputError(
                f"--{'compare' if compare else 'errors'} is for a few images: "
                "sample twice, with the plan and without one, and compare the folders."
            )
        if self.exact is False and self.call_size is not None:
            raise fc.errors.InputError(
                "--call-size is what makes a run exact, and --no-exact says that it is not: give one."
            )
        if sum((has_conditions, self.prompts is not None, bool(self.random_classes))) > 1:
            raise fc.errors.InputError(
                "--labels, --prompt, --prompts and --random-classes all say what to sample: give one of them."
            )


def _sample_many(
    out: Path,
    source: sources.Source,
    plan: fc.Plan | None,
    settings: runs.Settings,
    many: _Many,
    unasked: str,
    *,
    as_json: bool,
) -> None:
    world, started = distributed.launched(), time.monotonic()
    count = many.num_samples or 0
    random_seed = settings.seed if many.random_classes else None
    with (
        interruptible(lambda: _kept_shards(out), leads=world.leads),
        progress(count, shown=world.leads) as (bar, task),
    ):
        sampled = fc.sampling.sample_shards(
            source,
            runs.many_conditions(source, count, settings.conditions, many.prompts, random_seed),
            out,
            num_steps=settings.num_steps,
            plan=plan,
            guidance=settings.guidance,
            seed=settings.seed,
            shard_size=many.shard_size or 256,
            batch=settings.batch,
            call_size=None if many.exact is False else many.call_size or CALL_SIZE,
            png=bool(many.png),
            on_progress=lambda phase, done, _: bar.update(task, description=phase, completed=done),
        )
    if world.leads and as_json:
        emit(sampled.record)
    elif world.leads:
        _say_shards(sampled, plan, unasked, time.monotonic() - started)


def _kept_shards(out: Path) -> str:
    count = len(list(out.glob("shards/*.safetensors")))
    return f"{count} finished shards are kept in {out}: the same command continues."


def _say_shards(sampled: fc.sampling.Sampled, plan: fc.Plan | None, unasked: str, seconds: float) -> None:
    if plan is not None:
        say(f"{_description(plan)}\n{unasked}".rstrip())
    if sampled.damaged:
        say(f"Damaged shards that were sampled again: {', '.join(map(str, sampled.damaged))}.")
    others = sampled.shards - len(sampled.made)
    say(
        f"Sampled {len(sampled.made)} of {sampled.shards} shards; {others} existed already or were sampled by other "
        "processes."
    )
    record = sampled.record or {}
    if len(record["made_on"]) > 1:
        say("The shards come from different hardware or versions, so their bytes may differ by rounding:")
        for place, shards in record["made_on"].items():
            say(f"  {shards} shards: {place}")
    if decided := record.get("decided"):
        picture, count = next(iter(decided.items()))
        kinds = f"{len(decided)} ways" if len(decided) > 1 else "one way"
        say(f"Decided while it ran, in {kinds}; {count} of {sum(decided.values())} generations:\n{picture}")
    size = "x".join(map(str, record["shape"]))
    say(f"{sampled.images}: {size} uint8 and labels ({seconds:.1f} s).")
