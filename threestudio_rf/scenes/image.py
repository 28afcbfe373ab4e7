"""Pictures as a scene: what is optimised are the pictures themselves, or their latents, at their true size."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Generator, Tensor, nn

from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, sent

Picture = Literal["pixels", "latent"]
Init = Literal["normal", "uniform"]
Bound = Literal["none", "sigmoid", "tanh", "clip"]
Order = Literal["turn", "random"]
PICTURES: tuple[Picture, ...] = get_args(Picture)
INITS: tuple[Init, ...] = get_args(Init)
ORDERS: tuple[Order, ...] = get_args(Order)
BOUNDS: dict[str, tuple[Bound, ...]] = {"pixels": ("sigmoid", "tanh", "clip"), "latent": ("none", "tanh", "clip")}
"""What may hold the values of each kind; the first is the default."""


class ImageScene(Scene):
    """`shape` (N, C, H, W): N independent pictures (particles), the same to every camera.

    kind    what `values` are, and what `Rendering.rgb` holds
    pixels  C = 3, rgb in [0, 1]: by `bound` the sigmoid of the values, (1 + tanh) / 2, or the values themselves, put
            back into [0, 1] before each step (clip); the gradient is never cut off
    latent  a prior's latents: the values, unbounded, or their tanh, or put back into [-1, 1] before each step (clip);
            whoever distils them leaves the encoder out

    Values start from N(0, std^2), or uniform with that std, around the middle of the range. The reference of RFDS
    optimises latents eight times too large, U(-1, 1), and shrinks them bilinearly, so that a latent is the mean of four
    values: std 12^-1/2 = 0.289 at the true size.

    A rendering with a generator shows `per_step` of the particles (0: all): the next ones in turn, or random ones, with
    replacement as the reference draws them. Without a generator it shows all. ValueError for what does not fit.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        kind: Picture,
        *,
        generator: Generator,
        std: float = 12**-0.5,
        init: Init = "normal",
        bound: Bound | None = None,
        per_step: int = 0,
        order: Order = "turn",
    ) -> None:
        super().__init__()
        bound = BOUNDS[kind][0] if bound is None and kind in BOUNDS else bound
        if (kind == "pixels" and shape[1] != 3) or bound not in BOUNDS.get(kind, ()) or min(shape) < 1 or std < 0:
            raise ValueError(
                f"got shape {shape}, kind {kind!r}, bound {bound!r}, std {std}, expected (N, C, H, W) with C = 3 for "
                f"pixels, a kind with one of its bounds {BOUNDS}, std of at least 0"
            )
        if not 0 <= per_step <= shape[0] or order not in ("turn", "random") or init not in ("normal", "uniform"):
            got = (per_step, order, init)
            raise ValueError(
                f"per_step, order, init: got {got}, expected 0..{shape[0]}, turn or random, normal or uniform"
            )
        self.kind: Picture = kind
        self.bound, self.per_step, self.order = bound, per_step or shape[0], order
        draws = torch.randn if init == "normal" else _uniform
        middle = 0.5 if (kind, bound) == ("pixels", "clip") else 0.0
        self.values = nn.Parameter(middle + std * draws(shape, generator=generator))
        self._turn = 0

    @property
    def pictures(self) -> Tensor:
        """All particles (N, C, H, W) within their bound: colours in [0, 1], or latents."""
        if self.bound == "sigmoid":
            return self.values.sigmoid()
        if self.bound == "tanh":
            return (1 + self.values.tanh()) / 2 if self.kind == "pixels" else self.values.tanh()
        if self.bound == "clip":
            return self.values + (self._clipped() - self.values).detach()
        return self.values

    def _clipped(self) -> Tensor:
        return self.values.detach().clamp(0.0 if self.kind == "pixels" else -1.0, 1.0)

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The values of all pictures."""
        return {"image": [self.values]}

    def update(self, step: int, generator: Generator) -> None:
        """Before each step: its first particles, and values that a clip puts back."""
        self._turn = step
        if self.bound == "clip":
            self.values.data = self._clipped()

    def chosen(self, generator: Generator) -> Tensor:
        """Which particles (per_step,) the next rendering shows. Renderings of one step go on in turn."""
        count = len(self.values)
        if self.order == "random" and self.per_step < count:
            return torch.randint(count, (self.per_step,), generator=generator)
        first, self._turn = self._turn * self.per_step, self._turn + 1
        return (first + torch.arange(self.per_step)) % count

    def render(self, camera: Camera, generator: Generator | None = None, *, normals: bool = False) -> Rendering:
        """The particles of this step, without a generator all of them, fully opaque, whatever the camera; for a part of
        a batch its part of them. ValueError where they cannot be divided so."""
        rgb = self.pictures
        if generator is not None and self.per_step < len(rgb):
            rgb = rgb[sent(self.chosen(generator), rgb.device)]
        part, parts = camera.part
        if len(rgb) % parts:
            raise ValueError(f"got {len(rgb)} pictures, expected a multiple of {parts}")
        rgb = rgb.unflatten(0, (parts, -1))[part]
        return Rendering(rgb, torch.ones_like(rgb[:, :1]))


def _uniform(shape: tuple[int, ...], *, generator: Generator) -> Tensor:
    """U(-sqrt 3, sqrt 3): mean 0, variance 1."""
    return 3**0.5 * (2 * torch.rand(shape, generator=generator) - 1)
