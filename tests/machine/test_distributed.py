"""Two processes that share a job against one process that does it alone."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from afactl.errors import CacheError
from afactl.inference.cams import cam_cache_path, dump_cams, open_cam_cache
from afactl.inference.trained_run import open_run, open_split
from afactl.machine.distributed import Shares, all_gather, all_reduce, all_reduce_array, broadcast, shard, step_shares
from afactl.network.batch_norm import BatchNorm
from afactl.prediction.predict import find_photos, predict
from afactl.prediction.unfinished import Unfinished
from afactl.presets import load_preset
from afactl.runs.checkpoints import find_checkpoint, load_model
from afactl.runs.metrics import read_metrics
from afactl.training.job import Job
from afactl.training.observers.metrics_file import MetricsFile
from afactl.training.prepared import prepare
from tests.conftest import TINY


def _member(rank, size, port, function, arguments, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def together(folder, size, function, *arguments):
    """What `function` gives on each of so many processes."""
    folder.mkdir()
    port = 20000 + os.getpid() % 20000
    torch.multiprocessing.spawn(_member, (size, port, function, arguments, str(folder)), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def small_functions():
    rank = dist.get_rank()
    return {
        "share": list(shard(list(range(7)))),
        "total": all_reduce(torch.tensor([rank, 1])),
        "counts": all_reduce_array(np.full((2, 2), rank + 1)).tolist(),
        "first": broadcast(["ü", "b"] if rank == 0 else []),
        "all": all_gather(["ü" * rank, f"{rank}"] * rank),
    }


def test_shares_sums_and_texts(tmp_path):
    found = together(tmp_path / "p", 3, small_functions)
    assert sorted(item for one in found for item in one["share"]) == list(range(7)), (
        "each item once, though 3 does not divide 7"
    )
    for one in found:
        assert one["total"].tolist() == [3, 3] and one["counts"] == [[6, 6], [6, 6]] and one["first"] == ["ü", "b"]
        assert one["all"] == ["ü", "1", "üü", "2", "üü", "2"], "the first one gives nothing"
    assert shard("abc") == "abc" and all_reduce(torch.tensor(2)) == 2 and broadcast(["a"]) == ["a"], "alone"


@pytest.mark.parametrize(
    ("batch", "effective", "processes", "expected"),
    [
        (8, 8, 1, (8, 1)),
        (8, 8, 2, (4, 1)),
        (2, 8, 2, (2, 2)),
        (8, None, 2, (8, 1)),
        (4, 10, 2, (4, 2)),
        (2, 3, 1, (2, 2)),
        (8, 3, 4, (1, 1)),
    ],
)
def test_the_effective_batch_is_shared_out(batch, effective, processes, expected):
    shares = step_shares(batch, effective, processes)
    assert shares == Shares(*expected, processes) and shares.photos >= (effective or 0)


def normalised(halves):
    """Output, gradient and statistics of a batch norm over this process's part of the batch."""
    x = (halves[dist.get_rank()] if dist.is_initialized() else torch.cat(halves)).clone().requires_grad_()
    norm = BatchNorm(x.shape[1])
    out = norm(x)
    (out * torch.arange(out[0].numel()).reshape(out.shape[1:]).sin()).sum().backward()
    return {
        "out": out.detach(),
        "grad": x.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "tracked": norm.num_batches_tracked,
    }


def test_batch_norm_takes_the_statistics_of_all(tmp_path):
    torch.manual_seed(0)
    halves = [3 + torch.randn(2, 4, 5, 6), torch.randn(1, 4, 5, 6)]  # parts need not be equal
    whole, parts = normalised(halves), together(tmp_path / "p", 2, normalised, halves)
    for name in ("out", "grad"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], atol=1e-5, rtol=1e-5)
    for part in parts:
        for name in ("mean", "var", "tracked"):
            torch.testing.assert_close(part[name], whole[name], atol=1e-6, rtol=1e-5)


FIVE = [
    *TINY,
    "train.max_iters=5",
    "train.cls_warmup_iters=1",
    "train.aff_warmup_iters=2",
    "train.effective_batch=4",
    "model.drop_path=0",
    "train.eval_iters=5",
    "loss.reg=0.01",
]


