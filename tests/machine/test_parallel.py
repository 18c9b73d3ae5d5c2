import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from afactl.errors import ShapeError
from afactl.machine.parallel import WORTHWHILE, ordered_map, processes_for
from afactl.method.refinement.crf import DenseCrf, crf_label, dense_crf


def square(number):
    return number * number, os.getpid(), torch.get_num_threads()


def fail_on_three(number):
    if number == 3:
        raise ShapeError("three")
    return number


def test_results_come_in_order_from_other_processes_with_one_thread_each():
    found = list(ordered_map(square, range(12), 2))
    assert [value for value, _, _ in found] == [n * n for n in range(12)]
    assert os.getpid() not in {pid for _, pid, _ in found} and {threads for *_, threads in found} == {1}


def test_one_process_is_this_one_and_lazy():
    results = ordered_map(square, iter(range(3)), 1)
    assert next(results)[:2] == (0, os.getpid())


def test_items_are_taken_a_few_at_a_time():
    taken = []
    results = ordered_map(square, (taken.append(n) or n for n in range(40)), 2)
    next(results)
    assert len(taken) == 5
    results.close()


def test_an_error_in_a_process_is_the_error_here():
    with pytest.raises(ShapeError, match="three"):
        list(ordered_map(fail_on_three, range(12), 2))


def test_the_crf_gives_the_same_in_processes():
    torch.manual_seed(0)
    photos = [(torch.randint(0, 256, (3, 12, 16), dtype=torch.uint8), torch.rand(3, 12, 16)) for _ in range(4)]
    found = list(ordered_map(partial(crf_label, backend="torch", settings=DenseCrf(iterations=3)), photos, 2))
    for label, (image, logits) in zip(found, photos, strict=True):
        assert torch.equal(label, dense_crf(image, logits.softmax(0), DenseCrf(iterations=3)).argmax(0).to(torch.uint8))


def test_few_items_and_gpus_stay_in_this_process(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert processes_for(WORTHWHILE, torch.device("cpu")) == 8
    assert processes_for(WORTHWHILE - 1, torch.device("cpu")) == 1
    assert processes_for(WORTHWHILE, torch.device("cuda")) == 1


def test_a_program_ends_without_a_word():
    code = "import math\nfrom afactl.machine.parallel import ordered_map\n"
    code += "if __name__ == '__main__': print(sum(ordered_map(math.sqrt, [4] * 30, 2)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "60.0" and result.stderr == ""
