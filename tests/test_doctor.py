import sys

from afactl.doctor import examine


def test_everything_needed_is_reported():
    found = {finding.what: finding for finding in examine()}
    assert {"afactl", "python", "torch", "CUDA", "numpy", "pydensecrf2", "pycocotools", "C++ compiler", "cache folder"} <= set(found)
    assert not found["torch"].broken and not found["numpy"].advice


def test_what_is_missing_comes_with_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    monkeypatch.setitem(sys.modules, "h5py", None)
    found = {finding.what: finding for finding in examine()}
    assert "pip install 'afactl[coco]'" in found["pycocotools"].advice and not found["pycocotools"].broken
    assert found["h5py"].broken


def test_a_folder_without_rights_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "deep" / "er"))
    monkeypatch.setattr("os.access", lambda *arguments: False)
    found = {finding.what: finding for finding in examine()}
    assert "not writable" in found["cache folder"].found and "AFACTL_CACHE" in found["cache folder"].advice
