"""Every method that has a config, put through the checks that hold for all."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from conformance import CHECKS, SHORT, Case, assert_same_bits, scores_of
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from anomaly_bench.detector import Detector
from anomaly_bench.targets import build, located

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))

TOY = {
    "batch_size": 12,
    "epochs": 20,
    "encoder_steps": 60,
    "lr": 2e-3,
    "encoder_lr": 1e-3,
    "nz": 8,
    "code": 8,
    "width": 4,
    "ngf": 4,
    "ndf": 4,
    "descent_steps": 30,
    "z_lr": 0.05,
    "hidden": 32,
    "ema_decay": 0.9,
    "d_lr": 2e-3,
    "g_lr": 2e-3,
    "pretrain": 2,
}
"""Stands in for these keys of any model's config, at any depth."""

DAGMM = {"hidden": [8], "code": 2, "k": 2, "epochs": 40, "lr": 5e-3}

OWN: dict[str, dict[str, object]] = {
    "aae": {"epochs": 8},
    "adgan": {"generator_steps": 80, "n_seeds": 2, "descent_steps": 4, "z_lr": 0.25},
    "cae_if": {"epochs": 5, "code": 128, "trees": 300},  # of fewer, luck decides
    # Longer, its AUROC goes up and down, and rounding decides where it ends.
    "alocc": {"lambda_": 1e4, "sigma": 0.02, "lr": 1e-4, "epochs": 3, "batch_size": 24, "width": 6},
    "constrained_aae": {"epochs": 8, "n_critic": 1, "warmup": 2, "warmup_epochs": 1, "batch_size": 24},
    "deep_svdd": {"pretrain_epochs": 10},
    "deep_svdd_soft": {"pretrain_epochs": 10, "warm_up": 5},
    "deep_svdd_cifar10": {"pretrain_epochs": 10, "channels": [4, 4, 8], "rep": 32},
    **{name: {"code": 16} for name in ("dsebm", "dsebm_r")},
    "geotrans": {
        "shift": 0,
        "widen_factor": 1,
        "batch_size": 60,
        "lr": 1e-2,
        "epochs": 8,
    },  # more only costs time
    "e3outlier": {  # its own score is the same for an image and one turned by 90 degrees, as their views are the same
        **{"operations": "ra", "shift": 0, "score_by": "pl", "optimizer": "sgd"},
        **{"widen_factor": 1, "batch_size": 30, "lr": 0.03, "epochs": 16},
    },
    "ssd_if": {"operations": "ra", "shift": 0, "widen_factor": 1, "batch_size": 60, "epochs": 8},
    "dcn": {"hidden": [32], "k": 3, "pretrain_epochs": 10, "pretrain_lr": 2e-3, "lr": 2e-4},
    "repen": {"lr": 1.0, "ensemble": 20, "margin": 10.0},
    "rdp": {"out": 16, "trees": 4, "levels": 2, "steps": 200, "lr": 0.1},
    **dict.fromkeys(("dagmm", "dagmm_conv", "dagmm_cae", "dagmm_nvi", "gmm_en", "e2e_ae"), DAGMM),
    **dict.fromkeys(("dagmm_p", "pae", "pae_gmm", "pae_gmm_em"), DAGMM | {"pretrain_epochs": 4}),
    "alad": {"epochs": 12},  # five networks; more only costs time
    "fence_gan_cifar10": {"epochs": 14},  # convolutions of 5 x 5; more only costs time
    "f_anogan": {"epochs": 16, "n_critic": 2},  # eight are too few on some processors
    "ognet": {"epochs": 3, "finetune_steps": 30, "finetune_lr": 3e-3, "width": 2, "batch_size": 16},
    "positive_sample": {"augment": False, "nz": 32},
    "wgan_anogan": {"epochs": 6, "n_critic": 2, "batch_size": 24, "descent_steps": 4, "z_lr": 0.1},
    "ae_dense": {"hidden": [32]},
    "vae_dense": {"hidden": [32]},
    "contractive_ae": {"hidden": []},
    "drae": {"epochs": 60, "code": 16},  # it learns from the better part of each batch only
    "rda": {"rounds": 2, "layers": [40, 10], "epochs": 20, "lambda_": 0.01},
    "rda_l1": {"rounds": 2, "layers": [40, 10], "epochs": 20, "lambda_": 0.1},
    **{name: {"input_size": 32} for name in ("pretrained", "pretrained_patches")},
    "pretrained_mahalanobis": {"input_size": 64},
    "pretrained_ocsvm": {"input_size": 64, "gamma_factor": 0.01},  # with more, far toys tie
    "rdae": {"rounds": 2, "epochs": 20, "lambda_": 0.01},
    "sdae": {"layers": [40, 10], "epochs": 5, "tuning_epochs": 20},
    "sparse_ae": {"code": 300, "beta": 0.1},  # of few units none can rest
    "simclr": {
        **{"shifts": "rotations", "simclr_dim": 16, "tau": 0.2, "views": 2, "lr": 0.3, "warm_up": 2},
        **{"batch_size": 12, "epochs": 5},
    },
    "simclr_ocsvm": {"simclr_dim": 16, "tau": 0.2, "lr": 0.2, "warm_up": 2, "batch_size": 40, "epochs": 15},
    "uninformed_students": {
        **{"patch_sizes": [33], "students": 2, "d": 6, "teacher_steps": 20, "teacher_lr": 1e-3},
        **{"lr": 5e-3, "batch_size": 24, "epochs": 10},
    },
    "ocsvm_ae": {"code": 64, "lr": 5e-4},  # codes of few entries, or pressed against -1 and 1, are all alike
}
"""What else a model needs to find toys that lie on their side."""

