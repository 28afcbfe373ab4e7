"""The keys of threestudio and of the reference (yangxiaofeng/rectified_flow_prior), and what they are here: one table
for the command line and for their config files. The module imports the standard library only."""

from __future__ import annotations

from typing import Any, NamedTuple

from threestudio_rf.app.settings import conversions as to
from threestudio_rf.app.settings.conversions import Convert
from threestudio_rf.app.settings.unneeded import fixed

PROMPT, GUIDE, FIELD = "system.prompt_processor.", "system.guidance.", "system.geometry."
GRID, LOSS, RATE = f"{FIELD}pos_encoding_config.", "system.loss.", "system.optimizer.params."

RENAMED = {
    f"{PROMPT}prompt": "prompt",
    f"{PROMPT}negative_prompt": "negative_prompt",
    f"{PROMPT}use_perp_neg": "loss.perp_neg",
    f"{GUIDE}inversion_n_steps": "loss.invert_steps",
    f"{GUIDE}inversion_eta": "loss.invert_eta",
    "system.weights": "weights",
    "init": "weights",
    "system.geometry_convert_from": "weights",
    "system.renderer.num_samples_per_ray": "scene.renderer.samples_per_ray",
    "system.renderer.base_renderer.num_samples_per_ray": "scene.renderer.samples_per_ray",
    f"{FIELD}radius": "scene.radius",
    f"{FIELD}density_blob_scale": "scene.field.blob_density",
    f"{FIELD}density_blob_std": "scene.field.blob_radius",
    f"{FIELD}isosurface_threshold": "export.threshold",
    f"{FIELD}mlp_network_config.n_neurons": "scene.field.hidden",
    f"{FIELD}mlp_network_config.n_hidden_layers": "scene.field.layers",
    f"{GRID}n_levels": "scene.encoding.levels",
    f"{GRID}n_features_per_level": "scene.encoding.features",
    f"{GRID}log2_hashmap_size": "scene.encoding.log2_table",
    f"{GRID}base_resolution": "scene.encoding.base",
    f"{GRID}per_level_scale": "scene.encoding.growth",
    f"{GRID}start_level": "scene.encoding.start_level",
    f"{GRID}start_step": "scene.encoding.start_step",
    f"{GRID}update_steps": "scene.encoding.update_steps",
    "system.material.diffuse_prob": "scene.shading.diffuse",
    "system.material.textureless_prob": "scene.shading.textureless",
    "system.material.soft_shading": "scene.shading.soft",
    "data.light_position_perturb": "scene.shading.spread",
    "data.light_distance_range": "scene.shading.distance",
    "system.loggers.wandb.enable": "wandb",
    "system.optimizer.args.betas": "optim.betas",
    "system.optimizer.args.eps": "optim.eps",
    "system.optimizer.args.weight_decay": "optim.weight_decay",
    f"{RATE}guidance.lr": "loss.twin_lr",
    "trainer.max_steps": "trainer.steps",
    "trainer.val_check_interval": "trainer.validate_every",
    "trainer.log_every_n_steps": "trainer.log_every",
    "trainer.accumulate_grad_batches": "optim.accumulate",
    "trainer.gradient_clip_val": "optim.clip",
    "data.elevation_range": "camera.elevation",
    "data.azimuth_range": "camera.azimuth",
    "data.camera_distance_range": "camera.distance",
    "data.fovy_range": "camera.fovy",
    "data.batch_uniform_azimuth": "camera.stratified",
    "data.camera_perturb": "camera.position_perturb",
    "data.center_perturb": "camera.center_perturb",
    "data.up_perturb": "camera.up_perturb",
    "data.eval_elevation_deg": "camera.eval_elevation",
    "data.eval_camera_distance": "camera.eval_distance",
    "data.eval_fovy_deg": "camera.eval_fovy",
    "data.n_val_views": "camera.validation_views",
    "data.n_test_views": "camera.test_views",
}
"""The same value under another name."""
PRICES = ("sparsity", "opaque", "orient", "z_variance", "convex", "normal_consistency")
RENAMED |= {f"{LOSS}lambda_{name}": f"loss.lambda_{name}" for name in PRICES}
RENAMED |= {f"{PROMPT}perp_neg_f_{name}": f"loss.perp_neg_f_{name}" for name in ("fs", "sf", "fsb", "sb")}
RENAMED |= {f"{PROMPT}{view}_threshold": f"prior.{view}" for view in ("front", "back", "overhead")}
RENAMED |= {f"{PROMPT}prompt_{view}": f"prior.prompt_{view}" for view in ("side", "front", "back", "overhead")}


class Converted(NamedTuple):
    """Our keys, the rule in words, and the function that follows it."""

    ours: str
    rule: str
    convert: Convert