def five_steps(data, run, batch_size, part):
    """Weights after five steps, one in the first phase and two in each other one."""
    Path(run).mkdir(exist_ok=True)
    sizes = [f"train.batch_size={batch_size}", f"loss.part_photos={part}"]
    preset = load_preset("demo", [*FIVE, f"data.root={data}", *sizes])
    prepared = prepare(preset, torch.device("cpu"))
    # Noise is drawn by each process for itself; without it the steps must be the same.
    prepared.model.decoder.dropout.p = 0.0
    # A bias before a batch norm has no effect and no gradient but rounding, of which AdamW makes whole steps.
    for projection in prepared.model.decoder.project:
        projection.bias.requires_grad_(False)
    Job(prepared, Path(run), (MetricsFile(Path(run)),)).run_steps()
    return dict(prepared.model.state_dict())


# A pixel at a threshold turns over by rounding, and weighs more in a part of two photos; taken by process instead, the
# parts change the losses by .01 and more.
@pytest.mark.parametrize(("part", "near"), [("null", 1e-5), ("2", 2e-4)])
def test_two_processes_take_the_steps_of_one(tmp_path, tiny_data, part, near):
    alone = five_steps(str(tiny_data), str(tmp_path / "alone"), 4, part)
    one, two = together(tmp_path / "p", 2, five_steps, str(tiny_data), str(tmp_path / "shared"), 2, part)
    for name, expected in alone.items():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], expected, atol=1e-5, rtol=0, msg=name)
    for mine, theirs in zip(read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "shared"), strict=True):
        assert mine.keys() == theirs.keys(), "rank 0 alone writes, each line once"
        for key in mine:
            if key.startswith("loss"):
                assert theirs[key] == pytest.approx(mine[key], abs=near), key
    assert mine["val_seg_miou"] == pytest.approx(theirs["val_seg_miou"], abs=1.0)


def torchrun(size, *arguments):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(size),
        "-m",
        "--",
        "afactl",
        *map(str, arguments),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_commands_share_images_and_merge_their_results(tmp_path, run_copy, tiny_data):
    """Three processes, eight images, four images: the counts do not divide."""
    first = torchrun(3, "dump-cams", "--run", run_copy, "--split", "train")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("8 images, 8 of them made now") == 1, "told once"
    run = open_run(run_copy, torch.device("cpu"))
    split = open_split(run, "train", None, masks=False)
    with open_cam_cache(run, split) as cache:
        assert sorted(cache.ids()) == sorted(sample.image_id for sample in split.samples)
    assert [path.name for path in cam_cache_path(run, "train").parent.iterdir() if "part" in path.name] == []

    scored = torchrun(3, "eval", "--run", run_copy, "--json", tmp_path / "three.json")
    assert scored.returncode == 0, scored.stderr
    alone = subprocess.run(
        [sys.executable, "-m", "afactl", "eval", "--run", run_copy, "--json", tmp_path / "one.json"],
        capture_output=True,
        text=True,
    )
    assert alone.returncode == 0 and json.loads((tmp_path / "three.json").read_text()) == json.loads(
        (tmp_path / "one.json").read_text()
    )

    made = torchrun(
        3,
        "predict",
        tiny_data / "images/val",
        "--run",
        run_copy,
        "--out",
        tmp_path / "masks",
        "--format",
        "voc-server",
        "--overlay",
    )
    assert made.returncode == 0 and "4 of 4 photos" in made.stdout, made.stderr
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == [
        *(f"000{i}_overlay.png" for i in range(4)),
        "results.zip",
    ]


def predicted_again(folder, photos, out):
    """What the second call finds done; the first one is killed when all masks are there."""
    run = open_run(Path(folder), torch.device("cpu"))
    found, finish = find_photos([photos]).photos, Unfinished.finish

    def killed(record):
        record.close()
        raise KeyboardInterrupt

    Unfinished.finish = killed
    with contextlib.suppress(KeyboardInterrupt):
        predict(run, found, Path(out))
    Unfinished.finish = finish
    dist.barrier()
    return {"kept": predict(run, found, Path(out)).kept}


def test_what_was_done_before_a_stop_is_counted_over_all_processes(tmp_path, run_copy, tiny_data):
    arguments = str(run_copy), str(tiny_data / "images/val"), str(tmp_path / "masks")
    assert together(tmp_path / "p", 2, predicted_again, *arguments) == [{"kept": 4}, {"kept": 4}]


