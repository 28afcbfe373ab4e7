"""Config files of threestudio and of the reference: their keys and values, written down here, become settings of ours.

Seen to fail: the file not opened, or laid over another preset; values of the file above those of the command line; the
scale without its + 1, or with it under Perp-Neg; the window of RFDS taken as noise levels; a sum's factor left out;
milestones kept for one size; weights= of a record inherited; a key without counterpart dropped in silence.
"""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, to_text, typed
from threestudio_rf.app.settings.config import Config, leaves, value_of
from threestudio_rf.app.settings.flags import translate
from threestudio_rf.app.settings.peers import CONVERTED, RENAMED
from threestudio_rf.app.settings.unneeded import fixed

HASH = {"n_levels": 16, "n_features_per_level": 2, "log2_hashmap_size": 19, "base_resolution": 16}
HASH |= {"otype": "HashGrid", "per_level_scale": 1.447269237440378}
BANDS = HASH | {"otype": "ProgressiveBandHashGrid", "start_level": 8, "start_step": 2000, "update_steps": 500}
BLOB = {"density_bias": "blob_magic3d", "density_activation": "softplus"}
BLOB |= {"density_blob_scale": 10.0, "density_blob_std": 0.5}
CAMERA = {"camera_distance_range": [1.0, 1.5], "fovy_range": [40, 70], "elevation_range": [-10, 45]}
CAMERA |= {"eval_camera_distance": 1.5, "eval_fovy_deg": 70.0}
STILL = {"camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0}
FAR = {"camera_distance_range": [1.5, 2.0], "eval_camera_distance": 2.0, "light_sample_strategy": "dreamfusion"}
BASE = "stabilityai/stable-diffusion-2-1-base"
FOUR = {"geometry.encoding": 0.01, "geometry.density_network": 0.001, "geometry.feature_network": 0.001}


def common(name: str, kind: str) -> dict[str, Any]:
    """What all of these files have."""
    return {
        "name": name,
        "tag": "${rmspace:${system.prompt_processor.prompt},_}",
        "exp_root_dir": "outputs",
        "seed": 0,
        "data_type": "random-camera-datamodule",
        "data": CAMERA,
        "system_type": kind,
        "system": {
            "geometry_type": "implicit-volume",
            "geometry": {"radius": 1.0, "normal_type": None, **BLOB, "pos_encoding_config": HASH},
            "material_type": "no-material",
            "material": {"n_output_dims": 3, "color_activation": "sigmoid"},
            "background_type": "neural-environment-map-background",
            "background": {"color_activation": "sigmoid"},
            "renderer_type": "nerf-volume-renderer",
            "renderer": {"radius": "${system.geometry.radius}", "num_samples_per_ray": 512},
            "prompt_processor_type": "stable-diffusion-prompt-processor",
            "prompt_processor": {"pretrained_model_name_or_path": BASE, "prompt": "???"},
            "guidance_type": "stable-diffusion-guidance",
            "guidance": {"pretrained_model_name_or_path": BASE, "guidance_scale": 100.0},
            "loggers": {"wandb": {"enable": False, "project": "threestudio", "name": "None"}},
            "optimizer": {"name": "Adam", "args": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-15}},
        },
        "trainer": {"max_steps": 10000, "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 200}
        | {"enable_progress_bar": True, "precision": "16-mixed"},
        "checkpoint": {"save_last": True, "save_top_k": -1, "every_n_train_steps": "${trainer.max_steps}"},
    }


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """`other` over `one`, group by group; a group ending in = replaces the whole."""
    found = dict(one)
    for key, value in other.items():
        inside = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key.rstrip("=")] = merged(found[key], value) if inside else value
    return found


def rates(table: dict[str, float]) -> dict[str, Any]:
    return {name: {"lr": rate} for name, rate in table.items()}


