"""The exact denoiser of the tiny world, in pixels: the bound of every loss, and a teacher. It is no network: it knows
the true views.

A picture of view v is mu_v + (b - 1/2) w_v up to q: mu_v = 2 (sum_k colour_k S_vk + w_v / 2) - 1 with S_vk the shading
times the coverage of part k, w_v one minus the coverage, b the background. With b ~ N(1/2, 1/12) per channel, so
s^2 = 1/3 in [-1, 1], and q^2 I for what the bank of views does not resolve, per channel

    x_t ~ N(alpha mu_v, alpha^2 s^2 w_v w_v^T + var I),   var = alpha^2 q^2 + sigma^2,   d = x_t - alpha mu_v
    log r_v = log p(v) - sum over channels of (|d|^2 - alpha^2 s^2 (w.d)^2 / D) / (2 var) + log(D / var) / 2
    D = var + alpha^2 s^2 |w|^2,   m = sum_v r_v (mu_v + w_v alpha s^2 (w.d) / D)
    x0_hat = k x_t + (1 - alpha k) m  with  k = alpha q^2 / var,   eps_hat = (sigma / var) (x_t - alpha m)

All of it is linear in colours, so a bank holds S and w only, and colours that a prompt does not name cost no product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from threestudio_rf.core.convert import Kind, join
from threestudio_rf.core.level import Level, Schedule, rectified_flow
from threestudio_rf.priors.base import POSE, Condition, PriorError
from threestudio_rf.priors.sampling.pipeline import Formula, Pipeline
from threestudio_rf.priors.views import octant_index, view_index
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.tiny.world.bank import NARROW, Bank, BankCameras, Products, load_bank, rendered
from threestudio_rf.tiny.world.shapes import SHAPES, Shape
from threestudio_rf.tiny.world.truth import named, words_of
from threestudio_rf.tiny.world.views import COLOURS, VIEW_WORDS, WORDINGS, palette

S2 = 1 / 3
"""Variance of a background's channel in [-1, 1]."""
ANY = -1


class Block(NamedTuple):
    """One solid in Q sets of colours (Q, K, 3)."""

    bank: Products
    colours: Tensor


class Posterior(NamedTuple):
    """Unnormalised log r (B, Q, V) of a block and the gains alpha s^2 (w.d) / D (B, Q, 3, V)."""

    log: Tensor
    gain: Tensor


def posterior(x: Tensor, block: Block, alpha: Tensor, var: Tensor) -> Posterior:
    """For pictures x (B, 3, P), alpha and var (B,). log r holds the likelihood without what all views share."""
    bank, colour = block
    alpha, var = alpha[:, None], var[:, None]
    size = x.shape[-1]
    with_paint = torch.stack([x @ paint.T for paint in bank.paint], dim=2)
    with_clear = x @ bank.clear.T
    with_mu = 2 * torch.einsum("qkc,bckv->bqv", colour, with_paint)
    with_mu = with_mu + (with_clear - x.sum(2, keepdim=True)).sum(1)[:, None]
    cross = torch.einsum("qkc,kv->qcv", colour, bank.paint_clear)
    clear_mu = 2 * cross + bank.clear2 - bank.clear_sum
    squares = 4 * torch.einsum("qkc,kv->qv", colour.square(), bank.paint2)
    mixed = 4 * (cross.sum(1) - torch.einsum("qkc,kv->qv", colour, bank.paint_sum))
    mu2 = squares + mixed + 3 * (bank.clear2 + size - 2 * bank.clear_sum)
    clear_d = with_clear[:, None] - alpha[:, :, None, None] * clear_mu
    spread = var + alpha**2 * S2 * bank.clear2
    d2 = alpha[:, :, None] ** 2 * mu2 - 2 * alpha[:, :, None] * with_mu
    explained = (alpha**2 * S2 / spread)[:, None] * clear_d.square().sum(2)
    log = -(d2 - explained) / (2 * var[:, :, None]) - 1.5 * torch.log(spread / var)[:, None]
    return Posterior(log, (alpha * S2 / spread)[:, None, None] * clear_d)


def mean_of(share: Tensor, gain: Tensor, block: Block) -> Tensor:
    """sum_v r_v (mu_v + w_v gain_v) of a block (B, 3, P), for shares r (B, Q, V)."""
    bank, colour = block
    paint = 2 * torch.einsum("bqv,qkc->kbcv", share, colour)
    clear = (share[:, :, None] * (1 + gain)).sum(1)
    mean = clear @ bank.clear - share.sum((1, 2))[:, None, None]
    for part, weights in zip(bank.paint, paint, strict=True):
        mean = mean + weights @ part
    return mean


