"""All that is to be known of a GPU, as one page: python benchmarks/gpu_report.py [--out FILE] [--device cuda] [--quick]

Speed of the training step of `voc` and where its time goes, waits of the host, memory, labels against the CPU, a
whole training of the demo, and the tests marked gpu. Generated data only; nothing is fetched. A section that fails
says so and the others go on; the page is written again after every one. --quick takes small sizes and tries the
script itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402  (found by the path above)

from afactl.machine.devices import Answers, choose_device, peak_memory  # noqa: E402  (found by the path above)
from afactl.method.schedule import Phase  # noqa: E402  (found by the path above)
from afactl.network.model import AFA  # noqa: E402  (found by the path above)
from afactl.presets import load_preset  # noqa: E402  (found by the path above)
from afactl.training import step as training_step  # noqa: E402  (found by the path above)
from afactl.training.optimizer import build_optimizer  # noqa: E402  (found by the path above)

Precision = tuple[str, bool, bool, torch.dtype]
# Title, TF32 in matrix products, TF32 in convolutions, and the precision of autocast.
PRECISIONS: tuple[Precision, ...] = (
    ("float32", False, False, torch.float32),
    ("float32, TF32 in convolutions (as torch sets it)", False, True, torch.float32),
    ("float32, TF32 everywhere", True, True, torch.float32),
    ("bfloat16", False, True, torch.bfloat16),
)
# Where the time of a step goes: (row, module, attribute). Rows that lie inside others are told apart by the caller.
PARTS = (
    ("CAM passes", "afactl.network.model", "AFA.multi_scale_cam"),
    ("random walk", "afactl.method.pseudo_labels", "random_walk"),
    ("random walk", "afactl.method.side_by_side", "random_walk"),
    ("PAR", "afactl.method.refinement.stacks", "pixel_adaptive_refinement"),
    ("PAR", "afactl.method.refinement.stacks", "refine_together"),
    ("energy loss (forward)", "afactl.training.step", "energy_loss"),
    ("affinity labels", "afactl.training.step", "affinity_label"),
    ("affinity loss", "afactl.training.step", "affinity_loss"),
    ("segmentation loss", "afactl.training.step", "segmentation_loss"),
    ("refined labels, all", "afactl.training.step", "refined_label"),
    ("propagated labels, all", "afactl.training.step", "propagated_label"),
)


class Page:
    """A page in Markdown that is on the disk after every line."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    def add(self, *lines: str) -> None:
        self.lines += lines
        print(*lines, sep="\n", flush=True)
        self.path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def section(self, title: str, job: Callable[[], None]) -> None:
        """A section; an error becomes a line of it."""
        self.add("", f"## {title}", "")
        start = time.perf_counter()
        try:
            job()
        except Exception as error:
            traceback.print_exc()
            self.add("", f"**failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}**")
        self.add("", f"({time.perf_counter() - start:.0f} s)")


def synchronize(device: torch.device) -> None:
    module = getattr(torch, device.type)
    if hasattr(module, "synchronize") and device.type != "cpu":
        module.synchronize()


