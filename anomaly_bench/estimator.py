"""Use from Python: any method as a scikit-learn estimator, and the data sets as arrays.

    X, X_new, anomalous = anomaly_bench.load_split("digits", abnormal_class=3)
    detector = anomaly_bench.AnomalyDetector("ganomaly", max_epochs=5).fit(X)
    scores = detector.anomaly_score(X_new)

Settings, their defaults, training and scoring are those of the command line: a run with the same settings on the
same rows comes to the same scores.
"""

import os
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from math import prod
from typing import Any, Self

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn.utils.parametrize import is_parametrized

from anomaly_bench import metrics
from anomaly_bench.arguments import check_arguments
from anomaly_bench.compose import data_yaml, plain, read_data, settings_of
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.scaling import fit_scaler
from anomaly_bench.errors import SettingError
from anomaly_bench.history import losses_frame
from anomaly_bench.measuring import TRAINING_SAMPLE, some, threshold_of
from anomaly_bench.protocols import Split, check_seed
from anomaly_bench.refusals import check_name, refusal_in
from anomaly_bench.rows import Rows
from anomaly_bench.targets import build, check_group, check_targets, plain_part
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer

PIXELS = 0.5, 0.5
"""Mean and deviation of pixels on [0, 1], with which a detector sees them in [-1, 1]."""


