import importlib
import json
import sys
from importlib.metadata import EntryPoint

from afactl.cli.doctor import examine
from tests.cli.conftest import refused


def test_everything_needed_is_reported():
    found = {finding.what: finding for finding in examine()}
    assert {
        "afactl",
        "python",
        "torch",
        "CUDA",
        "numpy",
        "pydensecrf2",
        "pycocotools",
        "C++ compiler",
        "cache folder",
    } <= set(found)
    assert not found["torch"].broken and not found["numpy"].advice


def test_the_weights_of_the_presets_are_told(monkeypatch):
    monkeypatch.setattr("afactl.runs.weights_at_hand.fetched_repositories", lambda: {"nvidia/mit-b1"})
    found = {finding.what: finding.found for finding in examine()}
    assert found["weights hf:nvidia/mit-b1"].startswith("here; NVIDIA Source Code License, non-commercial")
    assert found["weights timm, pvt_v2_b1"] == "to be fetched; apache-2.0 (ImageNet-1k); for voc-pvtv2-b1"


def test_what_is_missing_comes_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    found = {finding.what: finding for finding in examine()}
    assert "pip install 'afactl[coco]'" in found["pycocotools"].advice and not found["pycocotools"].broken
    assert found["h5py"].broken and found["huggingface_hub"].broken


def test_what_packages_add_is_listed_and_what_is_broken_is_no_failure(monkeypatch):
    points = {
        "afactl.refiners": (EntryPoint("fine", "math:cos", "afactl.refiners"),),
        "afactl.writers": (EntryPoint("odd", "no_such_module:x", "afactl.writers"),),
    }
    monkeypatch.setattr("afactl.registry.installed", lambda group: points.get(group, ()))
    found = {finding.what: finding for finding in examine()}
    assert not found["cam.refiner fine"].advice and not found["--format odd"].broken
    assert "cannot be imported (ModuleNotFoundError" in found["--format odd"].advice


def test_a_folder_without_rights_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "deep" / "er"))
    monkeypatch.setattr("os.access", lambda *arguments: False)
    found = {finding.what: finding for finding in examine()}
    assert "not writable" in found["cache folder"].found and "AFACTL_CACHE" in found["cache folder"].advice


def test_little_shared_memory_is_told(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 64e6})())
    found = {finding.what: finding for finding in examine()}
    assert "--shm-size" in found["shared memory"].advice and "less than 2 GB" in found["cache folder"].advice


def test_a_torchvision_for_another_torch_is_told(monkeypatch):
    original = importlib.import_module

    def broken(name):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return original(name)

    versions = importlib.metadata.version
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name: "0.20.1+cu121" if name == "torchvision" else versions(name)
    )
    monkeypatch.setattr("importlib.import_module", broken)
    found = {finding.what: finding for finding in examine()}["torchvision"]
    assert "does not go with torch" in found.found and "nms does not exist" in found.found and "\n" not in found.found
    assert "pip install --force-reinstall torch torchvision" in found.advice and not found.broken


def test_doctor_reports(call):
    code, out, _ = call("doctor")
    assert code == 0 and "torch" in out and "CUDA" in out


def test_the_report_as_a_file(call, tmp_path):
    code, out, _ = call("doctor", "--json", tmp_path / "d.json")
    found = {line["what"]: line for line in json.loads((tmp_path / "d.json").read_text())}
    assert code == 0 and found["torch"]["found"].split(",")[0] in out and found["torch"]["broken"] is False
    assert found["python"].keys() == {"what", "found", "advice", "broken"}
    refused(call("doctor", "--json", tmp_path / "d.json"), 2, "is there already")
