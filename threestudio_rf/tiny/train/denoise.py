"""The training losses of the embedded networks.

UNets: the denoising losses of DDPM (Ho et al. 2020), improved DDPM (Nichol and Dhariwal 2021) and latent diffusion
(Rombach et al. 2022) on Stable Diffusion's table, and velocity matching on the straight path. SD3: velocity matching
(Liu et al. 2022; Esser et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from threestudio_rf.core.convert import Kind, join, noise
from threestudio_rf.core.ddpm import DDPM
from threestudio_rf.core.level import Level, betas, rectified_flow
from threestudio_rf.core.random import generator
from threestudio_rf.core.times import draw as draw_times
from threestudio_rf.core.times import shift_time
from threestudio_rf.priors.folder.architecture import seeded
from threestudio_rf.tiny.train.data.captions import TEMPLATES, CaptionTable, told
from threestudio_rf.tiny.train.data.latents import CaptionedLatents
from threestudio_rf.tiny.train.training import compiled, device_of, half
from threestudio_rf.tiny.world.shapes import SHAPES
from threestudio_rf.tiny.world.views import COLOURS, WORDINGS

STEPS = 1000
Ask = Callable[[Any, Tensor, Tensor, Any], Tensor]
"""(network, x_t, label, the text encoder's answer) -> output (B, C, h, w)."""
WORDS = 0.05
"""Weight of the cross-entropy of what a caption says."""
Norm = Literal["l1", "l2"]
NORMS: tuple[Norm, ...] = get_args(Norm)


@dataclass(frozen=True)
class Objective:
    """What a network learns.

    `kind` is the target; "flow" is learned as InstaFlow does, as x0 - eps on the straight path. With e the error of a
    sample (the mean over its elements of `norm`), k its index and s the learned log-variance of that index (0 unless
    `learn_logvar`), its loss is simple (e exp(-s) + s) + elbo w_k e, where w_k is `DDPM.lvlb_weights`, 0 for a flow.
    `shift` draws a flow's times as SD3 does, nearer to the noise the larger it is (`shift_time`); 1: uniformly.
    """

    kind: Kind = "eps"
    norm: Norm = "l2"
    simple: float = 1.0
    elbo: float = 0.0
    learn_logvar: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in ("l1", "l2"):
            raise ValueError(f"got norm {self.norm!r}, expected l1 or l2")
        if self.kind == "flow" and self.elbo:
            raise ValueError(f"got elbo {self.elbo} for a flow, expected 0: its path has no variational weights here")


class Drawn(NamedTuple):
    """Times of a batch: the label the network hears, index k in 0..999 (long), level and variational weight, (B,)."""

    label: Tensor
    k: Tensor
    level: Level
    weight: Tensor

    def to(self, device: torch.device) -> Drawn:
        """The same on another device."""
        level = Level(*(x.to(device) for x in self.level))
        return Drawn(self.label.to(device), self.k.to(device), level, self.weight.to(device))


def table() -> DDPM:
    """Stable Diffusion's process: scaled_linear, 0.00085 to 0.012, 1000 steps."""
    return DDPM(betas("scaled_linear", STEPS))


def draw_discrete(kind: Kind) -> Callable[[int, Generator], Drawn]:
    """Indices k, uniform on the table; the label is k."""
    process = table()
    weights = process.lvlb_weights(kind).float()

    def drawn(n: int, draw: Generator) -> Drawn:
        k = torch.randint(STEPS, (n,), generator=draw)
        return Drawn(k, k, Level(*(x.float() for x in process.table.levels(k))), weights[k])

    return drawn


def draw_straight(shift: float = 1.0) -> Callable[[int, Generator], Drawn]:
    """Times t in [0, 1] on the straight path, uniform before the shift; the label is 1000 t."""

    def drawn(n: int, draw: Generator) -> Drawn:
        t = shift_time(torch.rand(n, generator=draw), shift)
        return Drawn(1000 * t, (t * STEPS).long().clamp(max=STEPS - 1), rectified_flow(t), torch.zeros(n))

    return drawn


def sample_error(prediction: Tensor, target: Tensor, norm: Norm) -> Tensor:
    """(B,): the mean over everything but the batch of |difference| or its square."""
    difference = (prediction - target).flatten(1)
    return difference.abs().mean(1) if norm == "l1" else difference.square().mean(1)


def weigh(error: Tensor, logvar: Tensor, weight: Tensor, objective: Objective) -> Tensor:
    """The loss of a batch from errors, log-variances and variational weights, all (B,); see `Objective`."""
    simple = error * torch.exp(-logvar) + logvar
    return (objective.simple * simple + objective.elbo * weight * error).mean()


def expected(data: CaptionedLatents, x0: Tensor, eps: Tensor, level: Level, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The target (x0, eps) of a network at x_t. Where sigma > alpha these are the means given x_t within the groups of
    `rows` (`CaptionedLatents.settled`); at less noise x_t tells which member was drawn, and the drawn ones are used."""
    noisy = torch.nonzero(level.sigma > level.alpha).squeeze(1)
    if not len(noisy):
        return x0, eps
    some = Level(level.alpha[noisy], level.sigma[noisy])
    x_t = noise(x0[noisy], eps[noisy], some)
    alpha, sigma = some.like(x_t)
    x0, eps = x0.clone(), eps.clone()
    x0[noisy] = data.settled(x_t, some, rows[noisy.to(rows.device)])
    eps[noisy] = (x_t - alpha * x0[noisy]) / sigma
    return x0, eps


class Heard(nn.Module):
    """Linear heads that name shape, colour and wording of a caption from the text's last token (B, width).

    A view says little of a noisy picture, so a text encoder that learns from pictures alone forgets its words before
    the network has learned them; the encoders of real pipelines come trained. Dropped after training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, len(names)) for names in (SHAPES, COLOURS, WORDINGS))

    def forward(self, last: Tensor, said: Tensor) -> Tensor:
        """Mean cross-entropy over what the captions say (B, 3); -1 is not said."""
        terms = [
            F.cross_entropy(head(last), label, ignore_index=-1, reduction="sum")
            for head, label in zip(self.heads, said.unbind(1), strict=True)
        ]
        return torch.stack(terms).sum() / (said >= 0).sum().clamp_min(1)