WEIGHTING = {"sds": "sigma2", "dreamfusion": "sigma2", "uniform": "uniform", "fantasia3d": "alpha_sigma2"}
PATTERN = "prior.view_pattern"
KINDS = {"implicit-volume": "nerf", "tetrahedra-sdf-grid": "mesh"}
CONVERTED = {
    "data.resolution_milestones": Converted("camera.milestones", "none where the size is one number", to.milestones),
    "data.width": Converted("camera.sizes", "a number or a list; square", to.sizes),
    "data.height": Converted("camera.sizes", "a number or a list; square", to.sizes),
    "data.batch_size": Converted("camera.views", "a number or a list", to.listed("camera.views")),
    "data.eval_width": Converted("camera.eval_size", "square", to.eval_size),
    "data.eval_height": Converted("camera.eval_size", "square", to.eval_size),
    f"{GUIDE}guidance_scale": Converted(
        "loss.scale", "+ 1 for SDS, SJC and SDI without Perp-Neg, which count from the text", to.scale("loss.scale")
    ),
    f"{GUIDE}inversion_guidance_scale": Converted(
        "loss.invert_scale", "as guidance_scale", to.scale("loss.invert_scale")
    ),
    f"{GUIDE}min_step_percent": Converted(
        "loss.t_min", "the same; RFDS: t_max = 1 - it; RFDS-sd3: t_max = shift(1 - it)", to.window("min")
    ),
    f"{GUIDE}max_step_percent": Converted(
        "loss.t_max", "the same; RFDS: t_min = 1 - it; RFDS-sd3: t_min = shift(1 - it)", to.window("max")
    ),
    f"{GUIDE}weighting_strategy": Converted(
        "loss.weight",
        "sds, dreamfusion: sigma2, uniform, fantasia3d: alpha_sigma2; SDI reads none",
        to.weighting(WEIGHTING),
    ),
    f"{GUIDE}use_sjc": Converted(
        "loss.weight", "true: uniform", to.one_of("loss.weight", {True: "uniform", False: None}, "")
    ),
    f"{GUIDE}enable_sdi": Converted(
        "loss.noise", "true: inverted, false: random", to.one_of("loss.noise", {True: "inverted", False: "random"}, "")
    ),
    f"{GUIDE}t_anneal": Converted(
        "loss.t_law",
        "true: annealed, false: uniform",
        to.one_of("loss.t_law", {True: "annealed", False: "uniform"}, ""),
    ),
    f"{GUIDE}half_precision_weights": Converted(
        "prior.dtype", "false: fp32", to.one_of("prior.dtype", {True: None, False: "fp32"}, "")
    ),
    f"{GUIDE}view_dependent_prompting": Converted(
        PATTERN, "false: no view words", to.one_of(PATTERN, {True: None, False: "{prompt}"}, "")
    ),
    f"{PROMPT}view_dependent_prompt_front": Converted(
        PATTERN,
        "true: the view before the prompt",
        to.one_of(PATTERN, {True: "{view} view of {prompt}", False: None}, ""),
    ),
    f"{GUIDE}pretrained_model_name_or_path": Converted("prior.path", "where the weights are today", to.weights),
    "system.geometry_type": Converted(
        "scene.name",
        "implicit-volume: nerf, tetrahedra-sdf-grid: mesh",
        to.one_of("scene.name", KINDS, "the hash grid: scene.encoding.*, scene.field.*"),
    ),
    f"{FIELD}isosurface_resolution": Converted(
        "export.resolution, scene.mesh.resolution", "the latter for tetrahedra-sdf-grid", to.cells
    ),
    f"{FIELD}isosurface_deformable_grid": Converted(
        "scene.mesh.reach", "false: 0", to.one_of("scene.mesh.reach", {True: None, False: 0}, "")
    ),
    f"{FIELD}fix_geometry": Converted(
        "optim.lr_geometry", "true: 0", to.one_of("optim.lr_geometry", {True: 0, False: None}, "")
    ),
    f"{GRID}otype": Converted(
        "scene.encoding.start_level",
        "HashGrid: null, ProgressiveBandHashGrid: its start_level",
        to.switch("scene.encoding.start_level", {"HashGrid": True, "ProgressiveBandHashGrid": False}),
    ),
    "system.material.ambient_only_steps": Converted(
        "scene.shading.start", "the same; nothing beside no-material", to.lit_from
    ),
    "system.material_type": Converted(
        "scene.shading.start",
        "no-material: null, diffuse-with-point-light-material: ambient_only_steps, 1000",
        to.material,
    ),
    "system.material.ambient_light_color": Converted("scene.shading.ambient", "grey", to.ambient),
    "system.material.diffuse_light_color": Converted("scene.shading.ambient", "grey: 1 - it", to.diffuse),
    "data.light_sample_strategy": Converted(
        "scene.shading.law",
        "dreamfusion: normal, magic3d: cone",
        to.one_of("scene.shading.law", {"dreamfusion": "normal", "magic3d": "cone"}, "scene.shading.law"),
    ),
    "system.background_type": Converted(
        "scene.background.name",
        "neural-environment-map: environment, solid-color: solid",
        to.one_of(
            "scene.background.name",
            {"neural-environment-map-background": "environment", "solid-color-background": "solid"},
            "scene.background.name=environment or solid",
        ),
    ),
    "system.background.color": Converted("scene.background.rgb", "a colour of three numbers", to.rgb),
    "system.background.random_aug_prob": Converted("scene.background.random", "the same", to.random_share),
    "system.background.random_aug": Converted("scene.background.random", "true: random_aug_prob", to.random_background),
    "system.optimizer.name": Converted("optim.weight_decay", "Adam: 0, AdamW: 0.01", to.optimiser),
    "system.optimizer.args.lr": Converted(
        "optim.lr_*", "of every group", to.rates("encoding", "networks", "background", "geometry")
    ),
    f"{RATE}geometry.lr": Converted("optim.lr_encoding, optim.lr_networks", "both", to.rates("encoding", "networks")),
    f"{RATE}geometry.encoding.lr": Converted("optim.lr_encoding", "the same", to.rates("encoding")),
    f"{RATE}geometry.density_network.lr": Converted("optim.lr_networks", "the same", to.rates("networks")),
    f"{RATE}geometry.feature_network.lr": Converted("optim.lr_networks", "the same", to.rates("networks")),
    f"{RATE}background.lr": Converted("optim.lr_background", "the same", to.rates("background")),
    f"{RATE}background.network.lr": Converted("optim.lr_background", "the same", to.rates("background")),
    "checkpoint.every_n_train_steps": Converted("checkpoint.every", "left out where it is max_steps", to.checkpoints),
    "system.exporter.texture_size": Converted("export.texture", "the same", to.same("export.texture")),
    "system.exporter.save_texture": Converted(
        "export.texture",
        "false: none",
        to.one_of("export.texture", {True: None, False: "none"}, ""),
    ),
    "system.exporter.fmt": Converted(
        "export.formats", "[obj]", to.one_of("export.formats", {"obj-mtl": ["obj"], "obj": ["obj"]}, "export.formats")
    ),
}
"""Another value, or one that depends on others. The order is that in which they are set."""
CONVERTED |= {
    f"{LOSS}lambda_{name}": Converted(
        "loss.lambda_distill", "x 16384 for sds, vsd and sd, a sum there; x 2, RFDS-sd3 x 1", to.distill
    )
    for name in ("sds", "vsd", "sd", "sdi", "rfds", "rfds_rev")
}