@dataclass(frozen=True)
class Reading:
    """A prompt read by the exact prior: the solid's number (ANY: all), its colours by index, a view's name by index."""

    solid: int
    colours: tuple[int, int]
    word: int


def view_word(prompt: str) -> int:
    """Index into WORDINGS of the view that a prompt names before the word "view", ANY without one."""
    text = f" {' '.join(words_of(prompt))} "
    for index in reversed(range(len(WORDINGS))):
        if f" {WORDINGS[index]} view " in text:
            return index
    return ANY


class ExactPrior:
    """The tiny world's posterior mean as a frozen prior in pixels: latents are pictures in [-1, 1] of any size.

    A prompt names one shape ("a red mushroom", "a mushroom": in all colours) or two ("a red ball on a blue cube"), and
    may name its view by a word of SD or by octant and height. The empty prompt is the mixture over all shapes and
    colours, each by a share of its views. Under the key POSE a condition holds (azimuth, elevation) of a camera;
    then its own view is rendered, at the bank's distance and field of view, and nothing else is heard. ValueError for
    a bank of less than one view.
    """

    name = "tiny_exact"
    licence = "none (a formula that knows the true views, no weights)"
    time_shift = 1.0

    def __init__(
        self,
        *,
        size: int = 64,
        cameras: BankCameras = NARROW,
        q: float = 0.02,
        cache: Path | None = None,
        kind: Kind = "flow",
        schedule: Schedule = rectified_flow,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if cameras.views < 1 or q <= 0:
            raise ValueError(f"views, q: got {cameras.views}, {q}, expected at least 1 and above 0")
        self.kind, self.schedule, self.latent_shape = kind, schedule, (3, size, size)
        self.pipeline: Pipeline = Formula(schedule)
        self.cameras, self.q, self.cache, self.dtype, self.device = cameras, q, cache, dtype, torch.device(device)
        self.solids: list[Shape] = []
        self.bank = lru_cache(maxsize=2 * len(SHAPES))(self._bank)

    def embed(self, prompts: list[str]) -> Condition:
        """Reads the prompts; PriorError for one that names no shape of the world, or two without "on"."""
        found = [self._read(prompt) for prompt in prompts]
        return Condition(
            {
                "solid": torch.tensor([reading.solid for reading in found]),
                "colours": torch.tensor([reading.colours for reading in found]),
                "word": torch.tensor([reading.word for reading in found]),
                POSE: torch.full((len(found), 2), torch.nan),
            }
        ).to(self.device)

    def fits(self, text: str) -> bool:
        """Always: names are looked for in the whole text."""
        return True

    def between(self) -> ExactPrior:
        """Itself: its levels are a formula's."""
        return self

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The posterior mean as a prediction of `kind`, (B, 3, H, H) like x_t."""
        level = self.schedule(t)
        out = torch.empty_like(x_t)
        posed = ~condition.tensors[POSE].isnan().any(1, keepdim=True)
        told = torch.cat((condition.tensors["solid"][:, None], condition.tensors["colours"], posed), dim=1)
        for what in told.unique(dim=0):
            rows = torch.nonzero((told == what).all(1)).squeeze(1)
            some = Level(level.alpha[rows], level.sigma[rows])
            x0, eps = self._split(x_t[rows], some, what.tolist(), condition.select(rows))
            out[rows] = join(self.kind, x0, eps, some)
        return out

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """The picture itself, in [-1, 1]."""
        return 2 * image - 1

    def decode(self, latents: Tensor) -> Tensor:
        """The picture in [0, 1], clamped."""
        return ((latents + 1) / 2).clamp(0, 1)

    def _read(self, prompt: str) -> Reading:
        if not prompt.strip():
            return Reading(ANY, (ANY, ANY), ANY)
        found = named(prompt)
        if found is None:
            raise PriorError(
                f"tiny_exact knows one shape, or two with 'on' between them, each in at most one colour, got "
                f"{prompt!r}; shapes: {', '.join(SHAPES)}; colours: {', '.join(COLOURS)}"
            )
        if found.solid not in self.solids:
            self.solids.append(found.solid)
        colours = [ANY if colour is None else list(COLOURS).index(colour) for colour in found.colours] + [ANY]
        return Reading(self.solids.index(found.solid), (colours[0], colours[1]), view_word(prompt))

    def _bank(self, solid: Shape, size: int) -> Products:
        return self._products(solid, load_bank(solid, size=size, cameras=self.cameras, cache=self.cache))

    def _own(self, solid: Shape, size: int, pose: Tensor) -> Products:
        """The views of cameras (B, 2), one each."""
        azimuth, elevation = pose.cpu().unbind(1)
        away, fovy = (azimuth.new_full((len(pose),), sum(x) / 2) for x in (self.cameras.distance, self.cameras.fovy))
        return self._products(solid, rendered(solid, Camera(azimuth, elevation, away, fovy, size, size)))

    def _products(self, solid: Shape, bank: Bank) -> Products:
        coverage, shading, part = (x.flatten(1).to(self.device) for x in bank[:3])
        clear = 1 - coverage.to(self.dtype) / 255
        lit = shading.to(self.dtype) / 255 * (1 - clear)
        paint = torch.stack([lit * (part == k) for k in range(len(solid.parts))])
        words = view_index(bank.azimuth, bank.elevation), len(VIEW_WORDS) + octant_index(bank.azimuth, bank.elevation)
        every = torch.arange(len(WORDINGS) + 1)[:, None]
        holds = (every == words[0]) | (every == words[1]) | (every == len(WORDINGS))
        products = ((paint**2).sum(2), (paint * clear).sum(2), paint.sum(2), (clear**2).sum(1), clear.sum(1))
        return Products(paint, clear, *products, holds.to(self.device))

    def _blocks(self, what: list[int], size: int, pose: Tensor) -> Iterator[Block]:
        """What is told of solid and colours as blocks; all solids share the number of views of one, or each has those
        of the cameras `pose`."""
        number, *chosen, posed = what
        every = palette().to(self.device, self.dtype)
        if number == ANY:
            some = slice(None, None, min(len(SHAPES), self.cameras.views))
            for solid in SHAPES.values():
                bank = self._own(solid, size, pose) if posed else self.bank(solid, size).of(some)
                yield Block(bank, solid.palette(every))
            return
        solid = self.solids[number]
        picked = [every if c == ANY else every[c : c + 1] for c in chosen[: solid.colours]]
        index = torch.cartesian_prod(*(torch.arange(len(rows)) for rows in picked)).reshape(-1, len(picked))
        named_colours = torch.stack([rows[i] for rows, i in zip(picked, index.unbind(1), strict=True)], dim=1)
        bank = self._own(solid, size, pose) if posed else self.bank(solid, size)
        yield Block(bank, solid.palette(named_colours))

    def _split(self, x_t: Tensor, level: Level, what: list[int], condition: Condition) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) of pictures that are told the same solid and colours."""
        x = x_t.flatten(2).to(self.dtype)
        alpha, sigma = (value.to(self.dtype) for value in level)
        var = (alpha * self.q) ** 2 + sigma**2
        pose = condition.tensors[POSE]
        blocks = [_told(block, condition) for block in self._blocks(what, _side(x_t), pose)]
        found = [posterior(x, block, alpha, var) for block, _ in blocks]
        logs = [
            (p.log + heard.to(self.dtype).log()[:, None]).flatten(1)
            for p, (_, heard) in zip(found, blocks, strict=True)
        ]
        shares = torch.cat(logs, dim=1).softmax(1).split([log.shape[1] for log in logs], dim=1)
        mean = sum(
            mean_of(share.view_as(p.log), p.gain, block)
            for share, p, (block, _) in zip(shares, found, blocks, strict=True)
        )
        assert isinstance(mean, Tensor)
        alpha, sigma, var = (value[:, None, None] for value in (alpha, sigma, var))
        kept = alpha * self.q**2 / var
        x0 = kept * x + (1 - alpha * kept) * mean
        eps = (sigma / var) * (x - alpha * mean)
        return x0.view_as(x_t).to(x_t.dtype), eps.view_as(x_t).to(x_t.dtype)


def _side(x_t: Tensor) -> int:
    """Height and width of square pictures (B, 3, H, W). ValueError for others."""
    if x_t.shape[1] != 3 or x_t.shape[-1] != x_t.shape[-2]:
        raise ValueError(f"x_t: got {tuple(x_t.shape)}, expected square pictures (B, 3, H, H)")
    return int(x_t.shape[-1])


def _told(block: Block, condition: Condition) -> tuple[Block, Tensor]:
    """The block and its mask of heard views (B, V). Where most views are heard by no sample these are left out: their
    share is 0, and the products would take most of the time."""
    heard = _heard(block.bank, condition)
    some = heard.any(0)
    if 2 * int(some.sum()) > len(some):
        return block, heard
    return block._replace(bank=block.bank.of(some)), heard[:, some]


def _heard(bank: Products, condition: Condition) -> Tensor:
    """Mask (B, V), 1 for the views that a sample's condition admits: that of its own camera, or those that its view
    word names; all views where the word fits none of the bank."""
    word, pose = condition.tensors["word"], condition.tensors[POSE]
    if not pose.isnan().any():
        return torch.eye(len(pose), device=pose.device)
    heard = bank.holds[torch.where(word == ANY, len(WORDINGS), word)]
    return torch.where(heard.any(1, keepdim=True), heard, torch.ones_like(heard)).to(torch.float32)
