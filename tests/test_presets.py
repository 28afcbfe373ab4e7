"""The presets of other papers, against their own numbers written out here; the factors that translate their losses,
against their losses computed by torch; the spelling of their command lines.

The tables are those of the reference (its 3D configs and 2D scripts) and of threestudio, in t: 0 is clean.

Seen to fail: lambda_distill 1 in rfds, 2 in rfds_sd3, SJC in the space of pictures, SDI's scale 8.5, magic3d weighed
by sigma^2 -> gradients that their code prints; opaqueness of 10 throughout, t_max for t_min after step 5000 in rfds,
the scale 100 in dreamfusion_sd, 512 pixels from the start in prolificdreamer, elevations up to 90, 512 pixels for the
encoder in rfds_sd3 -> 3D tables; lambda_distill 1, three particles, no accumulation in 2d_rfds, no shift in
2d_rfds_sd3, InstaFlow's k in 2d_rfds_rev_sd3 -> 2D script; no experiment implied by scene=image -> the preset of its
prior.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.method import lift_settings, rates
from threestudio_rf.app.build.scene import build_any, build_prior
from threestudio_rf.app.build.views import embed_views
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.core.convert import noise
from threestudio_rf.core.level import DiscreteVP, betas, rectified_flow
from threestudio_rf.core.model import Model
from threestudio_rf.core.random import generator
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.priors.base import bind
from threestudio_rf.priors.gaussian import GaussianPrior
from threestudio_rf.trainer.optim import make_optimiser

CPU = torch.device("cpu")
SMALL = ["scene.encoding.log2_table=8", "scene.encoding.levels=2", "prior=gaussian", "camera.eval_size=16"]
LATE = 6000


@cache
def composed(experiment: str, *more: str):
    config = typed(compose([f"experiment={experiment}", "prompt='a hamburger'", *more]))
    check(config)
    return config


@dataclass(frozen=True)
class Row:
    """One file: windows (t_min, t_max), factors and pictures at step 0 and after step 5000, as the file has them.

    `encoded` is the size of what the VAE's encoder gets: threestudio and the reference's InstaFlow files resize to 512,
    the reference's SD3 files encode the render as it is.
    """

    name: str
    prior: str
    noise: str
    scale: float
    early: tuple[float, float]
    late: tuple[float, float]
    sparsity: tuple[float, float]
    opaque: tuple[float, float]
    steps: int
    sizes: tuple[int, int]
    encoded: tuple[int, int] = (512, 512)
    weight: str = "uniform"
    samples: int = 512
    shift: float = 1.0
    law: str = "uniform"
    rev_step: float | None = None
    orient: tuple[float, float] = (0.0, 0.0)
    z_variance: float = 0.0
    perp_neg: bool = False
    distance: tuple[float, float] = (1.0, 1.5)
    eval_distance: float = 1.5
    eval_elevation: float = 15.0
    radius: float = 1.0
    front: float = 30.0
    rates: tuple[float, float, float] = (0.01, 0.001, 0.001)
    decay: float = 0.01
    random: float = 0.5
    stray: tuple[float, float, float] = (0.0, 0.0, 0.0)
    bands: tuple[int, int, int] | None = None
    light: tuple[int, float, float, str, bool] | None = None
    convex: tuple[float, float] = (0.0, 0.0)


WIDE, CLEANER = (0.02, 0.98), (0.30, 0.98)
SD3 = {"early": (0.0577, 0.875), "late": (0.0577, 0.875), "shift": 3.0, "encoded": (256, 512)}
SD3 |= {"steps": 15000, "sizes": (256, 512), "opaque": (0.1, 0.1), "scale": 100, "prior": "sd3"}
INSTAFLOW = {"early": WIDE, "late": CLEANER, "steps": 15000, "sizes": (256, 512), "scale": 50, "prior": "instaflow"}
INSTAFLOW |= {"sparsity": (5, 5), "opaque": (10, 100)}
STUDIO = {
    "prior": "sd",
    "early": WIDE,
    "late": WIDE,
    "opaque": (0, 0),
    "steps": 10000,
    "sizes": (64, 64),
    "front": 45.0,
}
STUDIO |= {
    "noise": "random",
    "sparsity": (1, 1),
    "decay": 0.0,
    "random": 0.0,
    "radius": 2.0,
    "rates": (0.01, 0.01, 0.001),
}
STUDIO |= {"distance": (1.5, 2.0), "eval_distance": 2.0, "stray": (0.1, 0.2, 0.02), "bands": (8, 2000, 500)}
STUDIO |= {"light": (2001, 0.75, 0.5, "normal", False)}
PLAIN = {"stray": (0.0, 0.0, 0.0), "bands": None, "light": None}
REFERENCE = {
    "rfds": Row("rfds-3d", noise="random", **INSTAFLOW),
    "rfds_rev": Row("rfds-rev-3d", noise="rev", rev_step=1.0, **INSTAFLOW),
    "rfds_sd3": Row("rfds-sd3-3d", noise="random", sparsity=(0.1, 0.1), **SD3),
    "rfds_rev_sd3": Row("rfds-rev-sd3-3d", noise="rev", sparsity=(0.2, 0.2), **SD3),
    "rfds_rev_sd3_low_memory": Row("rfds-rev-sd3-3d", noise="rev", sparsity=(0.2, 0.2), samples=256, **SD3),
    "dreamfusion_sd": Row("dreamfusion-sd", scale=101, weight="sigma2", orient=(10, 1000), **STUDIO),
    "magic3d_coarse_sd": Row(
        "magic3d-coarse-sd",
        scale=101,
        orient=(10, 1000),
        **STUDIO | {"bands": None, "light": (2001, 0.75, 0.5, "cone", True)},
    ),
    "sjc": Row(
        "sjc",
        scale=101,
        **STUDIO
        | {"early": (0.01, 0.97), "late": (0.01, 0.97), "distance": (1.5, 1.5), "eval_distance": 1.5, "radius": 1.0}
        | {"eval_elevation": 20.0, "rates": (0.01, 0.001, 0.0001)}
        | PLAIN,
    ),
    "prolificdreamer": Row(
        "prolificdreamer",
        prior="sd",
        noise="random",
        scale=7.5,
        weight="sigma2",
        early=WIDE,
        late=(0.02, 0.5),
        sparsity=(10, 10),
        opaque=(0, 0),
        steps=25000,
        sizes=(64, 512),
    ),
    "sdi": Row(
        "score-distillation-via-inversion",
        scale=7.5,
        orient=(0.1, 0.1),
        z_variance=1,
        perp_neg=True,
        law="annealed",
        **STUDIO
        | {"noise": "inverted", "sparsity": (0.15, 0), "opaque": (0.1, 0.1), "sizes": (512, 512)}
        | {"early": (0.25, 0.98), "late": (0.25, 0.98), "convex": (1.0, 0.1)}
        | {"light": (1000, 0.3, 0.75, "normal", False)},
    ),
}


@pytest.mark.parametrize("experiment", REFERENCE)
def test_a_3d_preset_has_the_numbers_of_its_file(experiment):
    row, config = REFERENCE[experiment], composed(experiment)
    assert (config.name, config.prior.name, config.scene.renderer.samples_per_ray) == (row.name, row.prior, row.samples)
    made = lift_settings(config)
    window = [(made.times.t_min(step), made.times.t_max(step)) for step in (0, LATE)]
    assert window == [row.early, row.late] and (made.times.shift, made.times.law) == (row.shift, row.law)
    method = made.method
    assert (made.steps, method.scale, method.noise, method.rev_step) == (
        row.steps,
        row.scale,
        row.noise,
        row.rev_step,
    )
    assert method.weight == row.weight
    names = ("sparsity", "opaqueness", "orientation", "z_variance", "convex")
    wanted = (row.sparsity, row.opaque, row.orient, (row.z_variance, row.z_variance), row.convex)
    for name, pair in zip(names, wanted, strict=True):
        assert (made.factor(name, 0), made.factor(name, LATE)) == pytest.approx(pair), name
    assert (made.perp_neg is not None) == row.perp_neg


@pytest.mark.parametrize("experiment", REFERENCE)
def test_a_3d_preset_looks_encodes_and_learns_as_its_file(experiment):
    row, config = REFERENCE[experiment], composed(experiment)
    made, camera = lift_settings(config), config.camera
    sizes = [made.views.camera(step, 0).height for step in (0, LATE)]
    assert tuple(sizes) == row.sizes and len(made.views.camera(0, 0)) == 1
    assert tuple(made.encode_size or size for size in sizes) == row.encoded
    assert (made.views.elevation, made.views.azimuth, made.views.fovy) == ((-10, 45), (-180, 180), (40, 70))
    assert (made.views.distance, made.views.front, made.views.back) == (row.distance, row.front, row.front)
    looked = (camera.eval_distance, camera.eval_elevation, camera.eval_fovy, camera.eval_size, camera.test_views)
    assert looked == (row.eval_distance, row.eval_elevation, 70, 512, 120)
    assert made.views.stray == row.stray
    light, bands = config.scene.shading, config.scene.encoding
    assert light.start == (row.light and row.light[0]) and bands.start_level == (row.bands and row.bands[0])
    if row.light is not None:
        assert (light.diffuse, light.textureless, light.law, light.soft) == row.light[1:]
        assert (light.ambient, light.spread, light.distance) == (0.1, 1.0, [0.8, 1.5])
    if row.bands is not None:
        assert (bands.start_step, bands.update_steps) == row.bands[1:]
    optim, scene = config.optim, config.scene
    assert (optim.lr_encoding, optim.lr_networks, optim.lr_background, optim.weight_decay) == (*row.rates, row.decay)
    assert (optim.betas, optim.eps, optim.clip, optim.accumulate) == ([0.9, 0.99], 1e-15, 0, 1)
    grid, blob = scene.encoding, scene.field
    assert (grid.levels, grid.features, grid.log2_table, grid.base) == (16, 2, 19, 16)
    assert (blob.blob_density, blob.blob_radius, blob.hidden, blob.layers) == (10, 0.5, 64, 1)
    assert (grid.growth, scene.radius, scene.background.random) == (1.447269237440378, row.radius, row.random)


@pytest.mark.parametrize("experiment", [name for name in REFERENCE if name != "prolificdreamer"])
def test_a_3d_preset_builds_with_the_closed_form_prior(experiment):
    config = composed(experiment, *SMALL)
    prior = build_prior(config.prior, CPU)
    scene = build_any(config, lambda: prior, CPU)
    conditions, _ = embed_views(config, prior)
    found = {group["name"]: group["lr"] for group in make_optimiser(scene, rates(config)).param_groups}
    assert found == dict(zip(("encoding", "networks", "background"), REFERENCE[experiment].rates, strict=True))
    assert len(conditions) == 4


def test_the_second_stage_of_magic3d_has_the_numbers_of_its_file():
    config = composed("magic3d_refine_sd", "weights=some.glb")
    made, scene, light = lift_settings(config), config.scene, config.scene.shading
    assert (scene.name, scene.mesh.resolution, scene.radius, scene.encoding.start_level) == ("mesh", 128, 2.0, None)
    assert (light.start, light.diffuse, light.textureless, light.law, light.soft) == (0, 0.75, 0.5, "cone", True)
    assert (made.views.sizes, made.views.fovy, made.views.stray) == ([512], (30, 45), (0.1, 0.2, 0.02))
    assert (made.steps, made.times.t_max(0), made.method.scale, made.method.weight) == (5000, 0.5, 101, "sigma2")
    assert {name: made.factor(name, 0) for name in made.lambdas} == {"distill": 16384, "normal_consistency": 10000}
    assert {rate(0) for name, rate in made.rates.items() if name != "image"} == {0.01}


def test_the_window_of_a_3d_preset_changes_at_step_5000_and_what_it_cuts_is_the_clean_end():
    times = lift_settings(composed("rfds")).times
    for step, low in ((4999, 0.02), (5000, 0.02), (5001, 0.30)):
        drawn = times.draw(4000, step, 15000, 0)
        assert low <= drawn.min() < low + 0.01 and 0.97 < drawn.max() <= 0.98


@dataclass(frozen=True)
class Script:
    """One 2D script: learning rate, window, shift, noise, k."""

    prior: str
    lr: float
    window: tuple[float, float]
    shift: float
    noise: str
    rev_step: float | None


SCRIPTS = {
    "2d_rfds": Script("instaflow", 3e-3, WIDE, 1, "random", None),
    "2d_rfds_rev": Script("instaflow", 3e-3, WIDE, 1, "rev", 1.0),
    "2d_rfds_sd3": Script("sd3", 3e-2, (0.0577, 0.9932), 3, "random", None),
    "2d_rfds_rev_sd3": Script("sd3", 3e-2, (0.0577, 0.9932), 3, "rev", None),
}


@pytest.mark.parametrize("experiment", SCRIPTS)
def test_a_2d_preset_has_the_numbers_of_its_script(experiment):
    script, config = SCRIPTS[experiment], composed(experiment)
    made, method = lift_settings(config), lift_settings(config).method
    assert config.name.lower() == experiment
    assert (config.prior.name, config.seed, config.optim.weight_decay) == (script.prior, 1, 0)
    assert (made.steps, made.accumulate, config.trainer.validate_every) == (800 * 2, 2, 100 * 2)
    assert (made.rates["image"](0), made.times.t_min(0), made.times.t_max(0)) == (script.lr, *script.window)
    assert (made.times.shift, method.noise, method.rev_step) == (script.shift, script.noise, script.rev_step)
    assert (method.scale, method.space, method.weight) == (50, "flow", "uniform")
    random = experiment == "2d_rfds_sd3"  # its loss has a random factor of mean 1/2
    assert made.factor("distill", 0) == pytest.approx(1 / 3 if random else 2 / 3) and made.latent
    small = composed(experiment, "prior=gaussian", "prior.size=64")
    scene = build_any(small, lambda: build_prior(small.prior, CPU), CPU)
    assert scene.values.shape == (6, 3, 64, 64)
    assert scene.values.std().item() == pytest.approx(0.289, abs=0.002) and scene.values.abs().max() < 0.501
    assert len(scene.render(made.views.camera(0, 0), generator(0, 0, "render")).rgb) == 3


def mixture(kind, shape=(4, 64, 64)):
    means = torch.randn((2, *shape), generator=generator(0, 0, "means"))
    return GaussianPrior(means, 0.3, kind=kind, names=["red", "blue"])


def ours(experiment, kind, batch):
    """Our gradient at the latents under the preset, with what the other's loss needs: x0, eps, cond, uncond, sigma."""
    made, prior = lift_settings(composed(experiment)), mixture(kind)
    predict = bind(prior, {"cond": prior.embed(["red"]), "uncond": prior.embed([""])})
    x0 = torch.randn(batch, *prior.latent_shape, generator=generator(1, 0, "x0"), requires_grad=True)
    t = torch.linspace(0.3, 0.7, batch)
    method = Method(space=made.method.space, weight=made.method.weight, scale=made.method.scale)
    draws = generator(2, 0, "noise")
    result = distill(x0, Model(predict, kind, rectified_flow), t, method=method, generator=draws)
    (made.factor("distill", 0) * result.loss).backward()
    level = rectified_flow(t)
    both = predict(noise(x0.detach(), result.eps, level), t, ["cond", "uncond"])
    return x0, result.eps, both["cond"], both["uncond"], level.sigma[:, None, None, None]


