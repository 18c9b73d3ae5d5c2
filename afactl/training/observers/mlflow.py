"""Preset, curves and pictures of a training for MLflow (extra [mlflow]), beside metrics.jsonl; no server is asked."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from afactl.errors import DependencyError
from afactl.presets import values_by_key
from afactl.runs.folder import run_preset
from afactl.training.events import Started
from afactl.training.observers.follower import Follower

DATABASE = "mlflow.db"


class MlflowLog(Follower):
    """RUN/mlflow/mlflow.db, to be opened by `mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db`.

    Each call of `train` is a run of its own there, named after the run folder: MLflow cannot take back the steps that
    a resumed training does again. Its tag `from_step` tells where it begins.

    Raises:
        DependencyError: MLflow, or what it keeps its database with, is not installed.
    """

    def __init__(self) -> None:
        try:
            # MLflow would name the first two only when the training begins.
            importlib.import_module("alembic")
            importlib.import_module("sqlalchemy")
            self._mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise DependencyError(f"--mlflow needs {error.name or 'mlflow'}: pip install 'afactl[mlflow]'") from error
        self._client: Any = None
        self._run = ""

    def start(self, event: Started) -> None:
        folder = (event.run / "mlflow").resolve()
        folder.mkdir(exist_ok=True)
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        self._client = self._mlflow.MlflowClient(f"sqlite:///{(folder / DATABASE).as_posix()}")
        found = self._client.get_experiment_by_name("afactl")
        experiment = found.experiment_id if found else self._client.create_experiment("afactl", folder.as_uri())
        made = self._client.create_run(experiment, run_name=event.run.name, tags={"from_step": str(event.step)})
        self._run = made.info.run_id
        for key, value in values_by_key(run_preset(event.run)).items():
            self._client.log_param(self._run, key, value)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, now, step)

    def pictures(self, step: int, pictures: Iterator[tuple[str, np.ndarray]]) -> None:
        for name, picture in pictures:
            # A key has no slashes there.
            self._client.log_image(self._run, picture, key=name.replace("/", "-"), step=step)

    def end(self) -> None:
        self._client.set_terminated(self._run)