def reference(
    name: str, guidance: str, scale: float, window: tuple[Any, Any], losses: dict[str, Any]
) -> dict[str, Any]:
    sd3 = guidance.endswith("sd3")
    path = "stabilityai/stable-diffusion-3-medium-diffusers" if sd3 else "XCLIU/2_rectified_flow_from_sd_1_5"
    text = {"negative_prompt": "unrealistic, blurry, low quality, oversaturation.", "front_threshold": 30.0}
    text |= {"back_threshold": 30.0, "pretrained_model_name_or_path": path}
    guide = {"pretrained_model_name_or_path": path, "guidance_scale": scale}
    guide |= {"min_step_percent": window[0], "max_step_percent": window[1]}
    changes = {
        "data": STILL
        | {"batch_size": [1, 1], "width": [256, 512], "height": [256, 512], "resolution_milestones": [5000]},
        "system": {
            "stage": "coarse",
            "background": {"random_aug": True},
            "prompt_processor_type": f"{'sd3' if sd3 else 'stable-diffusion'}-prompt-processor",
            "prompt_processor": text,
            "guidance_type": guidance,
            "guidance": guide,
            "loss": {"lambda_orient": 0.0, "lambda_z_variance": 0.0, **losses},
            "optimizer=": {"name": "AdamW", "args": {"betas": [0.9, 0.99], "eps": 1e-15}}
            | {"params": rates(FOUR | {"background": 0.001})},
        },
        "trainer": {"max_steps": 15000, "precision": 32},
    }
    return merged(common(name, "rf-system"), changes)


def studio(name: str, kind: str, **changes: Any) -> dict[str, Any]:
    return merged(common(name, kind), changes)


