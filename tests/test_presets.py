import json
import re
from pathlib import Path

import pydantic
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.errors import PresetError
from afactl.network.backbones import build_backbone, require_whole_tokens
from afactl.presets import (
    SYNONYMS,
    Preset,
    as_override,
    changed_preset,
    differences,
    field_names,
    find_preset,
    load_preset,
    preset_names,
    preset_summary,
    save_preset,
    weights_licence,
)
from afactl.runs.checkpoints import Architecture


def test_the_main_presets_come_first_then_those_of_the_comparisons():
    others = [
        "coco-authors",
        "voc-authors",
        "voc-baseline",
        "voc-rrm",
        "voc-supervised",
        "voc-without-afa",
        "voc-without-reg",
    ]
    backbones = ["voc-clip-b16", "voc-deit-s16", "voc-dinov2-b14", "voc-dinov3-b16", "voc-pvtv2-b1"]
    assert preset_names() == ["coco", "demo", "photos", "voc", *backbones, *others]


def test_each_preset_names_the_licence_of_its_weights():
    """Those of timm as timm has it."""
    assert weights_licence("demo").startswith("none needed") and load_preset("demo").model.init == "none"
    for name in preset_names():
        model = load_preset(name).model
        if model.init == "timm":
            published = timm.get_pretrained_cfg(model.backbone.removeprefix("hybrid:"))
            assert weights_licence(name).split(" ")[0] == published.license, name
        elif model.init.startswith("hf:nvidia"):
            assert "non-commercial" in weights_licence(name), name


@pytest.mark.parametrize("name", [name for name in preset_names() if "-b1" in name or "-s16" in name])
def test_a_preset_with_another_backbone_is_voc_in_all_that_it_does_not_name(name):
    preset = load_preset(name)
    changed = {line.split(":")[0] for line in differences(load_preset("voc"), preset)}
    assert {"model.backbone", "model.init"} <= changed
    assert changed <= {"model.backbone", "model.init", "train.crop_size", "optim.lr", "optim.freeze"}
    with torch.device("meta"):
        backbone = build_backbone(preset.model.backbone, 0.1)
    require_whole_tokens(backbone, preset.train.crop_size)


# What the authors' code does otherwise than the paper says, or where the paper is silent.
AUTHORS = {
    "model.head_init",
    "train.cam_passes",
    "train.refiner_picture",
    "train.cls_warmup_iters",
    "train.validation_size",
    "train.precision",
    "affinity.eps",
    "loss.reg",
    "loss.part_photos",
    "optim.idle_heads",
}


def test_the_authors_recipe_for_coco_differs_from_coco_in_their_choices():
    coco, theirs = load_preset("coco"), load_preset("coco-authors")
    changed = {line.split(":")[0] for line in differences(coco, theirs)}
    assert changed == {*AUTHORS, "train.affinity_label", "train.aff_warmup_iters"}
    assert theirs.train.cls_warmup_iters + theirs.train.aff_warmup_iters == 15001, (
        "their last phase begins after 15,000"
    )


def test_the_comparisons_differ_from_voc_in_what_they_are_named_for():
    voc = load_preset("voc")
    changed = {
        name: {line.split(":")[0] for line in differences(voc, load_preset(name))}
        for name in preset_names()
        if "voc-" in name and "backbones" not in find_preset(name).parts
    }
    assert changed == {
        "voc-authors": {*AUTHORS, "data.labels", "train.batch_size", "train.effective_batch"},
        "voc-baseline": {"cam.refiner", "affinity.enabled", "loss.reg"},
        "voc-rrm": {"cam.refiner", "affinity.enabled"},
        "voc-supervised": {
            "train.supervision",
            "train.cls_warmup_iters",
            "train.aff_warmup_iters",
            "affinity.enabled",
            "loss.seg",
            "loss.reg",
        },
        "voc-without-afa": {"affinity.enabled", "loss.reg"},
        "voc-without-reg": {"loss.reg"},
    }


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_complete_explained_and_builds(name):
    preset, text = load_preset(name), find_preset(name).read_text()
    written = {f"{section}.{key}" for section, keys in yaml.safe_load(text).items() for key in keys}
    assert written == set(field_names()), "a preset is a complete file"
    assert text.startswith(f"# afactl train {name}"), "the header starts with the command"
    assert "easured here" in text.split("data:")[0], "the header says whether its figures were measured"
    assert preset_summary(name)
    model = preset.model
    network = Architecture(model.backbone, ("a", "b"), model.pooling, model.decoder_width, model.drop_path).build()
    assert network.classes == 2


