"""Keys of threestudio and of the reference with nothing to choose here: what ours does anyway, what it does otherwise,
and what it does not have. The module imports the standard library only."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from threestudio_rf.app.settings.conversions import BRANCHES, GUIDANCE, UNIFIED

PROMPT, GUIDE, FIELD = "system.prompt_processor.", "system.guidance.", "system.geometry."
GRID, LOSS = f"{FIELD}pos_encoding_config.", "system.loss."


class Fixed(NamedTuple):
    """Keys (a pattern) with nothing to choose here.

    allowed    values that ask for what is done here anyway; None: any, unless one of the others is given
    otherwise  what is done for other values, which is said; "": there is no counterpart, and they are refused
    nearest    what comes nearest, for those that are refused
    """

    allowed: tuple[Any, ...] | None
    otherwise: str = ""
    nearest: str = ""

    def asks_nothing(self, value: Any) -> bool:
        """Whether this value asks for nothing but what is done here."""
        if self.allowed is None:
            return not self.otherwise and not self.nearest
        return (tuple(value) if isinstance(value, list) else value) in self.allowed


OFF = (None, False, 0, 0.0, "", "None", ())
RAYS, BOX = "every ray of a view is rendered", "rays begin and end at the box of scene.radius"
MARCH = "rays are marched through an occupancy grid"
MEAN = "another measure here: loss.lambda_laplacian of the preset"
LORA = "the twin is a LoRA on the prior itself"
ADAM = "the twin's AdamW does not see the scale of its loss"
FIXED = {
    "description": Fixed(None),
    "use_timestamp": Fixed((True,), nearest="tag=, in front of the time"),
    "data_type": Fixed(
        ("random-camera-datamodule", "eff-random-camera-datamodule"), nearest="random cameras: camera.*"
    ),
    "data.eval_batch_size": Fixed(None),
    "data.rays_d_normalize": Fixed((True,)),
    "data.progressive_until": Fixed(OFF, nearest="camera.elevation, camera.azimuth"),
    "data.requires_*": Fixed(None),
    "system_type": Fixed(
        (
            "rf-system",
            "dreamfusion-system",
            "efficient-dreamfusion-system",
            "prolificdreamer-system",
            "sdi-system",
            "magic3d-system",
            "sjc-system",
            "latentnerf-system",
        ),
        nearest="text to 3D in one stage: --config configs/dreamfusion-sd.yaml",
    ),
    "system.stage": Fixed(("coarse",), nearest="a mesh: scene=mesh init=<run>, or refine=true"),
    "system.refinement": Fixed((*OFF, True)),
    "system.texture": Fixed(OFF, nearest="a mesh: scene=mesh init=<run>, optim.lr_geometry=0"),
    "system.geometry_convert_inherit_texture": Fixed((True,), "a mesh begins with the colours of its origin"),
    "system.geometry_convert_override.*": Fixed(None, "the level of the surface is found"),
    "system.weights_ignore_modules": Fixed(OFF, nearest="weights="),
    "system.cleanup_after_*": Fixed(None),
    f"{FIELD}n_input_dims": Fixed((3,)),
    f"{FIELD}n_feature_dims": Fixed((3,), nearest="colours, not latents"),
    f"{FIELD}normal_type": Fixed(OFF, "normals are differences of the density"),
    f"{FIELD}finite_difference_normal_eps": Fixed(None, "normals are differences over 0.01 of scene.radius"),
    f"{FIELD}density_bias": Fixed(("blob_magic3d",), nearest="scene.field.blob_density, blob_radius"),
    f"{FIELD}density_activation": Fixed(("softplus",), nearest="softplus with scene.field.blob_density"),
    f"{FIELD}isosurface_*": Fixed(None),
    f"{FIELD}mlp_network_config.otype": Fixed(None),
    f"{FIELD}mlp_network_config.activation": Fixed(("ReLU",)),
    f"{FIELD}mlp_network_config.output_activation": Fixed(("none",)),
    f"{FIELD}geometry_only": Fixed(OFF),
    f"{FIELD}grid_size": Fixed(None, nearest="the hash grid: scene.encoding.*"),
    f"{FIELD}sdf_*": Fixed(None, nearest="the hash grid: scene.encoding.*, scene.field.*"),
    f"{FIELD}shape_init*": Fixed(OFF, nearest="scene.field.blob_density, blob_radius"),
    f"{FIELD}anneal_density_blob_std_config": Fixed(OFF, nearest="scene.field.blob_radius"),
    "system.material.n_output_dims": Fixed((3,), nearest="colours, not latents"),
    "system.material.color_activation": Fixed(("sigmoid",), nearest="sigmoid"),
    "system.material.albedo_activation": Fixed(("sigmoid",), nearest="sigmoid"),
    "system.material.ambient_only_on_test": Fixed((True,), "final pictures show the colours, without a light"),
    "system.material.requires_normal": Fixed((*OFF, True)),
    "system.material.*": Fixed(None, nearest="colours, or a point light: scene.shading.*"),
    "system.background.n_output_dims": Fixed((3,), nearest="colours, not latents"),
    "system.background.color_activation": Fixed(("sigmoid",), nearest="sigmoid"),
    "system.background.*_config.*": Fixed(None, "the background has a network of its own"),
    "system.background.eval_color": Fixed(OFF, nearest="scene.background.rgb"),
    "system.background.learned": Fixed(OFF, nearest="scene.background.name=environment"),
    "system.background.height": Fixed(None, nearest="scene.background.name=environment"),
    "system.background.width": Fixed(None, nearest="scene.background.name=environment"),
    "system.renderer_type": Fixed(
        ("nerf-volume-renderer", "patch-renderer", "nvdiff-rasterizer"), nearest="the NeRF: scene=nerf"
    ),
    "system.renderer.radius": Fixed(None),
    "system.renderer.context_type": Fixed(None),
    "system.renderer.estimator": Fixed(("occgrid",), MARCH),
    "system.renderer.grid_prune": Fixed((True,), "empty space is left out"),
    "system.renderer.prune_alpha_threshold": Fixed((True,)),
    "system.renderer.eval_chunk_size": Fixed(None),
    "system.renderer.randomized": Fixed((True,)),
    "system.renderer.return_*": Fixed(None),
    "system.renderer.near_plane": Fixed(OFF, BOX),
    "system.renderer.far_plane": Fixed((10000000000.0,), BOX),
    "system.renderer.num_samples_per_ray_*": Fixed(None, MARCH),
    "system.renderer.prop*": Fixed(None, MARCH),
    "system.renderer.base_renderer*": Fixed(None),
    "system.renderer.patch_size": Fixed(None, RAYS),
    "system.renderer.use_volsdf": Fixed(OFF, nearest="densities: scene.field.*"),
    "system.prompt_processor_type": Fixed(
        ("stable-diffusion-prompt-processor", "sd3-prompt-processor"), nearest="the prior's own text encoder"
    ),
    f"{PROMPT}pretrained_model_name_or_path": Fixed(None),
    f"{PROMPT}use_cache": Fixed(None),
    f"{PROMPT}spawn": Fixed(None),
    f"{PROMPT}use_prompt_debiasing": Fixed(OFF, nearest="prior.prompt_side, prompt_front, prompt_back"),
    f"{PROMPT}*debiasing*": Fixed(None),
    "system.guidance_type": Fixed((*GUIDANCE, UNIFIED), nearest=", ".join(GUIDANCE)),
    f"{GUIDE}pretrained_model_name_or_path_lora": Fixed(None, LORA),
    f"{GUIDE}guidance_scale_lora": Fixed(None),
    f"{GUIDE}lora_cfg_training": Fixed(None, "the twin always sees the camera"),
    f"{GUIDE}lora_n_timestamp_samples": Fixed((1,)),
    f"{GUIDE}camera_condition_type": Fixed(("extrinsics",)),
    f"{GUIDE}var_red": Fixed((True,), nearest="loss=sjc, with the noise taken off"),
    f"{GUIDE}enable_*": Fixed(None),
    f"{GUIDE}token_merging*": Fixed(OFF, nearest="prior.dtype=bf16, prior.storage=fp8"),
    f"{GUIDE}trainer_max_steps": Fixed(None),
    f"{GUIDE}max_items_eval": Fixed(None),
    f"{GUIDE}n_ddim_steps": Fixed(None),
    f"{GUIDE}sqrt_anneal": Fixed(OFF, nearest="loss.t_law=annealed"),
    f"{GUIDE}grad_clip": Fixed(OFF, "the gradient is not clipped element by element; optim.clip limits its norm"),
    f"{GUIDE}use_img_loss": Fixed(OFF, nearest="the loss of latents alone"),
    f"{GUIDE}guidance_type": Fixed(tuple(BRANCHES), nearest="sds or vsd"),
    f"{GUIDE}vsd_*": Fixed(None, LORA),
    f"{GUIDE}cond_*": Fixed(None, nearest="text to 3D"),
    f"{GUIDE}control_type": Fixed(None, nearest="text to 3D"),
    "system.guidance_3d*": Fixed(None, nearest="one prior"),
    "system.loggers.wandb.*": Fixed(None),
    f"{LOSS}lambda_lora": Fixed((1,), ADAM),
    f"{LOSS}lambda_train_phi": Fixed((1,), ADAM),
    f"{LOSS}lambda_laplacian_smoothness": Fixed(OFF, MEAN),
    f"{LOSS}lambda_emptiness": Fixed(OFF, nearest="loss.lambda_sparsity"),
    f"{LOSS}lambda_*": Fixed(OFF, nearest="loss.lambda_*"),
    f"{LOSS}emptiness_scale": Fixed(None),
    f"{LOSS}center_ratio": Fixed(None),
    "system.optimizer.args.foreach": Fixed(None),
    "system.optimizer.args.max_grad_norm": Fixed(OFF, nearest="optim.clip"),
    "system.optimizer.params.*": Fixed(None, nearest="optim.lr_encoding, lr_networks, lr_background"),
    "system.optimizer.optimizer_dis.*": Fixed(None, nearest="optim.*"),
    "system.scheduler*": Fixed(None, nearest="optim.lr_* over steps: [0,0.001,0.01,100]"),
    "system.exporter_type": Fixed(("mesh-exporter",), "task=export writes meshes, whatever trained the scene"),
    "system.exporter.context_type": Fixed(None),
    "system.exporter.save_name": Fixed(("model",)),
    "system.exporter.*": Fixed(None, "files are as export.* says"),
    "trainer.num_sanity_val_steps": Fixed(None),
    "trainer.enable_progress_bar": Fixed(None),
    "trainer.precision": Fixed(None),
    "trainer.limit_*": Fixed(None),
    "trainer.inference_mode": Fixed(None),
    "trainer.gradient_clip_algorithm": Fixed(("norm", None)),
    "checkpoint.save_*": Fixed(None),
    "data.sample_*": Fixed(None, RAYS),
    "data.random_camera.*": Fixed(None, nearest="text to 3D: camera.*"),
    "data.image_path": Fixed(None, nearest="text to 3D: prompt="),
    "data.default_*": Fixed(None, nearest="text to 3D: camera.*"),
}
"""Patterns, the first that fits decides."""
VIEWS = "text to 3D: prompt= and camera.*"
OF_PICTURES: tuple[str, ...] = (
    "box_crop*",
    "cam_scale_factor",
    "dataroot",
    "eval_downsample_resolution",
    "load_preprocessed",
)
OF_PICTURES += ("max_num_frames", "render_path", "root_dir", "scale_radius", "test_split", "train_*", "use_mask")
OF_PICTURES += ("v2_mode", "val_split")
OTHER_PRIORS = ("condition_scale", "fixed_size", "pretrained_config", "return_rgb_1step_orig", "vram_O")
FIXED |= {f"data.{name}": Fixed(None, nearest=VIEWS) for name in OF_PICTURES}
FIXED |= {f"{GUIDE}{name}": Fixed(None, nearest="a prior that hears text: prior=") for name in OTHER_PRIORS}
FIXED |= {
    "system.freq.*": Fixed(None, nearest=VIEWS),
    "system.guide_shape": Fixed(None, nearest="a mesh to begin with: init=<file>"),
    "system.latent_steps": Fixed(None, nearest="the encoded picture, from the first step on"),
    "system.*_editing_step": Fixed(None, nearest="task=edit, or init=<run> experiment=tiny_edit"),
    "system.renderer.cos_anneal_end_steps": Fixed(None, nearest="the NeRF: scene=nerf"),
    "system.subpixel_rendering": Fixed(None),
}
OF_LATENTS = {"n_output_dims": 4, "color_activation": "none"}
REPLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "sjc": (
        "a voxel grid of latents and Adamax there, colours on the hash grid and AdamW here (docs/deviations.md)",
        {"system.geometry_type": "volume-grid", "system.background_type": "textured-background"}
        | {f"{FIELD}grid_size": [100, 100, 100], f"{FIELD}density_bias": -1.0, f"{FIELD}n_feature_dims": 4}
        | {f"system.{group}.{key}": value for group in ("material", "background") for key, value in OF_LATENTS.items()}
        | {"system.background.height": 4, "system.background.width": 4, "system.optimizer.name": "Adamax"}
        | {"system.optimizer.args.lr": 0.05, "system.optimizer.params.geometry.lr": 0.05}
        | {f"{LOSS}lambda_emptiness": [5000, 1e4, 2e5, 5001]},
    ),
}
"""What our preset of a file's name has instead of some of its values: that is said, and other values count."""


def fixed(key: str) -> Fixed | None:
    """The row of a key with nothing to choose."""
    exact = FIXED.get(key)
    return exact or next((row for pattern, row in FIXED.items() if fnmatchcase(key, pattern)), None)


def replaced(preset: str, key: str, value: Any) -> str:
    """What the preset of a file's name has instead of this value of the file; "" where nothing."""
    why, values = REPLACED.get(preset, ("", {}))
    return why if key in values and values[key] == value else ""