LIGHT = {"material_type": "diffuse-with-point-light-material"}
GEOMETRY = {"radius": 2.0, "normal_type": "analytic", "pos_encoding_config": BANDS}
SDS_LOSS = {"lambda_sds": 1.0, "lambda_orient": [0, 10.0, 1000.0, 5000], "lambda_sparsity": 1.0, "lambda_opaque": 0.0}
TWO = {"params": rates({"geometry": 0.01, "background": 0.001})}
EARLY, SHARES = [5000, 0.98, 0.7, 5001], {"min_step_percent": 0.02, "max_step_percent": 0.98}
INSTAFLOW = {"lambda_sparsity": 5.0, "lambda_opaque": [5000, 10, 100, 5001]}
SD3 = ([5000, 0.3, 0.3, 5001], [5000, 0.98, 0.98, 5001])
SD3_LOSS = {"lambda_rfds": 1, "lambda_sparsity": 0.2, "lambda_opaque": [5000, 0.1, 0.1, 5001]}
LATENT = {"n_output_dims": 4, "color_activation": "none"}
FAINT, EMPTY = {"background": 0.0001}, {"lambda_emptiness": [5000, 1e4, 2e5, 5001]}
FILES: dict[str, dict[str, Any]] = {
    "rfds": reference("rfds-3d", "RFDS", 50, (0.02, EARLY), {"lambda_rfds": 1, **INSTAFLOW}),
    "rfds-rev": reference("rfds-rev-3d", "RFDS-Rev", 50, (0.02, EARLY), {"lambda_rfds_rev": 1, **INSTAFLOW}),
    "rfds_sd3": reference("rfds-sd3-3d", "RFDS-sd3", 100, SD3, SD3_LOSS | {"lambda_sparsity": 0.1}),
    "rfds-rev_sd3": reference("rfds-rev-sd3-3d", "RFDS-Rev-sd3", 100, SD3, SD3_LOSS),
    "rfds-rev_sd3_low_memory": merged(
        reference("rfds-rev-sd3-3d", "RFDS-Rev-sd3", 100, SD3, SD3_LOSS),
        {"system": {"renderer": {"num_samples_per_ray": 256}}},
    ),
    "dreamfusion-sd": studio(
        "dreamfusion-sd",
        "dreamfusion-system",
        data=FAR | {"batch_size": 1, "width": 64, "height": 64},
        system=LIGHT
        | {"geometry": GEOMETRY, "material=": {"ambient_only_steps": 2001, "albedo_activation": "sigmoid"}}
        | {"guidance": SHARES | {"weighting_strategy": "sds"}, "loss": SDS_LOSS, "optimizer": TWO},
    ),
    "magic3d-coarse-sd": studio(
        "magic3d-coarse-sd",
        "magic3d-system",
        data=FAR | {"width": 64, "height": 64, "light_sample_strategy": "magic3d"},
        system=LIGHT
        | {"geometry=": GEOMETRY | BLOB | {"pos_encoding_config": HASH, "isosurface_resolution": 128}}
        | {"material=": {"ambient_only_steps": 2001, "soft_shading": True}}
        | {"guidance": SHARES | {"weighting_strategy": "uniform"}, "loss": SDS_LOSS, "optimizer": TWO},
    ),
    "magic3d-refine-sd": studio(
        "magic3d-refine-sd",
        "magic3d-system",
        data=FAR | {"width": 512, "height": 512, "fovy_range": [30, 45], "light_sample_strategy": "magic3d"},
        system=LIGHT
        | {"refinement": True, "geometry_convert_from": "???", "geometry_convert_inherit_texture": True}
        | {"geometry_type": "tetrahedra-sdf-grid", "renderer_type": "nvdiff-rasterizer"}
        | {"geometry=": {"radius": 2.0, "isosurface_resolution": 128, "isosurface_deformable_grid": True}}
        | {"material=": {"ambient_only_steps": 0, "soft_shading": True}, "renderer=": {"context_type": "gl"}}
        | {"guidance": {"weighting_strategy": "sds", "min_step_percent": 0.02, "max_step_percent": 0.5}}
        | {"loss": {"lambda_sds": 1.0, "lambda_normal_consistency": 10000.0}},
        trainer={"max_steps": 5000, "val_check_interval": 100},
    ),
    "prolificdreamer": studio(
        "prolificdreamer",
        "prolificdreamer-system",
        data=STILL | {"batch_size": [1, 1], "width": [64, 512], "height": [64, 512], "resolution_milestones": [5000]},
        system={"stage": "coarse", "background": {"random_aug": True}}
        | {"prompt_processor": {"front_threshold": 30.0, "back_threshold": 30.0}}
        | {"guidance_type": "stable-diffusion-vsd-guidance"}
        | {
            "guidance": {
                "pretrained_model_name_or_path_lora": "stabilityai/stable-diffusion-2-1",
                "guidance_scale": 7.5,
            }
        }
        | {"loss": {"lambda_vsd": 1.0, "lambda_lora": 1.0, "lambda_orient": 0.0, "lambda_sparsity": 10.0}}
        | {"optimizer=": {"name": "AdamW", "params": rates(FOUR | {"background": 0.001, "guidance": 0.0001})}},
        trainer={"max_steps": 25000, "precision": 32},
    ),
    "sdi": studio(
        "score-distillation-via-inversion",
        "sdi-system",
        data=FAR | {"batch_size": 1, "width": 512, "height": 512},
        system=LIGHT
        | {"geometry": GEOMETRY, "renderer": {"return_comp_normal": True}, "prompt_processor": {"use_perp_neg": True}}
        | {"material=": {"ambient_only_steps": 1000, "diffuse_prob": 0.3, "textureless_prob": 0.75}}
        | {"guidance_type": "stable-diffusion-sdi-guidance", "optimizer": TWO}
        | {
            "guidance": {"guidance_scale": 7.5, "weighting_strategy": "sds", "enable_sdi": True, "t_anneal": True}
            | {"min_step_percent": 0.25, "max_step_percent": 0.98, "inversion_guidance_scale": -7.5}
            | {"inversion_n_steps": 10, "inversion_eta": 0.3}
        }
        | {"loss": {"lambda_sdi": 1.0, "lambda_orient": 0.1, "lambda_convex": [0, 1.0, 0.1, 4000]}},
    ),
    "sjc": studio(
        "sjc",
        "sjc-system",
        data=STILL | {"camera_distance_range": [1.5, 1.5], "light_position_perturb": 0.0, "eval_elevation_deg": 20.0},
        system={"geometry_type": "volume-grid", "background_type": "textured-background", "material": LATENT}
        | {"geometry=": {"normal_type": None, "grid_size": [100, 100, 100], "density_bias": -1.0, "n_feature_dims": 4}}
        | {"background": LATENT | {"height": 4, "width": 4}, "renderer=": {"grid_prune": False}}
        | {"prompt_processor": {"view_dependent_prompt_front": True}}
        | {"guidance": {"use_sjc": True, "var_red": True, "min_step_percent": 0.01, "max_step_percent": 0.97}}
        | {"loss": {"lambda_sds": 1.0, "center_ratio": 0.78125, "lambda_depth": 0, "emptiness_scale": 10} | EMPTY}
        | {"optimizer=": {"name": "Adamax", "args": {"lr": 0.05}, "params": rates({"geometry": 0.05} | FAINT)}},
    ),
    "latentnerf": studio(
        "latentnerf",
        "latentnerf-system",
        system={
            "geometry": {"n_feature_dims": 4, "density_bias": "blob_dreamfusion", "density_activation": "trunc_exp"}
        }
        | {"material": LATENT, "background": LATENT, "scheduler": {"name": "SequentialLR", "warmup_steps": 100}}
        | {"loss": {"lambda_sds": 1.0, "lambda_sparsity": 5e-4, "lambda_opaque": 0.0, "lambda_orient": 0.0}},
    ),
}
"""By base name; the first five are the reference's."""
REFUSED = ("latentnerf",)
ELSEWHERE = {"prior.path", "trainer.validate_every", "trainer.log_every", "camera.views", "export.resolution"}
"""What a file says and a preset leaves to the schema; export.resolution is ours where they have 128."""