def test_voc_and_the_defaults_are_the_papers():
    preset = load_preset("voc")
    assert differences(Preset(), preset) == ["data.labels: None -> masks"], "which no other format has"
    train, affinity = preset.train, preset.affinity
    assert (train.max_iters, train.batch_size, train.crop_size) == (20000, 8, 512)
    assert (train.cls_warmup_iters, train.cls_warmup_iters + train.aff_warmup_iters) == (2000, 6000)
    assert (preset.cam.beta_high, preset.cam.beta_low, affinity.radius, affinity.alpha) == (0.55, 0.35, 8, 2)
    assert (preset.optim.lr, preset.optim.head_lr_factor, preset.optim.weight_decay) == (6e-5, 10, 0.01)
    assert (preset.loss.cls, preset.loss.seg, preset.loss.aff, preset.loss.reg) == (1, 0.1, 0.1, 0.01)
    coco = load_preset("coco")
    assert (coco.train.max_iters, coco.train.cls_warmup_iters, coco.train.aff_warmup_iters) == (80000, 5000, 15000)
    assert coco.par.iterations == 15


def test_overrides_win_and_are_read_as_yaml():
    preset = load_preset(
        "voc",
        [
            "train.max_iters=7",
            "optim.lr=6e-5",
            "cam.scales=[1.0, 2]",
            "eval.long_side=null",
            "data.root=a=b",
            "model.pooling=25",
        ],
    )
    assert preset.train.max_iters == 7 and preset.cam.scales == (1.0, 2.0)
    assert preset.optim.lr == 6e-5 and preset.eval.long_side is None
    assert preset.data.root == "a=b", "split at the first sign only"
    assert preset.model.pooling == 25.0


def test_exponents_without_a_point_are_numbers_in_files_too(tmp_path):
    (tmp_path / "mine.yaml").write_text("optim: {lr: 1e-4, warmup_ratio: 1E-6}\n")
    assert load_preset(str(tmp_path / "mine.yaml")).optim.lr == 1e-4


@pytest.mark.parametrize("text", ["1e5", "-2.5E+3", ".5e1", "3.e2", "+1e-1", "1.5", "7"])
def test_a_quoted_number_is_text(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(f"model: {{init: {json.dumps(text)}}}\noptim: {{lr: 1e5}}\n")
    preset = load_preset(str(path))
    assert preset.model.init == text and preset.optim.lr == 1e5
    path.write_text(f"loss: {{seg: {text}}}\n".replace("-2", "2"))
    assert load_preset(str(path)).loss.seg == abs(float(text))
    for field in ("optim.lr", "train.max_iters", "model.pooling"):
        with pytest.raises(PresetError, match=f"{field}: expected .*number.*, got '"):
            load_preset("voc", [f'{field}="{text}"'])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('affinity.enabled="yes"', "affinity.enabled: expected true or false, got 'yes'"),
        ("train.seed=true", "train.seed: expected a whole number, got True"),
        ('cam.scales=[1.0, "0.5"]', r"cam.scales: expected a list of numbers, got \[1.0, '0.5'\]"),
        ("data.root=5", "data.root: expected text or null, got 5"),
    ],
)
def test_nothing_of_another_type_is_taken_for_a_value(override, message):
    with pytest.raises(PresetError, match=message):
        load_preset("voc", [override])