class AnomalyDetector(OutlierMixin, BaseEstimator):
    """Any method of the project, with scikit-learn's interface.

    It follows scikit-learn's outlier detectors: a *lower* `decision_function` is more abnormal, negative is
    abnormal, and `predict` gives +1 for normal and -1 for abnormal rows. PyOD has it the other way round: there a
    higher `decision_function` is more abnormal, and `predict` gives 0 and 1. `anomaly_score` is the method's own
    score, as the command line writes it: higher is more anomalous.

    `X` are rows of numbers `[N, D]`, NaN where one is missing, or images `[N, H, W]` or `[N, C, H, W]`, uint8 or
    float in [0, 1]. A detector is fitted to normal rows; a method that learns from rows of which some are
    anomalous (`drae`, `e3outlier`, `rda`) scores those rows, which `fit_predict` does.

    Args:
        method: a name of `anomaly-bench list models`.
        max_epochs: no stage of training has more; None for the paper's.
        quantile: `predict` calls abnormal what scores above this share of up to 1024 training rows. None is the
            method's own threshold, where it has one, else the share of a run, 0.95.
        scale: of rows of numbers: `minmax`, `standard` or None, fitted to the training rows.
        seed: of the first weights and the batches.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        settings: of the method, as in `configs/model/<method>.yaml`: `epochs=5`, `lr=1e-3`.

    Attributes:
        detector_: the fitted `anomaly_bench.detector.Detector`.
        history_: one line for each epoch, a DataFrame.
        threshold_: the anomaly score above which a row is abnormal; `threshold_rule_` says how it was found.
        offset_: `decision_function` is `score_samples` less this.
        shape_: of one row as the detector takes it.
        n_features_in_: numbers or pixels of one row.
    """

    def __init__(
        self,
        method: str = "isolation_forest",
        *,
        max_epochs: int | None = None,
        quantile: float | None = None,
        scale: str | None = "minmax",
        seed: int = 0,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        self.method = method
        self.max_epochs = max_epochs
        self.quantile = quantile
        self.scale = scale
        self.seed = seed
        self.device = device
        self.settings = settings

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """All arguments by name, those of the method too."""
        return super().get_params(deep) | self.settings

    def set_params(self, **params: Any) -> Self:
        """Set arguments by name; what is none of the estimator's is a setting of the method, checked by `fit`."""
        if nested := [name for name in params if "__" in name]:
            raise SettingError(f"{nested[0]}: there is no such setting")
        own = set(self._get_param_names())
        self.settings = self.settings | {name: params[name] for name in params if name not in own}
        return super().set_params(**{name: params[name] for name in params if name in own})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: of a detector with parametrised layers, which cannot be, its tensors."""
        state: Any = super().__getstate__()
        detector = state.get("detector_")
        if detector is None or not any(map(is_parametrized, detector.modules())):
            return state
        return state | {"detector_": detector.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, and build the detector that tensors stand for."""
        super().__setstate__(state)
        if isinstance(tensors := state.get("detector_"), dict):
            with torch.random.fork_rng([]):
                detector = build(self._model, self.shape_)
            detector.load_state_dict(tensors)
            self.detector_ = self._trainer.place(detector).eval()

    def __sklearn_is_fitted__(self) -> bool:
        """Whether the last `fit` came to its end."""
        return hasattr(self, "offset_")

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn what is normal from rows or images; `y` is ignored.

        Raises:
            SettingError: an unknown method or setting, rows that the method does not take, a loss that diverges.
        """
        vars(self).pop("offset_", None)
        seed, quantile = self._checked_arguments()
        settings = self._composed()
        values = plain(settings)
        trainer = Trainer(**values["trainer"] | {"device": self.device, "max_epochs": self.max_epochs})
        x = self._checked(X, fitting=True)
        self.scaler_ = fit_scaler(x, self.scale) if x.dim() == 2 else None
        self.shape_ = tuple(x.shape[1:])
        self._trainer, self._batch_size = trainer, values["evaluation"]["batch_size"]
        self._model = OmegaConf.create(plain_part(settings.model))
        with torch.random.fork_rng([trainer.device] if trainer.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.detector_ = trainer.place(build(settings.model, self.shape_))
            learned = trainer.learn(self.detector_, self._rows(x), seed=seed)
        self.detector_.eval()
        self.history_ = losses_frame(learned.history)
        sample = some(np.arange(len(x)), TRAINING_SAMPLE, seed)
        scores = self._scores(x[torch.from_numpy(np.sort(sample))])
        if quantile is None:
            rule = threshold_of(self.detector_, scores, values["evaluation"]["quantile"])
            self.threshold_rule_, self.threshold_ = rule
        else:
            self.threshold_ = metrics.quantile_threshold(scores, quantile)
            self.threshold_rule_ = f"{100 * quantile:g} % of the training scores"
        self.offset_ = -self.threshold_
        return self

    def anomaly_score(self, X: ArrayLike) -> np.ndarray:
        """The method's score of each row, `[N]`: higher is more anomalous."""
        check_is_fitted(self)
        return self._scores(self._checked(X, fitting=False))

    def score_samples(self, X: ArrayLike) -> np.ndarray:
        """The opposite of `anomaly_score`, `[N]`: lower is more abnormal."""
        return -self.anomaly_score(X)

    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """`score_samples` less `offset_`, `[N]`: lower is more abnormal, below 0 abnormal."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: ArrayLike) -> np.ndarray:
        """+1 for each normal row, -1 for each abnormal one, `[N]`."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _checked_arguments(self) -> tuple[int, float | None]:
        """The seed and the quantile, of arguments that are all of their type and in range."""
        arguments = {name: pythons(getattr(self, name)) for name in self._get_param_names()}
        seed, quantile = arguments.pop("seed"), arguments["quantile"]
        check_arguments("AnomalyDetector", arguments, AnomalyDetector)
        check_seed(seed)
        if quantile is not None and not 0 <= quantile <= 1:
            raise SettingError(
                f"AnomalyDetector.quantile={quantile}: allowed is a share from 0 to 1, or null"
            )
        return seed, quantile

    def _composed(self) -> DictConfig:
        """The config of the method with the user's settings in it."""
        check_name("method", self.method, "model")
        settings = deepcopy(settings_of_method(self.method))
        update(settings.model, self.settings, f"method={self.method}")
        check_targets(settings.model)
        return settings

    def _checked(self, X: ArrayLike, fitting: bool) -> Tensor:
        """Rows `[N, D]`, float64 or float32, or images `[N, C, H, W]`, uint8 or float32 in [0, 1]."""
        X = np.asarray(X) if isinstance(X, list | tuple) else X
        if getattr(X, "ndim", 2) not in (3, 4):
            given: Any = X
            # What is neither becomes float64, and float32 once offsets are subtracted.
            kinds: Any = [np.float64, np.float32]
            x: Any = validate_data(
                self,
                given,
                reset=fitting,
                dtype=kinds,
                ensure_all_finite="allow-nan",
                ensure_min_samples=1 + fitting,  # one row has no spread to learn
            )
        else:
            x = checked_images(X, 1 + fitting)
            if fitting:
                self.n_features_in_ = prod(x.shape[1:])
        if not fitting and x.shape[1:] != self.shape_:
            raise SettingError(f"X: rows of shape {x.shape[1:]}; the detector was fitted to {self.shape_}")
        return torch.from_numpy(np.require(x, requirements=["C", "W"]))

    def _rows(self, x: Tensor) -> Rows:
        """What the detector is given of checked `X`."""
        if self.scaler_ is not None:
            x = self.scaler_(x).float()
            if x.isinf().any():
                raise SettingError("X: numbers are too large for float32")
        elif x.dtype != torch.uint8:
            x = (x - PIXELS[0]) / PIXELS[1]
        return self._trainer.rows(x, *PIXELS)

    def _scores(self, x: Tensor) -> np.ndarray:
        scores = score_rows(
            self.detector_,
            self._rows(x),
            precision=self._trainer.precision,
            batch_size=self._batch_size,
            fold=self._trainer.fold,
        )
        return scores.numpy().astype(np.float64)


@lru_cache(maxsize=8)
def settings_of_method(method: str) -> DictConfig:
    """The composed config of a method on data that are no paper's, on which it may have other sizes."""
    settings = settings_of([f"model={method}"])[0]
    settings.data = None
    return settings


def load_data(name: str = "digits", **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """All rows of a data set `[N, ...]` and the class name of each, `[N]`.

    Args:
        name: of `anomaly-bench list data`.
        settings: of the data set, as in `configs/data/<name>.yaml`: `image_size=32`, `root="my_images"`.
    """
    data = composed_data(name, (), settings)
    dataset = dataset_of(data)
    return copied(dataset, np.arange(len(dataset.classes))), np.array(dataset.class_names)[dataset.classes]


def load_split(
    name: str = "digits",
    *,
    protocol: str | None = None,
    abnormal_class: int | str = 0,
    normal_class: int | str = 0,
    seed: int = 0,
    **settings: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training rows, test rows, and which of the test rows are anomalous (bool), as a run has them.

    Args:
        name: of `anomaly-bench list data`.
        protocol: of `anomaly-bench list protocols`; None is that of the command line for this data set.
        abnormal_class, normal_class: an index or a name, for the protocols that leave a class out or keep only one.
        seed: of the split.
        settings: of the data set, as for `load_data`.
    """
    if protocol is not None:
        check_name("protocol", protocol, "protocol")
    composed = composed_data(name, () if protocol is None else (f"protocol={protocol}",), settings)
    check_seed(seed)
    for key, wanted in (("abnormal_class", pythons(abnormal_class)), ("normal_class", pythons(normal_class))):
        if not isinstance(wanted, int | str) or isinstance(wanted, bool):
            raise SettingError(f"{key}={wanted}: a whole number or a name is needed")
        composed[key] = wanted
    dataset = dataset_of(composed)
    split: Split = instantiate(composed.protocol).split(dataset, seed)
    return copied(dataset, split.train), copied(dataset, split.test), split.anomalous


def composed_data(name: str, overrides: tuple[str, ...], settings: Mapping[str, Any]) -> DictConfig:
    """The composed config with a data set of the user's settings in it."""
    check_name("data", name, "data")
    composed = settings_of([f"data={name}", *overrides])[0]
    update(composed.data, settings, f"data={name}")
    return composed


def dataset_of(composed: DictConfig) -> Dataset:
    """The data set of a composed config as its files are now; what it refuses is said without Hydra's words."""
    check_group("data", composed.data)
    try:
        return read_data(data_yaml(composed))
    except InstantiationException as error:
        if (refusal := refusal_in(error)) is None:
            raise
        raise SettingError(str(refusal)) from error


def copied(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows of a data set as an array of the caller's own."""
    return dataset.x[torch.from_numpy(rows)].numpy()


def checked_images(X: ArrayLike, least: int) -> np.ndarray:
    """Images `[N, C, H, W]`, uint8 or float32 in [0, 1], and at least so many."""
    kinds: Any = [np.float32, np.uint8]  # the first for what is neither
    x = check_array(np.asarray(X), dtype=kinds, allow_nd=True, ensure_min_samples=least)
    if x.ndim == 3:
        x = x[:, None]
    if x.shape[-1] in (1, 3, 4) and x.shape[1] not in (1, 3, 4):
        raise SettingError(
            f"X: found the shape {x.shape}; images are [N, C, H, W] or [N, H, W]; "
            "X.transpose(0, 3, 1, 2) puts the channels first"
        )
    if x.dtype != np.uint8 and (x.min() < 0 or x.max() > 1):
        raise SettingError(
            f"X: found pixels from {x.min():g} to {x.max():g}; images are uint8, or float from 0 to 1"
        )
    return x


def update(config: DictConfig, settings: Mapping[str, Any], owner: str) -> None:
    """Put the user's settings into a config; one that it has not is refused."""
    known = [str(key) for key in config if not str(key).startswith("_")]
    for name, value in settings.items():
        if name not in known:
            raise SettingError(f"{name}: {owner} has no such setting; allowed are {', '.join(known)}")
        try:
            OmegaConf.update(config, name, pythons(value))
        except OmegaConfBaseException as error:
            raise SettingError(f"{name}={value}: {str(error).splitlines()[0]}") from error


def pythons(value: Any) -> Any:
    """A value or an array of numpy, or a path, as Python's own values, the only ones that a config takes."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value