@pytest.mark.parametrize(("experiment", "batch"), [("rfds", 1), ("2d_rfds", 3)])
def test_our_gradient_is_that_of_the_references_loss(experiment, batch):
    x0, eps, cond, uncond, _ = ours(experiment, "flow", batch)
    velocity = uncond + 50 * (cond - uncond)
    latents = x0.detach().clone().requires_grad_()
    (F.mse_loss(eps - latents, velocity) / batch).backward()
    assert torch.allclose(x0.grad, latents.grad, rtol=1e-3, atol=1e-3 * latents.grad.abs().max().item())


TABLE, PLACES = DiscreteVP(betas("scaled_linear", 1000)), [(0, 0, 0, 0), (0, 1, 10, 20), (0, 3, 63, 63)]
THEIRS = {
    "dreamfusion_sd": {20: (1.043101, 0.830143, 0.240022), 970: (65.952904, 64.663673, 40.863968)},
    "magic3d_coarse_sd": {20: (55.823681, 44.426811, 12.845274), 970: (66.388832, 65.09108, 41.134068)},
    "sjc": {20: (55.823685, 44.426819, 12.845274), 500: (70.311882, 63.980106, 30.613876)},
    "prolificdreamer": {20: (0.069298, 0.054187, 0.013646), 500: (3.428895, 3.104187, 1.442284)},
    "sdi": {260: (243.531921e-6, 221.531738e-6, 97.37619e-6), 970: (4120.031738e-6, 4057.767334e-6, 2395.699219e-6)},
    "rfds": {
        40: (-3641.54834e-6, -3525.925537e-6, -2244.884521e-6),
        900: (-2962.150635e-6, -2285.411377e-6, -637.133362e-6),
    },
    "rfds_rev": {
        40: (-2573.597412e-6, -1912.328979e-6, -583.258484e-6),
        500: (-2827.979248e-6, -2195.775391e-6, -719.385559e-6),
    },
    "rfds_sd3": {
        300: (3760.050781e-6, 3689.293457e-6, 2405.895996e-6),
        979: (3099.632812e-6, 2483.435303e-6, 843.060059e-6),
    },
    "rfds_rev_sd3": {
        300: (7436.753906e-6, 7132.873535e-6, 4373.869629e-6),
        700: (6779.239258e-6, 5808.926758e-6, 2500.385498e-6),
    },
}
"""Per preset and per index, as its code counts it, the gradient of its loss at `PLACES` of the latents below.

Printed by the functions of threestudio and of the reference themselves (compute_grad_sds, _sjc, _vsd, _sdi, _rfds,
_rfds_rev, then their loss and torch's gradient), with a network that answers as `stub`; the random factor of rfds_sd3
at its mean 1/2, sdi with its Perp-Neg and weights 0 of the negatives, at a given noise.
"""