@settings(deadline=None)
@given(
    st.text(max_size=20)
    | st.sampled_from(["/data/\N{GRINNING FACE} fotos", "a\udc80b", "null", "1e5", "# x", "\x85\u2028"])
)
def test_any_text_can_be_given_as_an_override_and_is_found_again(tmp_path_factory, text):
    """As `--data` does it; characters that are no UTF-8 come as lone surrogates."""
    preset = load_preset("demo", [as_override("data.root", text)])
    assert preset.data.root == text
    path = tmp_path_factory.mktemp("preset") / "saved.yaml"
    save_preset(preset, path)
    assert load_preset(str(path)) == preset


@given(
    st.integers(1, 10**6),
    st.floats(1e-9, 1e3),
    st.lists(st.integers(1, 99), min_size=1, max_size=5),
    st.none() | st.text(st.characters(blacklist_categories=("Cs", "Cc"))),
)
def test_saving_and_loading_gives_the_same(tmp_path_factory, steps, rate, dilations, root):
    tree = {
        "train": {"max_iters": steps},
        "optim": {"lr": rate},
        "par": {"dilations": dilations},
        "data": {"root": root},
    }
    preset = Preset.model_validate(tree)
    path = tmp_path_factory.mktemp("preset") / "saved.yaml"
    save_preset(preset, path)
    assert load_preset(str(path)) == preset


def test_all_problems_are_told_at_once_with_the_nearest_name():
    with pytest.raises(PresetError) as caught:
        load_preset(
            "voc",
            [
                "train.max_iter=5",
                "optim.lr=fast",
                "trian.seed=1",
                "cam.beta_low=1.5",
                "nothing",
                "eval.scales=[",
                "par.w1={",
            ],
        )
    message = str(caught.value)
    assert '"train.max_iter" is not known; did you mean "train.max_iters"?' in message
    assert "optim.lr: expected a number, got 'fast'" in message
    assert '"trian" is not known; did you mean "train"?' in message
    assert "cam.beta_low: expected a number (input should be less than or equal to 1), got 1.5" in message
    assert "--set nothing: expected section.key=value" in message
    assert "--set eval.scales=[: not readable as YAML" in message and "--set par.w1={: not readable" in message
    assert message.count("presets/voc.yaml") == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("steps=100", "train.max_iters"),
        ("train.epochs=3", "train.max_iters"),
        ("batch=4", "train.batch_size"),
        ("optim.learning_rate=1e-4", "optim.lr"),
        ("train.lr=1e-4", "optim.lr"),
        ("train.weight_decay=0", "optim.weight_decay"),
        ("radius=4", "affinity.radius"),
        ("max_iter=3", "train.max_iters"),
    ],
)
def test_other_words_for_a_key_are_understood_well_enough_to_name_it(given, meant):
    with pytest.raises(PresetError, match=f'did you mean "{re.escape(meant)}"'):
        load_preset("voc", [given])


def test_synonyms_are_no_keys_and_name_keys():
    assert set(SYNONYMS.values()) <= set(field_names())
    own = {name.rpartition(".")[2]: name for name in field_names()}
    assert not {word for word, key in SYNONYMS.items() if word in own and own[word] != key}


def test_a_file_that_cannot_be_read_hides_no_wrong_override(tmp_path):
    (tmp_path / "bad.yaml").write_text("train: [")
    with pytest.raises(PresetError) as caught:
        load_preset(str(tmp_path / "bad.yaml"), ["optim.lr=fast", "par.w1=["])
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/bad.yaml: not readable as YAML") and message.count("bad.yaml") == 1
    assert "optim.lr: expected a number, got 'fast'" in message and "--set par.w1=[: not readable" in message
    with pytest.raises(PresetError) as caught:
        load_preset(str(tmp_path / "bad.yaml"), ["cam.beta_low=0.6"])
    assert "beta_high" not in str(caught.value), "the file may have had one that fits"