def dumped(folder):
    """Rank 1 tries to get at the cache in the middle of the work."""
    run = open_run(Path(folder), torch.device("cpu"))
    split = open_split(run, "train", None, masks=False)
    refused = []

    def track(samples):
        for sample in samples:
            if dist.get_rank() == 1:
                try:
                    open_cam_cache(run, split).close()
                except CacheError as error:
                    refused.append("another process is writing it" in str(error))
            yield sample

    return {"made": dump_cams(run, split, track=track)[2], "refused": refused}


def test_nobody_else_gets_the_cache_before_all_are_done(tmp_path, run_copy):
    one, two = together(tmp_path / "p", 2, dumped, str(run_copy))
    assert one["made"] == two["made"] == 8 and two["refused"] == [True] * 4


def test_parts_of_a_killed_dump_are_taken_in(run_copy):
    run = open_run(run_copy, torch.device("cpu"))
    split = open_split(run, "train", None, masks=False)
    first = torchrun(2, "dump-cams", "--run", run_copy, "--split", "train")
    assert first.returncode == 0, first.stderr
    path = cam_cache_path(run, "train")
    # As a kill before the end leaves it: the images lie in a part, the cache is empty.
    path.rename(path.with_name("cams-train.part-1.h5"))
    path.with_name("cams-train.part-0.h5").write_bytes(b"cut off")
    again = torchrun(2, "dump-cams", "--run", run_copy, "--split", "train")
    assert again.returncode == 0 and "8 images, 0 of them made now" in again.stdout, again.stderr
    with open_cam_cache(run, split) as cache:
        assert len(cache) == 8


def test_a_process_that_dies_ends_the_job_with_its_message(tmp_path, tiny_data):
    """Rank 1 alone finds its photo missing."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys\nfrom afactl.training.updater import Updater\nfrom afactl.cli.main import main\n"
        "from afactl.errors import AfactlError\n"
        "take = Updater.take\n"
        "def dies(self, step, batches):\n"
        "    if step == 2 and os.environ['RANK'] == '1':\n        raise AfactlError('the disk of rank 1 has gone')\n"
        "    return take(self, step, batches)\n"
        "Updater.take = dies\nmain(sys.argv[1:])\n"
    )
    start = time.monotonic()
    sets = [text for change in TINY for text in ("--set", change)]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
            "train",
            "demo",
            "--data",
            str(tiny_data),
            "--out",
            str(tmp_path / "run"),
            *sets,
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode != 0 and time.monotonic() - start < 60
    assert "error: rank 1: the disk of rank 1 has gone" in done.stderr


def stopped_in_one(data, run):
    """Rank 1 is asked to stop in the middle of its third step."""
    job = Job(prepare(load_preset("demo", [*FIVE, f"data.root={data}"]), torch.device("cpu")), Path(run))
    take, seen = job.updater.take, []

    def asked(step, batches):
        seen.append(step)
        if len(seen) == 3 and dist.get_rank() == 1:
            job.stop.set()
        return take(step, batches)

    job.updater.take = asked
    try:
        job.run_steps()
    except KeyboardInterrupt:
        return {"steps": len(seen)}
    return {"steps": None}


def test_a_stop_of_one_process_is_the_stop_of_all(tmp_path, tiny_data):
    (tmp_path / "run").mkdir()
    assert together(tmp_path / "p", 2, stopped_in_one, str(tiny_data), str(tmp_path / "run")) == [
        {"steps": 3},
        {"steps": 3},
    ]
    assert load_model(find_checkpoint(tmp_path / "run").folder)[2] == 3, "rank 0 wrote where all stopped"


def test_one_process_of_torchrun_works_alone(run_copy):
    done = torchrun(1, "ablate", "table4", "--run", run_copy, "--split", "val")
    assert done.returncode == 0 and "5 rows measured now" in done.stdout, done.stderr


def test_a_command_that_cannot_share_its_work_says_so():
    done = torchrun(2, "ablate", "table2")
    assert (
        done.returncode != 0
        and "afactl ablate: runs in one process; only train, dump-cams, predict, eval" in done.stderr
    )