def stub(sign):
    """Answers that need no network, by role."""
    rows = {"cond": (0.3, 0.1), "uncond": (0.5, -0.2), "twin": (0.4, 0.05)}
    return lambda x, t, roles: {role: sign * (rows[role][0] * x + rows[role][1]) for role in roles}


@pytest.mark.parametrize("experiment", THEIRS)
def test_the_gradient_of_a_preset_is_the_one_that_its_code_prints(experiment):
    made = lift_settings(composed(experiment))
    method = replace(made.method, noise="random") if experiment == "sdi" else made.method
    table = REFERENCE[experiment].prior == "sd"
    for index, wanted in THEIRS[experiment].items():
        if table:
            kind, schedule, time, sign = "eps", TABLE, (index + 1) / 1000, 1
        elif "sd3" in experiment:
            base = (1000 - index) / 1000
            kind, schedule, time, sign = "flow", rectified_flow, 3 * base / (1 + 2 * base), 1
        else:  # InstaFlow's network points from noise to data, and its time is the weight of the data
            kind, schedule, time, sign = "flow", rectified_flow, 1 - index / 1000, -1
        x0 = torch.linspace(-1, 1, 4 * 64 * 64).view(1, 4, 64, 64).requires_grad_()
        draws, t = generator(7, 0, "noise"), torch.tensor([time])
        out = distill(x0, Model(stub(sign), kind, schedule), t, method=method, generator=draws)
        (made.factor("distill", 0) * out.loss).backward()
        assert [x0.grad[place].item() for place in PLACES] == pytest.approx(wanted, rel=2e-4), index


