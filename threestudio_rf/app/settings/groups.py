"""The groups of settings, each with its default, its meaning and its range.

A field is declared by `opt(default, meaning, rule)`. Fields marked `ramp=True` take a number or one of threestudio's
lists (`trainer/ramp.py`). The module imports the standard library only, so that `--help` starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from threestudio_rf.priors.facts import DEFAULT, FACTS

KINDS = ("auto", "eps", "v", "flow")
STORAGES = ("none", "fp8")
QUANTIZATIONS = ("none", "int8", "nf4")
BOUNDS = ("auto", "none", "sigmoid", "tanh", "clip")
VIEW_WORDS = ("", "side", "front", "back", "overhead")
VIEWS = ("auto", "four", "octants", "camera")
SPACINGS = ("auto", "leading", "trailing", "linspace", "quad", "even", "flow_match", "karras", "exponential")
SOLVERS = ("euler", "midpoint", "heun", "fireflow", "dpmpp_2m")  # they never draw noise, so they invert too
SAMPLERS = ("auto", "ddpm", "ddim", *SOLVERS)
LEVELS = {"low": 0, "high": 1, "span": True}


def opt(default: Any, text: str, **rule: Any) -> Any:
    """A field with its help text and rule: `low`, `high` (inclusive), `above` (exclusive), `choices`, `length` (of a
    list), `span` (a list [low, high]), `ramp` (a value over steps)."""
    metadata = {"help": text, **rule}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(kind: type) -> Any:
    """A field that holds a group of settings."""
    return field(default_factory=kind)


@dataclass
class PriorConfig:
    """The frozen network."""

    name: str = opt(DEFAULT, f"which one ({', '.join(FACTS)})")
    path: str = opt("", "folder or owner/name of the weights; the embedded priors need none")
    dtype: str = opt("auto", "number format of the network", choices=("auto", "fp32", "bf16", "fp16"))
    revision: str | None = opt(None, "branch, tag or commit on the hub")
    variant: str | None = opt(None, "file variant, e.g. fp16")
    offline: bool = opt(False, "use the hub's cache only, download nothing")
    cache: str = opt("", "folder of cached text embeddings; empty: the user's cache folder")
    kind: str = opt("auto", "what sd's network predicts; auto: as its scheduler says", choices=KINDS)
    mirror_time: bool = opt(False, "tell a flow of sd's shape 1000 (1 - t): wrong, for comparison only")
    t5: bool = opt(True, "sd3: use T5 where the weights have it")
    max_sequence_length: int | None = opt(None, "sd3: tokens of T5, or zeros in their place", low=0, high=512)
    vae: str = opt("", "folder or owner/name of a tiny autoencoder (TAESD) to use instead of the prior's VAE")
    vae_checkpointing: bool = opt(False, "compute the VAE's encoder twice to keep less of it in memory")
    storage: str = opt("none", "keep the network's weights in this format and cast them when used", choices=STORAGES)
    quantization: str = opt("none", "quantise the network's weights", choices=QUANTIZATIONS)
    lora: str = opt("", "LoRA to merge, <file, folder or owner/name>[:scale]; several with commas")
    delta: str = opt("", "folder or owner/name of a network whose difference to delta_from is added")
    delta_from: str = opt("", "what prior.delta is compared with; empty: the prior's own weights")
    delta_scale: float = opt(1.0, "factor of that difference", low=-100, high=100)
    offload: bool = opt(False, "keep on the GPU only the one of network and VAE that is in use")
    offload_blocks: int = opt(0, "blocks of the network that are on the GPU at a time; 0: all", low=0, high=1000)
    compile: bool = opt(False, "network and VAE's encoder through torch.compile (needs a C++ compiler)")
    image_size: int = opt(0, "resize renders to this before the encoder; 0: as rendered", low=0, high=4096)
    views: str = opt("auto", "how a view is named: SD's four words, octant and height, or the camera", choices=VIEWS)
    view_pattern: str = opt("{prompt}, {view} view", "how a view word is joined to the prompt")
    front: float = opt(45.0, "'front view' within this many degrees of azimuth 0", low=0, high=180)
    back: float = opt(45.0, "'back view' within this many degrees of azimuth 180", low=0, high=180)
    overhead: float = opt(60.0, "'overhead view' above this elevation in degrees", low=-90, high=90)
    prompt_side: str | None = opt(None, "the prompt to use from the side instead")
    prompt_front: str | None = opt(None, "the prompt to use from the front instead")
    prompt_back: str | None = opt(None, "the prompt to use from behind instead")
    prompt_overhead: str | None = opt(None, "the prompt to use from above instead")
    std: float = opt(0.1, "gaussian prior: standard deviation of each mode", above=0)
    size: int = opt(0, "height and width of its pictures; 0: its own (gaussian 8, tiny_exact 64)", low=0, high=4096)
    bank_views: int = opt(1500, "tiny_exact: true views per shape", low=1, high=20000)
    bank_std: float = opt(0.02, "tiny_exact: deviation of what its views do not resolve", above=0, high=1)


@dataclass
class EncodingConfig:
    """Multiresolution hash grid."""

    backend: str = opt("auto", "implementation", choices=("auto", "torch", "triton", "tinycudann"))
    geometry: str = opt("tcnn", "tiny-cuda-nn's vertices, or those of a plain lattice", choices=("tcnn", "plain"))
    half: bool = opt(False, "Triton's kernels read the table in half precision")
    levels: int = opt(16, "number of resolutions", low=1, high=32)
    features: int = opt(2, "numbers per entry", low=1, high=8)
    log2_table: int = opt(19, "log2 of the entries per level", low=4, high=24)
    base: int = opt(16, "coarsest resolution", low=1, high=512)
    growth: float = opt(1.447269237440378, "factor from level to level", low=1, high=4)
    start_level: int | None = opt(None, "levels in use at first, the coarse ones; null: all of them", low=1, high=32)
    start_step: int = opt(2000, "step up to which it stays so", low=0)
    update_steps: int = opt(500, "then one level more every so many steps", low=1)


@dataclass
class FieldConfig:
    """Density and colour over the encoding."""

    hidden: int = opt(64, "width of the network", low=1, high=1024)
    layers: int = opt(1, "hidden layers of the network", low=1, high=8)
    bf16: bool = opt(False, "density and colour of samples by a network in bfloat16: less memory; normals stay in fp32")
    density_scale: float = opt(1.0, "factor of every density; small scenes need more to be opaque", above=0, high=1000)
    blob_density: float = opt(10.0, "height of the initial density in the middle", low=-1000, high=1000)
    blob_radius: float = opt(0.5, "radius of the initial density", above=0, high=10)


@dataclass
class BackgroundConfig:
    """The background."""

    name: str = opt("environment", "kind", choices=("solid", "environment"))
    rgb: list[float] = opt([1.0, 1.0, 1.0], "colour of the solid background", low=0, high=1, length=3)
    random: float = opt(0.5, "share of training views over a random flat colour", low=0, high=1)


@dataclass
class RendererConfig:
    """Volume rendering."""

    samples_per_ray: int = opt(512, "samples along a ray", low=2, high=4096)
    occupancy_resolution: int = opt(32, "cells per side of the grid of empty space", low=2, high=512)
    occupancy_threshold: float = opt(0.01, "opacity below which a cell is empty", low=0, high=1)
    ray_chunk: int = opt(0, "rays rendered at once; 0: 65536, on a GPU by its free memory", low=0)
    marching: str = opt("auto", "implementation", choices=("auto", "torch", "triton", "nerfacc"))


@dataclass
class ImageConfig:
    """scene=image: pictures, or their latents, as they are."""

    kind: str = opt("latent", "what is optimised", choices=("latent", "pixels"))
    size: int = opt(0, "height and width, of a latent in its own elements; 0: the prior's own", low=0, high=4096)
    particles: int = opt(4, "number of pictures", low=1, high=1000)
    per_step: int = opt(0, "how many of them a step looks at; 0: all", low=0, high=1000)
    order: str = opt("turn", "which: the next in turn, or random ones with replacement", choices=("turn", "random"))
    init: str = opt("normal", "law of the start", choices=("normal", "uniform"))
    std: float = opt(12**-0.5, "standard deviation of the start", low=0, high=100)
    bound: str = opt("auto", "what holds the values; auto: sigmoid for pixels, none for latents", choices=BOUNDS)
    view: str = opt("", "view word put behind the prompt", choices=VIEW_WORDS)


@dataclass
class MeshConfig:
    """scene=mesh: a surface of marching tetrahedra; its colours are those of `scene.encoding` and `scene.field`."""

    resolution: int = opt(48, "cells per side of the grid", low=4, high=192)
    reach: float = opt(0.45, "how far a vertex of the grid may move, in cells", low=0, high=0.95)
    ball: float = opt(0.5, "radius of the ball it begins with, as a share of scene.radius", above=0, high=0.95)
    diffusion: float = opt(0.0, "how far the gradient of the shape is spread, in cells", low=0, high=8)
    up: str = opt("auto", "upward axis of init='s file; auto: y, z for PLY and STL", choices=("auto", *"xyz"))
    paint_steps: int = opt(150, "steps that bring the colours of init= to the surface", low=0, high=10000)


@dataclass
class ShadingConfig:
    """Light in training (DreamFusion): a view is lit by a point light or shows its colours."""

    start: int | None = opt(None, "step from which views are lit; null: never", low=0)
    diffuse: float = opt(0.75, "share of lit views", low=0, high=1)
    textureless: float = opt(0.5, "share of lit views that are white", low=0, high=1)
    ambient: float = opt(0.1, "share of the light that comes from all sides", low=0, high=1)
    spread: float = opt(1.0, "how far the light's direction strays from the camera's", low=0, high=100)
    distance: list[float] = opt([0.8, 1.5], "range of the light's distance", above=0, high=1000, span=True)
    law: str = opt("normal", "direction, around the camera's; cone: up to 60 degrees off", choices=("normal", "cone"))
    soft: bool = opt(False, "a lit view draws its share of light from all sides")


@dataclass
class SceneConfig:
    """The optimised object or pictures."""

    name: str = opt("nerf", "kind (nerf: an object; image: pictures, or their latents)")
    image: ImageConfig = group(ImageConfig)
    mesh: MeshConfig = group(MeshConfig)
    radius: float = opt(1.0, "half the side of the cube that holds the object", above=0, high=100)
    encoding: EncodingConfig = group(EncodingConfig)
    field: FieldConfig = group(FieldConfig)
    background: BackgroundConfig = group(BackgroundConfig)
    shading: ShadingConfig = group(ShadingConfig)
    renderer: RendererConfig = group(RendererConfig)


@dataclass
class CameraConfig:
    """Cameras of training and of the final pictures; angles in degrees, z up, azimuth 0 = front."""

    sizes: list[int] = opt([256, 512], "sides of a training view, one per milestone (or one for all)", low=8, high=2048)
    milestones: list[int] = opt([5000], "steps at which the next size and number of views begin", low=1)
    views: list[int] = opt([1], "views per step, one per milestone (or one for all)", low=1, high=1024)
    elevation: list[float] = opt([-10.0, 45.0], "range", low=-90, high=90, span=True)
    azimuth: list[float] = opt([-180.0, 180.0], "range", low=-360, high=360, span=True)
    distance: list[float] = opt([1.0, 1.5], "range", above=0, high=1000, span=True)
    fovy: list[float] = opt([40.0, 70.0], "range of the vertical field of view", low=1, high=170, span=True)
    sphere: float = opt(0.5, "share of elevations drawn uniformly on the sphere", low=0, high=1)
    stratified: bool = opt(True, "spread the azimuths of one step evenly")
    position_perturb: float = opt(0.0, "cameras stray by up to this along x, y and z", low=0, high=100)
    center_perturb: float = opt(0.0, "deviation of the point they look at from the middle", low=0, high=100)
    up_perturb: float = opt(0.0, "deviation of their upward direction from z", low=0, high=100)
    eval_elevation: float = opt(15.0, "elevation of the turntable", low=-90, high=90)
    eval_distance: float = opt(1.5, "distance of the turntable", above=0, high=1000)
    eval_fovy: float = opt(70.0, "vertical field of view of the turntable", low=1, high=170)
    eval_size: int = opt(512, "height and width of the final pictures", low=8, high=4096)
    test_views: int = opt(120, "views of the turntable", low=1, high=10000)
    video_scale: int = opt(1, "sides of the turntable's pictures over eval_size", low=1, high=16)
    video_maps: list[str] = opt(["rgb"], "what its video shows side by side", choices=("rgb", "normal", "opacity"))
    validation_views: int = opt(4, "views of a validation", low=1, high=100)


@dataclass
class OptimConfig:
    """AdamW with one learning rate per group."""

    lr_encoding: Any = opt(0.01, "learning rate of the hash grid", ramp=True, low=0, high=10)
    lr_networks: Any = opt(0.001, "learning rate of the networks", ramp=True, low=0, high=10)
    lr_background: Any = opt(0.001, "learning rate of the background", ramp=True, low=0, high=10)
    lr_geometry: Any = opt(0.01, "learning rate of a mesh, in cells of its grid", ramp=True, low=0, high=10)
    lr_image: Any = opt(0.03, "learning rate of pictures or their latents", ramp=True, low=0, high=10)
    betas: list[float] = opt([0.9, 0.99], "decay of the two means", low=0, high=0.99999, length=2)
    eps: float = opt(1e-15, "added to the root of the second mean", above=0, high=1)
    weight_decay: float = opt(0.01, "pull of every weight to zero", low=0, high=10)
    clip: float = opt(0.0, "largest norm of the gradient; 0: no limit", low=0)
    accumulate: int = opt(1, "steps whose mean gradient is one step of the optimiser", low=1, high=1000)


@dataclass
class TrainerConfig:
    """The loop."""

    steps: int = opt(15000, "number of steps", low=1)
    validate_every: int = opt(500, "steps between validation pictures; 0: none", low=0)
    log_every: int = opt(10, "steps between rows of metrics.csv", low=1)
    progress: int = opt(60, "frames of save/progress.mp4, one view while it is trained; 0: none", low=0, high=10000)
    skip_limit: int = opt(20, "stop after this many steps in a row whose loss or gradient is not finite", low=1)
    empty_limit: int = opt(100, "warn after this many steps in a row without opacity", low=1)
    threads: int = opt(0, "of the CPU in a step; 0: torch's own; of two, one for few views of an embedded prior", low=0)


@dataclass
class CheckpointConfig:
    """Saved states."""

    every: int = opt(1000, "steps between checkpoints; 0: at the end only", low=0)
    keep: int = opt(2, "how many to keep", low=1, high=1000)


@dataclass
class ExportConfig:
    """Meshes."""

    resolution: int = opt(128, "cells per side for marching cubes", low=8, high=1024)
    threshold: Any = opt("auto", "density of the surface, a number or auto")
    formats: list[str] = opt(["glb", "obj", "ply"], "files to write", choices=("glb", "obj", "ply", "stl"))
    smooth: float = opt(1.0, "width in cells of the blur that takes the density's noise off; 0: none", low=0, high=5)
    faces: int = opt(20000, "most triangles; 0: all", low=0)
    texture: Any = opt("auto", "picture of GLB and OBJ: texels a side, auto, or none (colours at the vertices)")
    material: str = opt("pbr", "GLB: lit by the viewer, or shown as it is", choices=("pbr", "unlit"))
    up: str = opt("y", "upward axis of OBJ; GLB has y, PLY and STL have z", choices=("y", "z"))
    scale: str = opt("unit", "longest side 1 around the origin, or as in the scene", choices=("unit", "scene"))


@dataclass
class SampleConfig:
    """task=sample: pictures straight from the prior. There the names go without `sample.`: steps=20 cfg=5."""

    n: int = opt(4, "number of pictures", low=1, high=10000)
    batch: int = opt(4, "pictures at once", low=1, high=1000)
    sampler: str = opt("auto", "solver; auto: that of the prior's own folder", choices=SAMPLERS)
    steps: int = opt(20, "steps from noise to picture", low=1, high=1000)
    eta: float = opt(0.0, "share of fresh noise of sampler=ddim", low=0, high=1)
    cfg: float = opt(5.0, "guidance scale; 1: none", low=0, high=1000)
    guidance_interval: list[float] = opt([0.0, 1.0], "noise levels that hear it; others: the prompt alone", **LEVELS)
    rescale: float = opt(0.0, "share of guidance rescale", low=0, high=1)
    perp_neg: float = opt(0.0, "Perp-Neg weight of negative_prompt (below 0); 0: it replaces the empty prompt", high=0)
    spacing: str = opt("auto", "times of the steps; auto: as diffusers' pipeline of the prior", choices=SPACINGS)
    offset: int | None = opt(None, "steps_offset of spacing=leading; null: 1", low=0, high=999)
    shift: float | None = opt(None, "resolution shift of the steps of a flow; null: the prior's own", above=0, high=100)
    image: str = opt("", "start from this picture")
    strength: float | None = opt(None, "share of the steps done from image=; null: 0.8, with a mask 1", above=0, high=1)
    mask: str = opt("", "picture whose white part is made anew, the black part of image= is kept")
    variance: str = opt("small", "variance of sampler=ddpm", choices=("small", "large"))
    limit: str = opt("none", "limit of every x0_hat", choices=("none", "clip", "threshold"))
    temperature: float = opt(1.0, "factor of fresh noise", low=0, high=10)
    repeat_noise: bool = opt(False, "the same fresh noise for all pictures")
    noise_dropout: float = opt(0.0, "share of fresh noise that is left out", low=0, high=0.99)
    strip: bool = opt(False, "also write the trajectory of x0_hat as strip.png")
    log_every: int = opt(0, "steps between the pictures of the strip; 0: about eight pictures", low=0)
    view: str = opt("", "view word put behind the prompt", choices=VIEW_WORDS)


@dataclass
class EvaluateConfig:
    """Figures of a finished run of the tiny world."""

    auto: bool = opt(True, "with an embedded prior, evaluate at the end of lift")
    size: int = opt(64, "height and width of a held-out view", low=8, high=1024)