def flat(node: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in node.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def settings(*line: str) -> Config:
    config = typed(compose(translate(list(line)).overrides))
    check(config)
    return config


def written(folder: Path, name: str, data: dict[str, Any]) -> str:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(file)


def unlike(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    keys = [key for key in leaves() if key not in ELSEWHERE]
    pairs = {key: (value_of(one, key), value_of(other, key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if at_step(pair[0]) != at_step(pair[1])}


def at_step(value: Any) -> Any:
    """A value, or a list over steps that does not move as the number it is; to four digits."""
    if isinstance(value, list) and len(value) == 4 and value[1] == value[2]:
        value = value[1]
    if isinstance(value, list):
        return [at_step(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_their_files_is_known(name):
    known = [*RENAMED, *CONVERTED, *leaves(), "tag"]
    assert [key for key in flat(FILES[name]) if key not in known and fixed(key) is None] == []


@pytest.mark.parametrize("name", [name for name in FILES if name not in REFUSED])
def test_their_file_is_our_preset_of_that_name(name, tmp_path):
    line = ["system.prompt_processor.prompt=a hat, red"]
    found = settings("--config", written(tmp_path, name, FILES[name]), "--train", *line)
    preset = settings(f"experiment={name.replace('-', '_')}", *line)
    losses = FILES[name]["system"]["loss"]
    left_out = {f"loss.{key}" for key in ("lambda_opaque", "lambda_sparsity", "lambda_z_variance") if key not in losses}
    left_out |= {"scene.shading.spread"} if preset.scene.shading.start is None else set()
    assert set(unlike(found, preset)) <= left_out
    assert (found.prompt, found.name) == ("a hat, red", FILES[name]["name"])


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_with_what_is_not_here_is_refused_in_one_line_and_taken_with_strict_false(name, tmp_path):
    line = ["--config", written(tmp_path, name, FILES[name]), "prompt=a hat"]
    with pytest.raises(UserError, match=r"no counterpart here: .*n_feature_dims=4 .*; strict=false leaves") as caught:
        translate(line)
    assert "\n" not in str(caught.value)
    launch = translate([*line, "strict=false"])
    assert any("left out, no counterpart here" in note for note in launch.notes)
    assert settings(*line, "strict=false").loss.scale == 101


def test_what_a_preset_has_instead_of_its_files_values_is_said_and_other_values_count(tmp_path):
    file = written(tmp_path, "sjc", FILES["sjc"])
    (note,) = [line for line in translate(["--config", file, "prompt=a hat"]).notes if "voxel grid" in line]
    assert "colours on the hash grid" in note and "system.geometry.grid_size" in note
    assert settings("--config", file, "prompt=a hat").loss.lambda_sparsity == 1, "in the place of their emptiness"
    slower = written(tmp_path, "sjc", merged(FILES["sjc"], {"system": {"optimizer": {"name": "Adam"}}}))
    assert settings("--config", slower, "prompt=a hat").optim.weight_decay == 0
    other = written(tmp_path, "sjc", merged(FILES["sjc"], {"system": {"geometry": {"grid_size": [50, 50, 50]}}}))
    with pytest.raises(UserError, match=r"no counterpart here: system.geometry.grid_size=\[50, 50, 50\]"):
        translate(["--config", other, "prompt=a hat"])


def test_a_value_that_refers_to_what_is_not_in_the_file_is_told_with_its_key(tmp_path):
    for key in ("eval_elevation_deg", "n_test_views", "batch_size"):
        file = written(tmp_path, "mine", {"data": {key: "${data.default}"}, "prompt": "a hat"})
        with pytest.raises(UserError, match=f"data.{key}=.*nearest: its value cannot be worked out"):
            translate(["--config", file])
        assert settings("--config", file, "strict=false").prompt == "a hat"


def test_what_a_file_changes_counts_and_the_command_line_stands_above_it(tmp_path):
    changes = {"trainer": {"max_steps": 10}, "system": {"guidance": {"guidance_scale": 7}, "geometry": {"radius": 2.0}}}
    file = written(tmp_path, "rfds_sd3", merged(FILES["rfds_sd3"], changes))
    found = settings("--config", file, "prompt=a hat")
    assert (found.trainer.steps, found.loss.scale, found.scene.radius) == (10, 7, 2)
    above = settings("--config", file, "prompt=a hat", "system.guidance.guidance_scale=9", "trainer.steps=20")
    assert (above.trainer.steps, above.loss.scale, above.scene.radius) == (20, 9, 2)
    other = settings("--config", file, "prompt=a hat", "prior=tiny_sd3")
    assert (other.prior.name, other.prior.path, other.prior.image_size, other.loss.scale) == ("tiny_sd3", "", 64, 7)


def test_a_file_of_another_name_lies_on_the_preset_of_its_guidance_or_of_the_name_in_it(tmp_path):
    for name, data in FILES.items():
        found = translate(["--config", written(tmp_path, "mine", data), "prompt=a hat", "strict=false"]).overrides[0]
        presets = {"latentnerf": "dreamfusion_sd", "rfds-rev_sd3_low_memory": "rfds_rev_sd3"}
        assert found == f"experiment={presets.get(name, name.replace('-', '_'))}", name
    data = merged(FILES["rfds_sd3"], {"system": {"guidance_type": "RFDS-Rev-sd3"}})
    assert settings("--config", written(tmp_path, "rfds_sd3", data), "prompt=a hat").loss.noise == "rev"
    foreign = written(tmp_path, "if", merged(FILES["rfds"], {"system": {"guidance_type": "deep-floyd-guidance"}}))
    with pytest.raises(UserError, match=r"guidance_type=deep-floyd-guidance .nearest"):
        translate(["--config", foreign])
    with pytest.raises(UserError, match="guidance_type=deep-floyd-guidance is not here; name an experiment="):
        translate(["--config", foreign, "strict=false"])


@pytest.mark.parametrize(
    ("branch", "preset", "scale"), [("sds", "dreamfusion_sd", 100), ("vsd", "prolificdreamer", 7.5)]
)
def test_the_unified_guidance_is_one_of_two_presets_and_counts_as_we_do(branch, preset, scale, tmp_path):
    guide = {"guidance_type": branch, "guidance_scale": scale, "weighting_strategy": "dreamfusion"}
    changes = {"guidance_type": "stable-diffusion-unified-guidance", "guidance": guide}
    data = studio(
        "mine", "prolificdreamer-system", system=changes | {"loss": {"lambda_sd": 1.0, "lambda_train_phi": 1.0}}
    )
    found = settings("--config", written(tmp_path, "mine", data), "prompt=a hat")
    assert (found.experiment, found.loss.scale, found.loss.lambda_distill) == (preset, scale, 16384)
    assert found.loss.weight == "sigma2"


def test_a_whole_file_means_their_defaults_where_it_says_nothing(tmp_path):
    data = FILES["dreamfusion-sd"]
    data = data | {"data": {key: data["data"][key] for key in ("width", "height")}}
    found = settings("--config", written(tmp_path, "dreamfusion-sd", data), "prompt=a hat")
    assert (found.camera.elevation, found.camera.distance, found.camera.eval_distance) == ([-10, 90], [1, 1.5], 1.5)


GRID, LAMP, POINT = "system.geometry.pos_encoding_config", "system.material", "diffuse-with-point-light-material"
TETRA, CELLS, LIT = "tetrahedra-sdf-grid", "scene.mesh.resolution=64", "scene.shading.ambient=0.2"
HOLLOW, STILL_MESH = "loss.lambda_convex=1", ["optim.lr_geometry=0", "scene.mesh.reach=0"]
SDS, FLOW, FALL = "experiment=dreamfusion_sd", "experiment=rfds", "experiment=rfds_sd3"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ([SDS, "system.guidance.guidance_scale=100"], ["loss.scale=101"]),
        ([SDS, "system.guidance.guidance_scale=100", "system.prompt_processor.use_perp_neg=true"], ["loss.scale=100"]),
        (["experiment=sdi", "system.guidance.inversion_guidance_scale=-7.5"], ["loss.invert_scale=-7.5"]),
        (["experiment=sdi", "loss.perp_neg=false", "system.guidance.guidance_scale=7.5"], ["loss.scale=8.5"]),
        ([FLOW, "system.guidance.guidance_scale=50"], ["loss.scale=50"]),
        ([SDS, "system.guidance.max_step_percent=[5000,0.98,0.5,5001]"], ["loss.t_max=[5000,0.98,0.5,5001]"]),
        ([FLOW, "system.guidance.max_step_percent=[5000,0.98,0.7,5001]"], ["loss.t_min=[5000,0.02,0.3,5001]"]),
        ([FALL, "system.guidance.min_step_percent=0.3"], ["loss.t_max=0.875"]),
        ([SDS, "system.loss.lambda_sds=0.1"], ["loss.lambda_distill=1638.4"]),
        ([FLOW, "system.loss.lambda_rfds=[0,1.0,0.5,100]"], ["loss.lambda_distill=[0,2.0,1.0,100]"]),
        (["data.width=128", "data.height=128"], ["camera.sizes=[128]"] * 2),
        (["data.batch_size=4", "data.n_val_views=2"], ["camera.views=[4]", "camera.validation_views=2"]),
        (["data.eval_width=256", "data.n_test_views=30"], ["camera.eval_size=256", "camera.test_views=30"]),
        (["system.optimizer.params.geometry.lr=0.02"], ["optim.lr_encoding=0.02", "optim.lr_networks=0.02"]),
        (
            ["system.optimizer.name=Adam", "system.exporter.fmt=obj"],
            ["optim.weight_decay=0.0", "export.formats=['obj']"],
        ),
        (["system.background.random_aug=true"], ["scene.background.random=0.5"]),
        (["system.prompt_processor.prompt_side=a hat, from the side"], ["prior.prompt_side='a hat, from the side'"]),
        (["-m", SDS, "system.guidance.guidance_scale=7,100"], ["loss.scale=8,101"]),
        (["system.loggers.wandb.project=x", "trainer.precision=16-mixed", "use_timestamp=true"], []),
        (["system.geometry.density_bias=blob_magic3d", "system.refinement=true"], []),
        (["data.camera_perturb=0.0", "data.up_perturb=0.1"], ["camera.position_perturb=0.0", "camera.up_perturb=0.1"]),
        ([f"{GRID}.start_level=4", f"{GRID}.otype=ProgressiveBandHashGrid"], ["scene.encoding.start_level=4"]),
        ([f"{GRID}.otype=HashGrid"], ["scene.encoding.start_level=null"]),
        (["system.material_type=no-material", f"{LAMP}.ambient_only_steps=7"], ["scene.shading.start=null"]),
        ([f"system.material_type={POINT}", f"{LAMP}.ambient_only_steps=7"], ["scene.shading.start=7"] * 2),
        (
            [f"{LAMP}.ambient_only_steps=7", f"{LAMP}.soft_shading=true"],
            ["scene.shading.start=7", "scene.shading.soft=true"],
        ),
        ([f"{LAMP}.ambient_light_color=[0.2,0.2,0.2]", f"{LAMP}.diffuse_light_color=[0.8,0.8,0.8]"], [LIT]),
        (["data.light_sample_strategy=magic3d", "system.loss.lambda_convex=1"], ["scene.shading.law='cone'", HOLLOW]),
        (["system.geometry.isosurface_resolution=64"], ["export.resolution=64"]),
        ([f"system.geometry_type={TETRA}", "system.geometry.isosurface_resolution=64"], ["scene.name='mesh'", CELLS]),
        (["system.geometry.fix_geometry=true", "system.geometry.isosurface_deformable_grid=false"], STILL_MESH),
        (
            ["system.geometry_convert_from=a, b.ckpt", "system.geometry_convert_override.isosurface_threshold=5."],
            ["weights='a, b.ckpt'"],
        ),
    ],
)
def test_a_key_on_the_command_line_goes_through_the_same_table(line, expected):
    assert [
        item for item in translate(line).overrides if not item.startswith(("experiment=", "loss.perp_neg"))
    ] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["data.width=64", "data.height=128"], "width 64 and height 128: views are square"),
        (["system.optimizer.name=Adan"], "system.optimizer.name=Adan .nearest: AdamW"),
        (["system.exporter.fmt=fbx"], "fmt=fbx .nearest: export.formats"),
        (["system.loss.lambda_sds=1"], "nearest: .*loss.lambda_distill"),
        (["use_timestamp=false"], "nearest: tag=, in front of the time"),
        (["data.widht=64"], "unknown key data.widht; did you mean data.width"),
        (["system.material_type=pbr-material"], "nearest: colours, no-material, or diffuse-with-point-light-material"),
        (["system.material.diffuse_light_color=[0.5,0.5,0.5]"], "nearest: 0.9: both lights are 1 together"),
        (["system.material.ambient_light_color=[0.1,0.1,0.2]"], "nearest: a grey light: scene.shading.ambient"),
        (["system.geometry.pos_encoding_config.otype=Frequency"], "nearest: HashGrid or ProgressiveBandHashGrid"),
        (["strict=maybe"], "expected strict=true or strict=false"),
    ],
)
def test_a_key_that_cannot_be_followed_is_refused(line, message):
    with pytest.raises(UserError, match=message):
        translate(line)


def test_what_is_done_otherwise_is_said():
    notes = translate(["system.exporter_type=dummy-exporter", "system.material.ambient_only_on_test=false"]).notes
    assert len(notes) == 2 and "without a light" in "".join(notes) and "dummy-exporter" in "".join(notes)


def test_a_record_is_read_but_for_what_its_command_was_about(tmp_path):
    made = settings("experiment=rfds_sd3", "prompt=the ${oc.env:HOME} 'hat'", "loss.t_min=0.1", "prior.revision=main")
    data = yaml.safe_load(to_text(made)) | {"resume": "run", "weights": "", "task": "sample", "mode": "test"}
    found = settings("--config", written(tmp_path, "parsed", data))
    assert found == made and found.prompt == "the ${oc.env:HOME} 'hat'"
    assert settings("--config", str(tmp_path / "parsed.yaml"), "loss.t_min=0.2").loss.t_min == 0.2


def test_a_copy_of_our_own_preset_is_read_with_its_defaults(tmp_path):
    text = "defaults:\n  - override /prior: sd\n  - override /loss: sds\n"
    text += "experiment: rfds\nloss: {scale: 1e1}\nprompt: yes\n"
    (tmp_path / "copy.yaml").write_text(text)
    found = settings("--config", str(tmp_path / "copy.yaml"))
    assert (found.experiment, found.loss.name, found.loss.scale, found.prompt) == ("rfds", "sds", 10, "yes")
    assert found.name == "rfds-3d" and found.prior.path.startswith("stable-diffusion-v1-5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1, 2]", "expected keys with values"),
        (b"", "expected keys with values, got nothing"),
        (b"a: [", "is not YAML"),
        (b"seed: 2020-13-45", "is not YAML"),
        (b"seed: 2020-12-04", "seed"),
        (b"caf\xe9: x", "expected text in UTF-8 or UTF-16, got byte 0xe9 in line 1"),
        (b"version: 99\nprompt: x", "has version 99"),
        (b"promt: x", "unknown: promt, did you mean prompt"),
        (b"seed: 1\ntrainer: {steps: 3}\nseed: 2", "seed again in line 3, expected each key once"),
        (b"trainer:\n  steps: 3\n  steps: 4", "steps again in line 3"),
        (b"trainer: [1, 2]", "unknown: trainer"),
        (b"overrides: [seed=1]", "the overrides of a run; its settings are in parsed.yaml beside it"),
        (b"experiment: rfdss", "experiment: rfdss: expected one of|experiment=rfdss: expected one of"),
        (b"defaults: [{override /priors: sd}]", "expected one of the groups"),
        (b"system: {geometry: {radius: '${nowhere:1}'}}", "scene.radius|system.geometry.radius"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_a_file_that_cannot_be_followed_is_one_line(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(UserError, match=message) as caught:
        settings("--config", str(tmp_path / "mine.yaml"), "allow_empty_prompt=true")
    assert "\n" not in str(caught.value)


def test_what_is_merged_into_a_file_of_yaml_counts(tmp_path):
    (tmp_path / "mine.yaml").write_text("loss: &a {scale: 3}\nprompt: hat\noptim: {clip: 1}\n")
    assert settings("--config", str(tmp_path / "mine.yaml")).loss.scale == 3
    (tmp_path / "mine.yaml").write_text("prior: &a {path: '1'}\nprompt: hat\n<<: {tag: 'x, y', seed: 4}\n")
    found = settings("--config", str(tmp_path / "mine.yaml"))
    assert (found.tag, found.seed) == ("x, y", 4)


def test_files_of_other_programs_are_read_whatever_their_bytes_and_name(tmp_path):
    text = "trainer: {max_steps: 1e4}\nprompt: a hät\ncamera: {sizes: 64}\nsystem:\nloss:\n"
    for name, data in (
        ("mark.yaml", b"\xef\xbb\xbf" + text.encode()),
        ("windows.yml", text.replace("\n", "\r\n").encode()),
        ("powershell.yaml", text.encode("utf-16")),
        ("with space ü.yaml", text.encode()),
        ("mine.json", b'{"trainer": {"max_steps": "10000"}, "prompt": "a h\\u00e4t", "camera": {"sizes": [64]}}'),
        ("dotted.yaml", "trainer.max_steps: 10000.0\nprompt: a hät\ncamera.sizes: [64]\n".encode()),
    ):
        (tmp_path / name).write_bytes(data)
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(tmp_path / name)
        for path in (name, "link"):
            found = settings("--config", str(tmp_path / path))
            assert (found.trainer.steps, found.prompt, found.camera.sizes) == (10_000, "a hät", [64]), name


def test_an_endless_file_ends(tmp_path):
    bomb = ["a0: &a0 {x: 1, y: 2}"] + [f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 40)]
    (tmp_path / "mine.yaml").write_text("\n".join(bomb))
    with pytest.raises(UserError, match="more than 2000 keys"):
        translate(["--config", str(tmp_path / "mine.yaml")])


def test_the_table_of_the_docs_is_that_of_the_code():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("peer_keys", root / "bench" / "peer_keys.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (root / "docs" / "cli.md").read_text(encoding="utf-8")
    assert module.put(page) == page, "run: python bench/peer_keys.py --docs docs/cli.md"
    assert page.count("| `system.") > 100


def test_every_deviation_has_a_test_that_is_there():
    tests = Path(__file__).resolve().parents[1]
    page = (tests.parent / "docs" / "deviations.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| item")]
    assert len(rows) > 40
    for row in rows:
        file, _, name = row.split("|")[-2].strip().strip("`").partition("::")
        assert f"def {name}(" in (tests / file).read_text(encoding="utf-8"), row


def test_every_key_of_the_tables_reaches_the_settings_that_they_name():
    for key, ours in RENAMED.items():
        assert translate([f"{key}=1"]).overrides[0].partition("=")[0] == ours in leaves(), key
    samples = {
        "diffuse_light_color": "[0.9,0.9,0.9]",
        "background_type": "solid-color-background",
        "color": "[0,0.5,1]",
        "name": "Adam",
        "fmt": "obj",
    }
    samples |= {"weighting_strategy": "uniform", "resolution_milestones": "[5]", "save_texture": "false"}
    samples |= {"otype": "HashGrid", "material_type": POINT, "ambient_light_color": "[0.2,0.2,0.2]"}
    samples |= {"light_sample_strategy": "magic3d", "isosurface_deformable_grid": "false", "fix_geometry": "true"}
    samples |= {
        "view_dependent_prompting": "false",
        "geometry_type": "implicit-volume",
        "half_precision_weights": "false",
        "every_n_train_steps": "7",
    }
    for key, row in CONVERTED.items():
        last = key.rpartition(".")[2]
        truth = last.startswith(("use_", "enable_", "t_anneal", "view_dependent_prompt_", "random_aug"))
        value = samples.get(last, "true" if truth and last != "random_aug_prob" else "1")
        found = translate(["experiment=dreamfusion_sd", f"{key}={value}"]).overrides[1:]
        named = {item.partition("=")[0] for item in found}
        wanted = {name for name in leaves() for each in row.ours.split(", ") if fnmatch(name, each)}
        assert (named or last == "diffuse_light_color") and named - {"camera.milestones"} <= wanted | set(
            row.ours.split(", ")
        ), key