DEFAULTS: dict[str, Any] = {
    "data.width": 64,
    "data.height": 64,
    "data.batch_size": 1,
    "data.elevation_range": [-10, 90],
    "data.azimuth_range": [-180, 180],
    "data.camera_distance_range": [1.0, 1.5],
    "data.fovy_range": [40, 70],
    "data.camera_perturb": 0.1,
    "data.center_perturb": 0.2,
    "data.up_perturb": 0.02,
    "data.light_position_perturb": 1.0,
    "data.light_distance_range": [0.8, 1.5],
    "data.light_sample_strategy": "dreamfusion",
    "system.material.diffuse_prob": 0.75,
    "system.material.textureless_prob": 0.5,
    "system.material.soft_shading": False,
    "data.eval_elevation_deg": 15.0,
    "data.eval_camera_distance": 1.5,
    "data.eval_fovy_deg": 70.0,
    f"{FIELD}radius": 1.0,
    f"{PROMPT}front_threshold": 45.0,
    f"{PROMPT}back_threshold": 45.0,
    f"{PROMPT}overhead_threshold": 60.0,
    f"{PROMPT}use_perp_neg": False,
    "system.background.random_aug": False,
    "system.renderer.num_samples_per_ray": 512,
    f"{LOSS}lambda_sparsity": 0.0,
    f"{LOSS}lambda_opaque": 0.0,
    f"{LOSS}lambda_orient": 0.0,
    f"{LOSS}lambda_z_variance": 0.0,
    f"{LOSS}lambda_convex": 0.0,
}
"""What a whole file of theirs means where it says nothing."""


def known(key: str) -> bool:
    """Whether a peer has this key."""
    return key in RENAMED or key in CONVERTED or fixed(key) is not None
