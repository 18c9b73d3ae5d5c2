"""The rows of the paper's tables: what each one changes, and the paper's figure beside it."""

import string

import pytest

from afactl.ablation.tables import TABLES
from afactl.inference.refiners import refiner_settings
from afactl.presets import differences, load_preset

VOC = load_preset("voc")
REFINED = [name for name, table in TABLES.items() if table.measure == "refined"]
# mIoU % on PASCAL VOC as the paper prints it, row by row in the order of ours.
PAPER = {
    "table1": [(30.7, 31.1), (34.5, 34.8), (39.6, 39.7), (43.5, 43.6), (48.2, 48.3)],
    "table2": [46.7, 56.2, 62.6, 63.8, 66.0],
    "table4": [48.2, 51.4, 51.7, 52.9, 54.5],
    "table7": [62.4, 62.7, 63.8, 61.5, 59.4],
    "table8": [48.2, 51.4, 54.5, 48.8, 49.9, 51.3, 51.5, 52.9, 52.9],
    "table9": [51.9, 51.7, 50.1, None, 52.8, 52.9, 51.4, 48.4, 51.9, 52.5, 51.3, 48.3, None, 51.6, 50.9, 48.0],
    "table10": [63.8, 62.8, 61.6, 57.8, 63.4, 61.7, 58.7, 62.4, 62.3, 61.5],
    "table11": [60.7, 62.5, 63.8, 62.9, 60.5],
}


def preset_of(row, max_iters=20000):
    return load_preset("voc", [change.format(max_iters=max_iters) for change in row.changes])


def changed(row):
    """The names of what a row changes."""
    return {change.partition("=")[0] for change in row.changes}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_figures(name):
    expected = [value if isinstance(value, tuple) else (value,) for value in PAPER[name]]
    assert [row.paper for row in TABLES[name].rows] == expected
    assert all(len(row.paper) == len(TABLES[name].splits) for row in TABLES[name].rows)


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_valid_preset(name):
    for row in TABLES[name].rows:
        preset = preset_of(row)
        assert row.refiner is None or refiner_settings(preset, row.refiner)
        fields = {field for change in row.changes for _, field, _, _ in string.Formatter().parse(change)}
        assert fields <= {None, "max_iters"}


@pytest.mark.parametrize("name", TABLES)
def test_rows_differ_in_name_and_in_what_is_measured(name):
    rows = TABLES[name].rows
    assert len({row.name for row in rows}) == len(rows)
    assert len({(tuple(differences(VOC, preset_of(row))), row.refiner, row.crf) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", REFINED)
def test_tables_of_refiners_change_no_training(name):
    """Their rows are measured on the CAMs of one run, so only the section `par` may differ."""
    for row in TABLES[name].rows:
        assert all(change.startswith("par.") for change in changed(row))


def test_pooling_is_compared_by_a_classifier_alone():
    for row, pooling in zip(TABLES["table1"].rows, ("gap", 50.0, 25.0, 10.0, "gmp"), strict=True):
        preset = preset_of(row, max_iters=123)
        assert preset.model.pooling == pooling
        assert preset.train.cls_warmup_iters == 123 and not preset.affinity.enabled


def test_parts_of_the_method_come_one_by_one():
    baseline, par, afa, reg, crf = TABLES["table2"].rows
    assert differences(preset_of(baseline), preset_of(par)) == ["cam.refiner: none -> par"]
    assert differences(preset_of(par), preset_of(afa)) == ["affinity.enabled: False -> True"]
    assert differences(preset_of(afa), preset_of(reg)) == ["loss.reg: 0.0 -> 0.01"]
    assert preset_of(reg) == preset_of(crf) == VOC and (reg.crf, crf.crf) == (False, True)


def test_one_row_of_each_table_of_settings_is_the_papers_default():
    """63.8 stands beside the recipe itself, wherever a table varies one thing around it."""
    for name in ("table7", "table10", "table11"):
        default = [row for row in TABLES[name].rows if row.paper == (63.8,)]
        assert len(default) == 1 and preset_of(default[0]) == VOC, name


def test_par_of_table_8_and_9_is_the_one_of_table_4():
    def settings(name):
        return [preset_of(row).par for row in TABLES[name].rows if row.paper == (52.9,) and row.refiner == "par"]

    assert len({par.model_dump_json() for par in settings("table4") + settings("table9")}) == 1
    assert settings("table4")[0] in settings("table8") and settings("table4")[0].iterations == 15
