"""`viewer=true`: the object in a browser while it is trained, from where one looks.

A sink behind the training loop that only reads the scene: the steps are those of a run without it. Nothing is rendered
while nobody looks. viser (Apache-2.0) serves the page, to this machine alone.
"""

from __future__ import annotations

import io
import math
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import Tensor

from threestudio_rf.app.console import LOG
from threestudio_rf.app.run.extras import optional
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.tasks.output.look import renderings
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.scenes.camera import Camera
from threestudio_rf.trainer.lift import LiftState

HOST = "127.0.0.1"
PORTS = 20
"""Ports that are tried one after the other before any free one."""
PAUSE = 0.25
"""Seconds between two looks at the least; a look that takes longer waits as long as it took."""
ABSENT = 10.0
"""Seconds without anybody looking after which a paused run goes on."""
SIZE = 128
"""Rows of the picture; it is as wide as the window, at most twice that."""
CURVES = ("loss", "t", "grad_norm")


def viewed(made: Result, states: Iterator[LiftState], stop: Stop) -> Iterator[LiftState]:
    """The states as they come, each shown first where `viewer=true`; the time of showing is not the run's."""
    viewer = open_viewer(made) if made.run.config.viewer else None
    if viewer is None:
        yield from states
        return
    try:
        for state in states:
            begun = time.perf_counter()
            viewer.show(state, stop)
            made.figures["seconds"] -= time.perf_counter() - begun
            yield state
    finally:
        viewer.close()


def open_viewer(made: Result) -> Viewer | None:
    """The page, at `viewer_port` or the next free one; None with one line where there is none."""
    viser = optional("viser", "the run goes on without a viewer")
    if viser is None:
        return None
    wanted = made.run.config.viewer_port
    port = free_port(wanted)
    if port is None:
        LOG.warning("no port of %s is free; the run goes on without a viewer", HOST)
        return None
    with redirect_stdout(io.StringIO()):
        viewer = Viewer(viser.ViserServer(host=HOST, port=port, verbose=False), viser.uplot.Series, made)
    taken = f" (port {wanted} is taken)" if wanted not in (0, viewer.port) else ""
    LOG.info("viewer: http://%s:%d%s", HOST, viewer.port, taken)
    return viewer


def free_port(wanted: int) -> int | None:
    """The first port from `wanted` on that nobody listens to; any where twenty are taken, None where all are."""
    for port in (*range(wanted, min(wanted + PORTS, 65536)), 0):
        try:
            with socket.create_server((HOST, port)) as one:
                return int(one.getsockname()[1])
        except OSError:
            continue
    return None


class Viewer:
    """A page of viser: the object, the last training view, curves, pause, the prompt, "Stop and save"."""

    def __init__(self, server: Any, series: Any, made: Result) -> None:
        self.server, self.made, self.port = server, made, int(server.get_port())
        config, gui = made.run.config, server.gui
        server.scene.set_up_direction("+z")
        away = 1.4 * config.camera.eval_distance  # the panel hides a part of the window
        server.initial_camera.position = (away, 0.0, 0.3 * away)
        server.initial_camera.fov = math.radians(config.camera.eval_fovy)
        gui.configure_theme(show_share_button=False)  # it would open a tunnel to the outside
        gui.add_text("Prompt", config.prompt, disabled=True)
        self.progress = gui.add_text("Step", f"{made.step} of {config.trainer.steps}", disabled=True)
        self.pause = gui.add_checkbox("Pause", False)
        self.halt = gui.add_button("Stop and save")
        self.view = gui.add_image(np.full((64, 64, 3), 255, np.uint8), label="Last training view")
        self.rows: list[tuple[float, ...]] = []
        none, step = np.zeros(1), series(label="step")
        lines = {name: series(label=name, stroke="#1f77b4", width=2) for name in CURVES}
        self.curves = [gui.add_uplot((none, none), (step, line), title=name) for name, line in lines.items()]
        self.broken = False
        self.next = self.seen = time.monotonic()
        self.at: dict[int, tuple[float, ...]] = {}

    def show(self, state: LiftState, stop: Stop) -> None:
        """What this step has made, to whoever looks; returns when nobody has it paused. Asks `stop` when "Stop and
        save" was pressed."""
        self.rows.append((float(state.step + 1), *(state.metrics.get(name, math.nan) for name in CURVES)))
        self.look(state)
        while self.pause.value and not self.halt.value and not stop.asked:
            if time.monotonic() - self.seen > ABSENT:
                self.pause.value = False
            time.sleep(0.05)
            self.look(state)
        if self.halt.value:
            LOG.info("viewer: stop and save")
            stop.ask()

    def look(self, state: LiftState) -> None:
        """Send what has changed, not more often than `PAUSE`, and nothing while nobody looks."""
        begun, clients = time.monotonic(), self.server.get_clients()
        if clients:
            self.seen = begun
        if not clients or begun < self.next or self.broken:
            return
        try:
            self._panel(state)
            self._object(state, clients)
        except (OSError, RuntimeError, ValueError) as error:
            LOG.warning("the viewer shows nothing more (%s); the run goes on", error)
            self.broken = True
        self.next = time.monotonic() + max(PAUSE, time.monotonic() - begun)

    def _object(self, state: LiftState, clients: dict[int, Any]) -> None:
        for number, client in clients.items():
            eye = client.camera
            where = (*eye.position, *eye.look_at, eye.fov, eye.image_width / max(1, eye.image_height))
            if self.at.get(number) == (*where, state.step):
                continue
            self.at[number] = (*where, state.step)
            camera = camera_of(where[:3], where[3:6], fov=where[6], aspect=where[7])
            (seen,) = renderings(self.made.scene, camera, self.made.run.device)
            client.scene.set_background_image(_bytes(seen.rgb[0]))

    def _panel(self, state: LiftState) -> None:
        total = self.made.run.config.trainer.steps
        if self.progress.value == f"{state.step + 1} of {total}":
            return
        self.progress.value = f"{state.step + 1} of {total}"
        last = state.rendering.rgb[0].cpu()
        larger = max(1, SIZE // last.shape[-1])
        self.view.image = _bytes(last.repeat_interleave(larger, 1).repeat_interleave(larger, 2))
        steps, *columns = np.array(self.rows[:: max(1, len(self.rows) // 500)]).T
        for curve, column in zip(self.curves, columns, strict=True):
            curve.data = (steps, column)

    def close(self) -> None:
        """Let go of the port."""
        with redirect_stdout(io.StringIO()):
            self.server.stop()


def camera_of(position: Sequence[float], target: Sequence[float], *, fov: float, aspect: float) -> Camera:
    """The camera (1,) that looks at the middle as a browser's at `position` (3,) looks at `target` (3,), up +z; fov in
    radians, aspect is width / height."""
    x, y, z = (float(a - b) for a, b in zip(position, target, strict=True))
    distance = max(math.hypot(x, y, z), 1e-3)
    angles = math.degrees(math.atan2(y, x)), math.degrees(math.asin(max(-1.0, min(1.0, z / distance))))
    values = [torch.tensor([value]) for value in (*angles, distance, math.degrees(fov))]
    return Camera(values[0], values[1], values[2], values[3], SIZE, max(1, min(2 * SIZE, round(SIZE * aspect))))


def _bytes(picture: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as bytes (H, W, 3)."""
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
