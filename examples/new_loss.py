"""A loss of one's own, guidance that fades with the noise, beside a known one: python examples/new_loss.py"""

import torch

from threestudio_rf import evaluate, load_prior
from threestudio_rf.core.random import generator
from threestudio_rf.distill.combine import COMBINERS, Combiner
from threestudio_rf.distill.method import Method, distill
from threestudio_rf.priors.base import bind

STEPS = 300
PROMPT = "a red mushroom"
COMBINERS["fading"] = Combiner(  # guidance s(t) = 1 + (scale - 1) t: strong in noise, none on a clean picture
    roles=("cond", "uncond"), mix=lambda s, t, _: {"cond": 1 + (s - 1) * t, "uncond": (1 - s) * t}, target=1.0
)
prior = load_prior("tiny_sd3")
model = bind(prior, {"cond": prior.embed([PROMPT]), "uncond": prior.embed([""])})
for name in ("cfg", "fading"):
    method = Method(space="flow", combiner=name, scale=7)
    x = (0.3 * torch.randn(4, *prior.latent_shape, generator=generator(0, 0, "start"))).requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.03)
    for step in range(STEPS):
        t = torch.full((4,), 0.98 - 0.88 * step / STEPS)  # t falls
        optimiser.zero_grad()
        distill(x, model, t, method=method, generator=generator(0, step, "noise")).loss.backward()
        optimiser.step()
    print(name, evaluate(prior.decode(x.detach()), PROMPT))
