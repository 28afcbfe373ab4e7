"""The settings of task=train_tiny and task=grid, as `groups.py` declares the others. The module imports the
standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from threestudio_rf.app.settings.groups import opt

PARTS = ("vae", "sd3", "sd", "sd_v", "instaflow", "reflow", "pixel", "judge")


@dataclass
class TrainTinyConfig:
    """Training of the embedded networks."""

    part: str = opt("vae", "what to train", choices=PARTS)
    steps: int | None = opt(None, "steps; null: the part's own number", low=1)
    seconds: float | None = opt(None, "longest time; the learning rate falls with it; null: no limit", above=0)
    batch: int | None = opt(None, "batch; null: the part's own number", low=1)
    lr: float | None = opt(None, "learning rate; null: the part's own", above=0, high=1)
    per_shape: int | None = opt(None, "stored views per shape; null: the part's own number", low=1)
    processes: int = opt(1, "processes of one thread each that share every batch", low=1, high=64)
    start: str = opt("", "weights to begin with: `shipped`, or the folder of a trained prior; empty: fresh ones")
    target: str = opt("", "UNets: what is learned; empty: the part's own", choices=("", "eps", "x0", "v", "flow"))
    norm: str = opt("l2", "UNets: norm of the error", choices=("l1", "l2"))
    elbo: float = opt(0.0, "UNets: factor of the variational loss", low=0)
    learn_logvar: bool = opt(False, "UNets: learn the log-variance of every time")
    discriminator: str = opt("none", "vae: loss of a patch discriminator", choices=("none", "hinge", "vanilla"))
    discriminator_start: int = opt(0, "vae: step from which the discriminator takes part", low=0)
    discriminator_weight: float = opt(0.5, "vae: factor of the discriminator's adaptive weight", low=0, high=100)
    perceptual: float = opt(0.0, "vae with a discriminator: factor of the perceptual distance", low=0, high=100)
    folder: str = opt("", "where states and results are kept; empty: <exp_root_dir>/train_tiny")
    ship: bool = opt(False, "put the trained prior and judge into the package, with their sha256 sums")


@dataclass
class GridConfig:
    """task=grid: one run per method, prior, prompt and seed; see docs/grid.md."""

    name: str = opt("grid_2d", "folder of the results below exp_root_dir/grid")
    methods: list[str] = opt([], "`<label> [key=value ...]`; without loss= in it the label is the loss")
    priors: list[str] = opt([], "`<label> [key=value ...]`; without prior= in it the label is the prior")
    prompts: list[str] = opt([], "the texts")
    seeds: list[int] = opt([0], "the seeds", low=0)
    set: list[str] = opt([], "key=value of every run")
    docs: str = opt("", "Markdown file that gets the tables between <!-- <name> --> and <!-- end of <name> -->")
    jobs: str = opt(
        "1", "runs at once of a grid or of prompt_file, each a process of its own; auto: by GPUs or processors; 0: here"
    )