class Training:
    """The step of `voc` on generated pictures."""

    def __init__(
        self, device: torch.device, backbone: str, batch: int, side: int, changes: tuple[str, ...] = ()
    ) -> None:
        from ratio import picture

        torch.manual_seed(0)
        self.device, self.batch, self.preset = device, batch, load_preset("voc", list(changes))
        self.model = AFA(backbone, 20).to(device).train()
        self.optimizer = build_optimizer(self.model, self.preset)
        image = torch.stack([picture(side, side, seed) for seed in range(batch)]).to(torch.uint8)
        label = torch.zeros(batch, 20)
        # One to three classes a photo, as in VOC.
        label[:, 3] = label[::2, 7] = label[::4, 12] = 1
        # Half of the views of a job are padded. Label and box stay with the host, as the job leaves them.
        box = torch.tensor([[0, side, 0, side - (side // 4 if number % 2 else 0)] for number in range(batch)])
        self.inputs = [image.to(device), *(one.pin_memory() if device.type == "cuda" else one for one in (label, box))]

    def step(self, phase: Phase, precision: torch.dtype, clock: Callable | None = None) -> None:
        """One step with its update, as the job does it; `clock(name)` times a part."""
        clock = clock or (lambda name: contextlib.nullcontext())
        self.optimizer.zero_grad(set_to_none=True)
        train = self.preset.train.model_copy(update={"precision": str(precision).removeprefix("torch.")})
        preset = self.preset.model_copy(update={"train": train})
        terms = training_step.training_losses(self.model, *self.inputs, phase, preset)
        total = sum(getattr(self.preset.loss, name) * term for name, term in terms.items())
        answers = Answers(torch.stack([*terms.values(), total]).detach())
        with clock("backward"):
            total.backward()
        self.losses = answers.read().tolist()
        with clock("optimizer"):
            self.optimizer.step()

    def seconds(self, phase: Phase, precision: torch.dtype, rounds: int) -> tuple[float, float]:
        """Seconds per step, and those of them after which the host has handed all of it over."""
        for _ in range(2):
            self.step(phase, precision)
        synchronize(self.device)
        start = time.perf_counter()
        handed = 0.0
        for _ in range(rounds):
            before = time.perf_counter()
            self.step(phase, precision)
            handed += time.perf_counter() - before
        synchronize(self.device)
        return (time.perf_counter() - start) / rounds, handed / rounds


@contextlib.contextmanager
def products(matmul: bool, convolutions: bool) -> Iterator[None]:
    """TF32 on or off inside the block."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def speed(page: Page, training: Training, rounds: int, precisions: Sequence[Precision] = PRECISIONS) -> None:
    """Photos per second by phase and precision, and what 20,000 steps take."""
    schedule = training.preset.train
    steps = {
        Phase.CLASSIFICATION: schedule.cls_warmup_iters,
        Phase.REFINED: schedule.aff_warmup_iters,
        Phase.PROPAGATED: schedule.max_iters - schedule.cls_warmup_iters - schedule.aff_warmup_iters,
    }
    page.add("| precision | phase | ms per step | host is done after | photos/s |", "|---|---|---|---|---|")
    totals = []
    for title, matmul, convolutions, precision in precisions:
        with products(matmul, convolutions):
            total = 0.0
            for phase, count in steps.items():
                taken, handed = training.seconds(phase, precision, rounds)
                total += count * taken
                times = f"{1000 * taken:.1f} | {1000 * handed:.1f} ms | {training.batch / taken:.1f}"
                page.add(f"| {title} | {phase.value} | {times} |")
        totals.append(f"| {title} | {total / 60:.1f} min |")
    page.add("", f"| precision | {schedule.max_iters} steps, calculated |", "|---|---|", *totals)


def memory(page: Page, make: Callable[[], Training]) -> None:
    """The most that is held during a step of the last phase, by precision."""
    page.add("| precision | peak memory of the third phase, GiB |", "|---|---|")
    for title, matmul, convolutions, precision in (PRECISIONS[0], PRECISIONS[-1]):
        training = make()
        module = getattr(torch, training.device.type)
        for name in ("empty_cache", "reset_peak_memory_stats"):
            if hasattr(module, name):
                getattr(module, name)()
        with products(matmul, convolutions):
            for _ in range(3):
                training.step(Phase.PROPAGATED, precision)
        synchronize(training.device)
        page.add(f"| {title} | {(peak_memory(training.device) or 0) / 2**30:.2f} |")


def parts(page: Page, training: Training, rounds: int) -> None:
    """Where a step of the last phase spends its time, with the device waited for around every part."""
    device = training.device
    spent: dict[str, float] = {}

    @contextlib.contextmanager
    def clock(name: str) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        yield
        synchronize(device)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - start

    def clocked(function: Callable, name: str) -> Callable:
        def call(*arguments, **options):
            with clock(name):
                return function(*arguments, **options)

        return call

    columns = {}
    for title, matmul, convolutions, precision in (PRECISIONS[0], PRECISIONS[-1]):
        spent.clear()
        with contextlib.ExitStack() as stack:
            stack.enter_context(products(matmul, convolutions))
            for name, module, attribute in PARTS:
                holder: object = sys.modules[module] if module in sys.modules else __import__(module, fromlist=["x"])
                *owners, attribute = attribute.split(".")
                for owner in owners:
                    holder = getattr(holder, owner)
                original = getattr(holder, attribute)
                setattr(holder, attribute, clocked(original, name))
                stack.callback(setattr, holder, attribute, original)
            training.step(Phase.PROPAGATED, precision)
            spent.clear()
            for _ in range(rounds):
                with clock("whole step"):
                    training.step(Phase.PROPAGATED, precision, clock)
        columns[title] = {name: 1000 * value / rounds for name, value in spent.items()}
    page.add("| part, ms | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns))
    for name in dict.fromkeys(["whole step", *[row for row, _, _ in PARTS], "backward", "optimizer"]):
        cells = []
        for values in columns.values():
            whole = values["whole step"]
            cells.append(f"{values[name]:.1f} ({100 * values[name] / whole:.0f} %)" if name in values else "-")
        page.add(f"| {name} | " + " | ".join(cells) + " |")
    page.add(
        "",
        "PAR and walk lie inside the labels. What is missing is the pass with gradients (classification, decoder, "
        "affinity). The device is waited for around every part, so the sum is above an undisturbed step.",
    )


def waits(page: Page, training: Training) -> None:
    """What makes the host wait for the device in a step, by torch's own report."""
    if training.device.type != "cuda":
        page.add("torch reports waits for CUDA only.")
        return
    page.add("| phase | waits of the host in a step |", "|---|---|")
    places: dict[str, int] = {}
    for phase in Phase:
        training.step(phase, torch.float32)
        synchronize(training.device)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                training.step(phase, torch.float32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen = [one for one in seen if "synchroniz" in str(one.message)]
        page.add(f"| {phase.value} | {len(seen)} |")
        for one in seen:
            place = f"{Path(one.filename).name}:{one.lineno}"
            places[place] = places.get(place, 0) + 1
    page.add("", "Where: " + (", ".join(f"{place} ({count})" for place, count in places.items()) or "nowhere"))


def launches(page: Page, training: Training) -> None:
    """Operations that a step dispatches, and kernels that run on the device for it."""
    from torch.profiler import ProfilerActivity, profile

    page.add("| phase | launches | kernels and copies | their time, ms |", "|---|---|---|---|")
    for phase in Phase:
        training.step(phase, torch.float32)
        synchronize(training.device)
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            training.step(phase, torch.float32)
            synchronize(training.device)
        events = profiled.events()
        launched = sum(one.name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync")) for one in events)
        kernels = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA]
        busy = sum(one.time_range.elapsed_us() for one in kernels) / 1000
        page.add(f"| {phase.value} | {launched} | {len(kernels)} | {busy:.1f} |")


def demo(page: Page, device: torch.device, folder: Path, changes: list[str]) -> None:
    """A whole training of the demo on the device, which the comparison of labels then uses."""
    from afactl.training.launch import Request, start

    for precision in ("float32", "bfloat16"):
        run = folder / precision
        preset = load_preset("demo", [*changes, f"train.precision={precision}"])
        done = start(Request(preset, out=run, device=str(device)))
        scores = {name: round(value, 1) for name, value in (done.validation or {}).items()}
        page.add(f"- {precision}: {done.steps} steps in {done.seconds:.0f} s, validation included: {scores}")


def labels(
    page: Page, device: torch.device, run: Path, photos: int, precisions: Sequence[Precision] = PRECISIONS
) -> None:
    """The share of pixels with the same label on the CPU and on the device."""
    from agreement import agreement

    columns = {}
    for title, matmul, convolutions, precision in precisions:
        with products(matmul, convolutions):
            columns[title] = agreement(run, device, precision, photos)
    page.add("| pixels with the label of the CPU in float32, % | " + " | ".join(columns) + " |")
    page.add("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        page.add(f"| {name} | " + " | ".join(f"{100 * column[name]:.3f}" for column in columns.values()) + " |")


def tests(page: Page, device: str, seconds: float, only: str | None) -> None:
    """The tests marked gpu, in a process of their own."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--durations=5", "-s"]
    command += [str(ROOT / "tests" / "test_gpu.py"), *(["-k", only] if only else [])]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "AFACTL_TEST_DEVICE": device}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        code = -1
    print(output[-6000:], flush=True)
    lines = [
        line for line in output.splitlines() if line.startswith(("FAILED", "ERROR", "E  ", "{")) or " in " in line[-20:]
    ]
    page.add(
        f"exit code {code}{' (time is up)' if code == -1 else ''}",
        "",
        "```",
        *[line[:200] for line in lines[-40:]],
        "```",
    )


def card(device: torch.device) -> str:
    """The name of the device."""
    module = getattr(torch, device.type)
    return module.get_device_name(0) if hasattr(module, "get_device_name") else device.type


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="small sizes: tries the script")
    parser.add_argument("--sections", default="", help="only those whose title has one of these words, by commas")
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    device = choose_device(chosen.device)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    page = Page(chosen.out)
    quick = chosen.quick
    precisions = [PRECISIONS[0], PRECISIONS[-1]] if quick else PRECISIONS
    backbone, batch, side, rounds = ("mit_demo", 2, 64, 1) if quick else ("mit_b1", 8, 512, 8)
    name = {"mit_b1": "MiT-B1"}.get(backbone, backbone)
    page.add(
        f"# {card(device)}, {time.strftime('%Y-%m-%d')}",
        "",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, "
        f"{os.cpu_count()} CPU cores. `voc`, {name}, batch {batch}, crop {side}, one to three classes a photo; "
        "loading not included.",
    )

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["AFACTL_CACHE"] = str(folder / "cache")
        made: list[Training] = []

        def training() -> Training:
            if not made:
                made.append(Training(device, backbone, batch, side, changes_of_step))
            return made[0]

        changes_of_step = ("par.iterations=1",) if quick else ()
        steps = "4" if quick else "300"
        changes = [f"train.max_iters={steps}", f"train.eval_iters={steps}", f"train.checkpoint_iters={steps}"]
        changes += ["train.cls_warmup_iters=2", "train.aff_warmup_iters=1"] if quick else []
        if quick:
            from afactl.datasets.demo import generate

            changes += ["train.batch_size=2", "train.crop_size=64", "par.iterations=1"]
            changes += [f"data.root={generate(folder / 'data', train=4, val=2, size=64)}"]
        changes += [] if quick else ["train.cls_warmup_iters=150", "train.aff_warmup_iters=50"]
        sections = {
            "Speed": lambda: speed(page, training(), rounds, precisions),
            "Parts of a step of the third phase": lambda: parts(page, training(), max(1, rounds // 2)),
            "Waits of the host": lambda: waits(page, training()),
            "Memory": lambda: memory(page, lambda: Training(device, backbone, batch, side, changes_of_step)),
            "Demo": lambda: demo(page, device, folder, changes),
            "Labels against the CPU": lambda: labels(page, device, folder / "float32", 1 if quick else 20, precisions),
            "Launches": lambda: launches(page, training()) if device.type == "cuda" else page.add("CUDA only."),
            "Tests": lambda: tests(page, chosen.device, 600 if quick else 300, "step" if quick else None),
        }
        wanted = [word.lower() for word in chosen.sections.split(",") if word]
        for title, job in sections.items():
            if title == "Memory":
                made.clear()  # its own network would be counted
            if not wanted or any(word in title.lower() for word in wanted):
                page.section(title, job)
    page.add("", f"Whole report: {time.perf_counter() - started:.0f} s.")
    return int(bool(re.search(r"\*\*failed|exit code (?!0)", "\n".join(page.lines))))


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        if "standin" in sys.argv:
            from tests.stand_in_accelerator import stand_in

            stack.enter_context(stand_in())
        sys.exit(main())
