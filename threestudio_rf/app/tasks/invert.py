"""task=invert: the noise of a picture, and what it leads back to."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from threestudio_rf.app.build.check.edit import name_of
from threestudio_rf.app.console import LOG
from threestudio_rf.app.run.run import Run
from threestudio_rf.app.tasks.desk import Desk, Figures, Given, follow, free, over_pictures, report
from threestudio_rf.core.files import write_files
from threestudio_rf.core.random import generator
from threestudio_rf.core.sample import State
from threestudio_rf.edit.method import gathered, times_of
from threestudio_rf.export.media import contact_sheet, png

TITLES = ("picture", "first stage", "reconstruction")


def invert_picture(desk: Desk, given: Given) -> Figures:
    """Noise, reconstruction and figures of one picture."""
    started = time.perf_counter()
    editing = desk.begin([desk.run.config.edit.source])
    draws = [generator(desk.seed, 0, "edit")]
    trail: list[State] = []
    search = editing.find_noise(given.latents, generator=draws)
    eps = follow(search, editing.settings, lambda state: gathered(trail, state, editing.settings))
    calls = editing.calls
    *_, last = editing.resample(given.latents, trail, faithful=True, generator=draws)
    again = desk.prior.decode(last.x).cpu()
    seconds = round(time.perf_counter() - started, 3)
    top = times_of(editing.path.schedule, editing.settings)[:1]
    _write(desk, given, eps, float(editing.path.level(top).sigma))
    png(desk.run.save(f"{given.name}.png"), again[0])
    desk.sheet.append((given.name, [given.small[0], given.plain[0], again[0]]))
    found = desk.likeness(again, given.small)
    found |= {f"bound_{key}": value for key, value in desk.likeness(given.plain, given.small).items()}
    found |= {f"to_bound_{key}": value for key, value in desk.likeness(again, given.plain).items()}
    spread = {"noise_mean": float(eps.mean()), "noise_std": float(eps.std())}
    return found | spread | {"inversion_calls": calls, "network_calls": editing.calls, "seconds": seconds}


def _write(desk: Desk, given: Given, eps: Tensor, level: float) -> None:
    """`<name>.safetensors`: the noise e, the latents x0 and the start x_t = (1 - t') x0 + t' e of sampling."""
    from safetensors.torch import save

    tensors = {"noise": eps, "latents": given.latents, "start": torch.lerp(given.latents, eps, level)}
    about = {
        "prior": desk.prior.name,
        "method": name_of(desk.run.config),
        "source": desk.run.config.edit.source,
        "noise_level": f"{level:.6f}",
    }
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata=about)
    write_files({desk.run.save(f"{given.name}.safetensors"): data})


def command(run: Run) -> int:
    """The noise, the reconstruction, `save/strip.png` (or `grid.png` of all), `metrics.json`."""
    desk, done, failed = over_pictures(run, invert_picture)
    if desk.sheet:
        rows = desk.sheet[:16]
        cell = max(64, min(256, rows[0][1][0].shape[-1]))
        sheet = contact_sheet(rows if len(rows) > 1 else [("", rows[0][1])], titles=TITLES, cell=cell)
        LOG.info("wrote %s", png(free(run, "strip.png" if len(rows) == 1 else "grid.png"), sheet))
    return report(run, done, failed)
