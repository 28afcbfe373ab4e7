"""The loop's settings from the config: method, times, factors, views, learning rates."""

from __future__ import annotations

from threestudio_rf.app.config import Config
from threestudio_rf.app.settings_loss import LossConfig
from threestudio_rf.distill.method import Method
from threestudio_rf.priors.views import Curves
from threestudio_rf.trainer.lift import LiftSettings, Times, Views
from threestudio_rf.trainer.ramp import Value, ramp


def pair(values: list[float]) -> tuple[float, float]:
    """A list of two numbers as a range."""
    low, high = values
    return low, high


def _views(config: Config) -> Views:
    camera, prior = config.camera, config.prior
    return Views(
        sizes=camera.sizes,
        milestones=camera.milestones,
        counts=camera.views,
        elevation=pair(camera.elevation),
        azimuth=pair(camera.azimuth),
        distance=pair(camera.distance),
        fovy=pair(camera.fovy),
        sphere=camera.sphere,
        stratified=camera.stratified,
        front=prior.front,
        back=prior.back,
        overhead=prior.overhead,
    )


def lift_settings(config: Config) -> LiftSettings:
    """The settings of the loop."""
    loss = config.loss
    return LiftSettings(
        steps=config.trainer.steps,
        method=Method(
            space=loss.space,  # type: ignore[arg-type]
            weight=loss.weight,
            noise=loss.noise,
            scale=loss.scale,
            rev_step=loss.rev_step,
            rev_steps=loss.rev_steps,
        ),
        rates=rates(config),
        lambdas=factors(loss),
        views=_views(config),
        times=Times(
            t_min=ramp(loss.t_min),
            t_max=ramp(loss.t_max),
            law=loss.t_law,  # type: ignore[arg-type]
            shift=loss.t_shift,
            width=loss.t_width,
        ),
        encode_size=config.prior.image_size,
        clip=config.optim.clip,
        perp_neg=_curves(loss) if loss.perp_neg else None,
        skip_limit=config.trainer.skip_limit,
        empty_limit=config.trainer.empty_limit,
        seed=config.seed,
    )


def _curves(loss: LossConfig) -> Curves:
    given = (loss.perp_neg_f_fs, loss.perp_neg_f_sf, loss.perp_neg_f_fsb, loss.perp_neg_f_sb)
    return Curves(*((a, b, c) for a, b, c in given))


def rates(config: Config) -> dict[str, Value]:
    """Learning rate of each group over steps."""
    optim = config.optim
    given = {"encoding": optim.lr_encoding, "networks": optim.lr_networks, "background": optim.lr_background}
    given["image"] = optim.lr_image
    return {name: ramp(value) for name, value in given.items()}


def factors(loss: LossConfig) -> dict[str, Value]:
    """Factor of the distillation and of each regulariser over steps; what is always 0 is left out."""
    given = {
        "sparsity": loss.lambda_sparsity,
        "opaqueness": loss.lambda_opaque,
        "orientation": loss.lambda_orient,
        "z_variance": loss.lambda_z_variance,
        "total_variation": loss.lambda_tv,
    }
    found: dict[str, Value] = {"distill": ramp(loss.lambda_distill)}
    return found | {name: ramp(value) for name, value in given.items() if value != 0}