UNMOVED: dict[str, dict[str, str]] = {
    "constrained_aae": {r"criticise\.4\.bias": "cancels in D(E(x)) - D(z)"},
    "wgan_anogan": {
        r"discriminate\.(head|features\.2\.(path\.5|shortcut\.1))\.bias": "cancels in D(x) - D(G(z))",
    },
    "f_anogan": {
        r"criticise\.(head|features\.2\.(path\.5|shortcut\.1))\.bias": "cancels in D(x) - D(G(z))",
    },
}
"""By model: parameters that training need not move, as a pattern of their names, and why."""

GOOD_CONTROL: dict[str, str] = {
    **dict.fromkeys(
        ("deep_svdd", "deep_svdd_cifar10", "deep_svdd_soft"),
        "the distance from the mean of random features tells these toys apart already",
    ),
    **dict.fromkeys(
        ("dagmm_conv", "dagmm_cae"), "a random autoencoder's errors tell these toys apart already"
    ),
    "geotrans": "the Dirichlet distributions of a random network's answers tell these toys apart already",
    "cae_if": "on random features, its forest tells these toys apart already",
    **dict.fromkeys(
        ("pretrained", "pretrained_patches", "pretrained_mahalanobis", "pretrained_ocsvm"),
        "random convolutions tell these toys apart already, and ImageNet has no handwriting",
    ),
    "ensemble": "distances in random codes tell these toys apart already",
    "repen": "random distances tell these toys apart already",
    "gmm_en": "nothing but the penalty keeps its codes apart, and training it is of no use in its paper either",
    "simclr_ocsvm": "on random features, its one-class SVM tells these toys apart already",
    "ocsvm_ae": "on random features, its one-class SVM tells these toys apart already",
}
"""By model: why training need not improve on the untrained control."""

ON_ROWS = {"alad_arrhythmia", "alad_kdd", "egbad_kdd", "fence_gan_kdd", "memae_kdd"}
"""Models whose config is for rows, though their method takes images as well; another config of it shows that."""

OTHER_SCORE: dict[str, dict[str, object]] = {
    "adgan": {"descent_steps": 2, "z_lr": 0.1, "g_lr": 1e-3},
    "alad": {"score_method": "l1"},
    "alad_arrhythmia": {"score_method": "logits"},
    "alad_kdd": {"score_method": "l2"},
    "alocc": {"score": "plain"},
    "anogan": {"lambda_": 0.5, "descent_steps": 3, "z_lr": 0.1},
    "dsebm": {"score_by": "reconstruction"},
    "dsebm_r": {"score_by": "energy"},
    "e3outlier": {"score_by": "ne"},
    "egbad": {"score_method": "cross-e", "w": 0.5},
    "egbad_kdd": {"score_method": "cross-e", "w": 0.5},
    "ganomaly": {"score_norm": "l1"},
    "geotrans": {"score_by": "simple"},
    "positive_sample": {"window": 3, "top": 0.0},
    "skip_ganomaly": {"lambda_": 0.1},
    "uninformed_students": {"image_score": "mean"},
    "vae": {"score_by": "reconstruction"},
    "vae_dense": {"score_by": "reconstruction"},
    "wgan_anogan": {"lambda_": 0.5, "descent_steps": 3, "z_lr": 0.3},
}
"""By model: other values of the arguments that only scoring looks at."""


@cache
def settings(name: str) -> DictConfig:
    """A model's config at toy size."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        model = compose(f"model/{name}").model
    replace_values(model, TOY | OWN.get(name, {}))
    return model


def replace_values(config: DictConfig, values: dict[str, object]) -> None:
    """Set what `config` has among `values`, at any depth."""
    for key in config:
        if key in values and isinstance(config[key], ListConfig) == isinstance(values[key], list):
            config[key] = values[key]
        elif isinstance(config[key], DictConfig):
            replace_values(config[key], values)


def built(name: str, shape: tuple[int, ...]) -> Detector:
    """A fresh detector of a model's config."""
    return build(settings(name), shape)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    """One model; what it has learned is shared by its checks."""
    name = request.param
    unmoved, good_control = UNMOVED.get(name, {}), name in GOOD_CONTROL
    return Case(partial(built, name), unmoved, good_control, name in ON_ROWS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_model(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_every_argument_for_scoring_alone_has_another_value_here():
    declared = {name: located(settings(name)["_target_"]).scored_by for name in MODELS}
    assert {name: tuple(other) for name, other in OTHER_SCORE.items()} == {
        name: names for name, names in declared.items() if names
    }


@pytest.mark.parametrize("name", OTHER_SCORE)
def test_what_only_scoring_looks_at_moves_the_scores_and_nothing_that_is_learned(name: str):
    def learned(**changed: object) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        case = Case(lambda shape: build(OmegaConf.merge(settings(name), changed), shape))
        detector = case.fresh()
        SHORT.learn(detector, case.train, seed=0)
        return detector.state_dict(), scores_of(detector, case.test)

    weights, scores = learned()
    for argument, value in OTHER_SCORE[name].items():
        others, moved = learned(**{argument: value})
        assert_same_bits(others, weights, f"{argument}={value}")
        assert not torch.equal(moved, scores), argument