def teach_words(encoder: Any, heard: Heard, table: CaptionTable, *, steps: int, seed: int, batch: int = 256) -> float:
    """Train text encoder and heads on captions alone, before any picture: the mean cross-entropy of the last ten steps.

    An encoder that knows its words already is hardly moved.
    """
    optimiser = torch.optim.AdamW([*encoder.parameters(), *heard.parameters()], lr=1e-3)
    sizes, losses = (len(TEMPLATES) - 1, len(SHAPES), len(COLOURS), len(WORDINGS)), list[float]()
    for step in range(steps):
        draw = generator(seed, step, "train/words")
        index = [torch.randint(size, (batch,), generator=draw) for size in sizes]
        ids = table[index[0], index[1], index[2], index[3]].to(device_of(heard))
        loss = heard(encoder(ids).pooler_output.float(), told(*index).to(ids.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / max(1, len(losses[-10:]))


class LogVariance(nn.Module):
    """The learned log-variance of every index, 0 at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(STEPS))

    def forward(self, k: Tensor) -> Tensor:
        return self.value[k]


def ask_unet(network: Any, x_t: Tensor, label: Tensor, text: Any) -> Tensor:
    """A UNet that reads all tokens of the text."""
    out: Tensor = network(x_t, label, text.last_hidden_state).sample
    return out


class DenoisePart:
    """A network and its text encoder under an `Objective`. `noises` (N, C, h, w) fixes the noise of every row (reflow);
    `ask` calls another network than a UNet, `times` draws others than the objective's."""

    def __init__(
        self,
        name: str,
        unet: Any,
        encoder: Any,
        data: CaptionedLatents,
        *,
        objective: Objective,
        batch: int = 64,
        noises: Tensor | None = None,
        autocast: bool = True,
        ask: Ask = ask_unet,
        times: Callable[[int, Generator], Drawn] | None = None,
    ) -> None:
        self.name, self.unet, self.encoder = name, unet.to(memory_format=torch.channels_last), encoder
        self.modules = nn.ModuleDict({"unet": unet, "text": encoder})
        self.call = compiled(self.unet)
        with seeded(0):
            self.heard = Heard(encoder.config.hidden_size).to(device_of(self.modules))
        self.modules["heard"] = self.heard
        self.logvar = LogVariance()
        self.logvar.to(device_of(self.modules))
        if objective.learn_logvar:
            self.modules["logvar"] = self.logvar
        self.data, self.objective, self.batch = data, objective, batch
        self.noises, self.autocast, self.ask = noises, autocast, ask
        flow = objective.kind == "flow"
        own = draw_straight(objective.shift) if flow else draw_discrete(objective.kind)
        self.times = own if times is None else times

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """The weighted error, and its plain mean over the noisy and the clean half."""
        device = device_of(self.modules)
        x0, (ids,), rows, said = self.data.draw(self.batch, draw)
        drawn = self.times(self.batch, draw).to(device)
        eps = torch.randn(x0.shape, generator=draw) if self.noises is None else self.noises[rows].float()
        x0, eps = x0.to(device), eps.to(device)
        aim = expected(self.data, x0, eps, drawn.level, rows)
        with half(device, self.autocast):
            text = self.encoder(ids.to(device))
            x_t = noise(x0, eps, drawn.level).contiguous(memory_format=torch.channels_last)
            output = self.ask(self.call, x_t, drawn.label, text).float()
        sign = -1 if self.objective.kind == "flow" else 1
        target = sign * join(self.objective.kind, *aim, drawn.level)
        error = sample_error(output, target, self.objective.norm)
        loss = weigh(error, self.logvar(drawn.k), drawn.weight, self.objective)
        late = drawn.k >= STEPS // 2
        words = self.heard(text.pooler_output.float(), said.to(device))
        figures = {"noisy": error[late].mean().item(), "clean": error[~late].mean().item(), "words": words.item()}
        return loss + WORDS * words, figures


def embed_tokens(encoders: Sequence[nn.Module], ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """SD3's text input from token ids (B, T) per encoder: joined hidden_states[-2] (B, T, D) and pooled (B, P)."""
    outputs = [encoder(tokens, output_hidden_states=True) for encoder, tokens in zip(encoders, ids, strict=True)]
    hidden = torch.cat([out.hidden_states[-2] for out in outputs], dim=-1)
    return hidden, torch.cat([out.text_embeds for out in outputs], dim=-1)


class FlowPart:
    """Velocity matching |u_hat(x_t, t, caption) - (eps - x0)|^2 with logit-normal t and the means of `expected`; text
    encoders train along."""

    name = "sd3"

    def __init__(
        self,
        transformer: nn.Module,
        encoders: Sequence[nn.Module],
        data: CaptionedLatents,
        *,
        batch: int = 128,
        autocast: bool = True,
    ) -> None:
        self.modules = nn.ModuleDict({"transformer": transformer, "one": encoders[0], "two": encoders[1]})
        self.transformer, self.encoders = compiled(transformer), list(encoders)
        self.data, self.batch, self.autocast = data, batch, autocast

    def loss(self, step: int, draw: Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the velocity, over elements and batch."""
        device = device_of(self.modules)
        x0, ids, rows, _ = self.data.draw(self.batch, draw)
        t = draw_times(self.batch, draw, t_min=0.0, t_max=1.0, law="logit_normal").to(device)
        eps = torch.randn(x0.shape, generator=draw).to(device)
        x0, level = x0.to(device), rectified_flow(t)
        aim = expected(self.data, x0, eps, level, rows)
        with half(device, self.autocast):
            hidden, pooled = embed_tokens(self.encoders, [tokens.to(device) for tokens in ids])
            u_hat = self.transformer(
                hidden_states=noise(x0, eps, level),
                timestep=1000 * t,
                encoder_hidden_states=hidden,
                pooled_projections=pooled,
                return_dict=False,
            )[0]
        error = (u_hat.float() - join("flow", *aim, level)).square().mean(dim=(1, 2, 3))
        late = t > 0.5
        return error.mean(), {"noisy": error[late].mean().item(), "clean": error[~late].mean().item()}