@pytest.mark.parametrize(
    ("file", "experiment"),
    [
        ("configs/rfds.yaml", "rfds"),
        ("configs/rfds-rev.yaml", "rfds_rev"),
        ("configs/rfds_sd3.yaml", "rfds_sd3"),
        ("configs/rfds-rev_sd3.yaml", "rfds_rev_sd3"),
        ("configs/rfds-rev_sd3_low_memory.yaml", "rfds_rev_sd3_low_memory"),
        ("configs/dreamfusion-sd.yaml", "dreamfusion_sd"),
        ("configs/prolificdreamer.yaml", "prolificdreamer"),
        ("configs/sdi.yaml", "sdi"),
        ("configs/sjc.yaml", "sjc"),
        ("configs/magic3d-coarse-sd.yaml", "magic3d_coarse_sd"),
        ("configs/magic3d-refine-sd.yaml", "magic3d_refine_sd"),
    ],
)
def test_threestudios_command_line_names_our_preset(file, experiment):
    line = ["--config", file, "--train", "--gpu", "0", "system.prompt_processor.prompt=a DSLR photo of a hamburger"]
    config = typed(compose(translate(line).overrides))
    assert (config.experiment, config.prompt) == (experiment, "a DSLR photo of a hamburger")
    named = REFERENCE[experiment].name if experiment in REFERENCE else Path(file).stem
    assert config.name == named  # what T3Bench and other scripts look for


@pytest.mark.parametrize(
    ("line", "experiment"),
    [
        (["scene=image"], "tiny_image"),
        (["scene=image", "prior=tiny_sd"], "tiny_image"),
        (["scene=image", "prior=sd3"], "2d_rfds_sd3"),
        (["scene=image", "prior=instaflow"], "2d_rfds"),
        (["scene=image", "experiment=2d_rfds_rev"], "2d_rfds_rev"),
        (["scene=nerf"], "tiny"),
    ],
)
def test_a_picture_gets_the_preset_of_its_prior_unless_one_is_named(line, experiment):
    config = typed(compose(translate([*line, "prompt=a red ball"]).overrides))
    assert config.experiment == experiment
    assert config.scene.name == line[0].partition("=")[2]
