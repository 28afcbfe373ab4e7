"""The prior as the loss of a renderer of one's own, 300 soft blobs: python examples/own_renderer.py"""

import torch
from PIL import Image

from threestudio_rf import distill

STEPS = 800
blobs = (0.2 * torch.randn(8, 300, 1, 1, generator=torch.Generator().manual_seed(0))).requires_grad_()
across, down = torch.meshgrid(torch.linspace(-0.7, 0.7, 64), torch.linspace(-0.7, 0.7, 64), indexing="xy")


def render(azimuth, elevation):  # (1,) degrees -> (1, 3, 64, 64), from afar, the nearest blob last, on white
    (ca, ce), (sa, se) = (f(torch.cat((azimuth, elevation)).deg2rad()) for f in (torch.cos, torch.sin))
    x, y, z, size, opacity, *rgb = blobs[:, ((blobs[0] * ca + blobs[1] * sa) * ce + blobs[2] * se).flatten().argsort()]
    away = (across - y * ca + x * sa) ** 2 + (down + z * ce - (x * ca + y * sa) * se) ** 2
    alpha = opacity.sigmoid() * torch.exp(-away / (0.1 * size.exp()) ** 2)
    left = torch.cat((torch.ones_like(alpha[:1]), (1 - alpha).flip(0).cumprod(0)))  # of the light, behind each blob
    return ((torch.stack(rgb).sigmoid() * alpha * left[:-1].flip(0)).sum(1) + left[-1])[None]


guidance = distill("a red mushroom", loss="tiny_rfds", prior="tiny_sd3", steps=STEPS)
optimiser = torch.optim.Adam([blobs], lr=0.02)
for step in range(STEPS):
    optimiser.zero_grad()
    azimuth, elevation = 360 * torch.rand(1), 30 * torch.rand(1)
    guidance(render(azimuth, elevation), step=step, azimuth=azimuth, elevation=elevation).loss.backward()
    optimiser.step()
seen = torch.cat([render(torch.tensor([a]), torch.tensor([15.0]))[0] for a in (0.0, 90.0, 180.0, 270.0)], -1)
Image.fromarray((255 * seen.detach()).byte().permute(1, 2, 0).numpy()).save("blobs.png")