def test_all_rules_between_values_are_told_at_once():
    with pytest.raises(PresetError) as caught:
        load_preset("voc", ["cam.beta_low=0.9", "cam.scales=[0.5]", "train.scale_range=[2.0, 1.0]"])
    assert "at most beta_high" in str(caught.value) and "expected 1.0 among them" in str(caught.value)
    assert "affinity.scale: expected one of" in str(caught.value) and "expected [from, to]" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_iters=1.5", "expected a whole number, got 1.5"),
        ("train.crop_size=16", "greater than or equal to 32"),
        ("affinity.enabled=maybe", "expected true or false"),
        ("train.precision=float16", "expected auto or float32 or bfloat16, got 'float16'"),
        ("model.pooling=max", "expected gmp or gap or a number"),
        ("par.dilations=5", "expected a list of whole numbers"),
        ("par.dilations=[]", "at least 1 item"),
        ("cam.scales=[0.5]", "expected 1.0 among them"),
        ("affinity.scale=3.0", "expected one of cam.scales"),
        ("cam.beta_low=0.9", "expected at most beta_high"),
        ("eval.mirror=min", "expected mean or maximum, got 'min'"),
        ("train.scale_range=[2.0, 1.0]", r"expected \[from, to\]"),
        ("optim.lr=.nan", "expected a number"),
        ("data.root=[", "not readable as YAML"),
    ],
)
def test_wrong_values_are_explained(override, message):
    with pytest.raises(PresetError, match=message):
        load_preset("voc", [override])


def test_unknown_preset_offers_the_nearest():
    with pytest.raises(PresetError, match='did you mean "voc"'):
        load_preset("vok")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {seed: 1, seed: 2}", 'key "seed" is given twice'),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("[1, 2]", "expected sections with keys"),
        ("train: 5", "expected sections with keys"),
    ],
)
def test_files_that_are_no_presets_are_refused(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(PresetError, match=message):
        load_preset(str(tmp_path / "bad.yaml"))


def test_presets_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        Preset().train.seed = 3


def test_differences_name_both_values():
    assert differences(load_preset("voc"), load_preset("voc", ["train.seed=4"])) == ["train.seed: 0 -> 4"]


def test_the_folder_that_is_given_comes_before_that_of_the_preset():
    own, none = load_preset("demo", ["data.root=there"]).data, load_preset("demo").data
    assert own.folder() == Path("there") and own.folder(Path("here")) == Path("here")
    assert none.folder() is None and none.folder(Path("here")) == Path("here")


def test_the_key_of_earlier_presets_for_frozen_norms_means_what_it_meant(tmp_path):
    for former, now in (("true", "norms"), ("false", "nothing")):
        (tmp_path / "p.yaml").write_text(f"optim: {{freeze_norms: {former}}}")
        assert load_preset(str(tmp_path / "p.yaml")).optim.freeze == now
        assert load_preset("voc", [f"optim.freeze_norms={former}"]).optim.freeze == now
        assert load_preset(str(tmp_path / "p.yaml"), ["optim.freeze=3"]).optim.freeze == 3
    with pytest.raises(PresetError, match='"optim.freeze_norms" is not known'):
        load_preset("voc", ["optim.freeze_norms=maybe"])
    with pytest.raises(PresetError, match="optim.freeze: expected nothing or norms or backbone or a whole number"):
        load_preset("voc", ["optim.freeze=all"])


def test_a_preset_is_changed_as_one_is_loaded_with_changes():
    before = load_preset("voc")
    after = changed_preset(before, ["cam.beta_low=0.2", "par.iterations=3"])
    assert after == load_preset("voc", ["cam.beta_low=0.2", "par.iterations=3"])
    assert before == load_preset("voc")
    for wrong, message in {
        "cam.beta_low=0.9": "beta_low: expected at most beta_high",
        "cam.beta_lo=0.1": 'did you mean "cam.beta_low"',
        "lr=1": "expected section.key=value",
        "par.iterations=-1": "par.iterations: expected a whole number",
    }.items():
        with pytest.raises(PresetError, match=f"--set.*{re.escape(message)}"):
            changed_preset(before, [wrong])
