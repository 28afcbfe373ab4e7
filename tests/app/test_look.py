"""The turntable and the video of the training: sizes, maps, speed, frames over the steps.

Mutations seen to fail: `video_scale` and `video_maps` not read, a frame too few, the frame counted as time of training.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imageio_ffmpeg
import pytest
import torch
from PIL import Image

from threestudio_rf.app.tasks.lift import frame_at
from threestudio_rf.app.tasks.output.look import renderings, turn_fps
from threestudio_rf.scenes.base import Rendering, Scene
from threestudio_rf.scenes.camera import Camera, orbit


def size_of(path: Path) -> tuple[int, int]:
    return next(imageio_ffmpeg.read_frames(str(path)))["size"]


def test_a_turntable_has_its_size_and_the_maps_that_were_asked_for(small, launcher, tmp_path):
    line = ["camera.video_scale=2", "camera.video_maps=[rgb,normal]", "trainer.progress=4", "prompt=a red ball"]
    code, folder, _, err = launcher(*small, *line, f"exp_root_dir={tmp_path}")
    assert code == 0 and folder is not None, err
    save = folder / "save"
    assert size_of(save / "it6-test.mp4") == (64, 32) and Image.open(save / "it6-test/0.png").size == (32, 32)
    assert Image.open(save / "it6-test.gif").size == (16, 16) and Image.open(save / "it4-0.png").height == 16
    assert size_of(save / "progress.mp4") == (16, 16)
    assert [path.name for path in sorted((save / "progress").iterdir())] == [f"{i:05d}.png" for i in range(4)]
    assert imageio_ffmpeg.count_frames_and_secs(str(save / "progress.mp4"))[0] == 4


@pytest.mark.parametrize(("total", "frames"), [(6, 4), (800, 60), (7, 100), (10, 1), (5, 0)])
def test_every_frame_belongs_to_one_step_and_the_last_to_the_last(total: int, frames: int):
    taken = [frame_at(step, total, frames) for step in range(1, total + 1)]
    assert [frame for frame in taken if frame is not None] == list(range(min(total, frames)))
    assert taken[-1] is not None or not frames


def test_a_turn_takes_four_seconds_whatever_its_frames():
    assert (turn_fps(120), turn_fps(60), turn_fps(2), turn_fps(1000)) == (30, 15, 4, 30)


class Dial(Scene):
    """A grey as bright as its camera stands far around; later views are done sooner."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, bool]] = []

    def render(self, camera: Camera, generator: torch.Generator | None = None, *, normals: bool = False) -> Rendering:
        turned = camera.azimuth % 360 / 360
        time.sleep(0.02 * float(1 - turned))
        self.seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        rgb = turned[:, None, None, None].expand(-1, 3, camera.height, camera.width)
        return Rendering(rgb, rgb[:, :1])


@pytest.mark.parametrize(("threads", "views"), [(1, 6), (2, 2), (2, 9), (3, 9)])
def test_views_come_in_their_order_whichever_thread_drew_them(threads: int, views: int):
    before, scene = torch.get_num_threads(), Dial()
    torch.set_num_threads(threads)
    try:
        found = list(renderings(scene, orbit(views, height=2, width=2), torch.device("cpu")))
        with ThreadPoolExecutor(1) as later:  # a thread that starts later takes the count that was set last
            assert later.submit(torch.get_num_threads).result() == threads
    finally:
        torch.set_num_threads(before)
    assert [round(float(seen.rgb[0, 0, 0, 0]) * views) for seen in found] == list(range(views))
    several = threads > 1 and views > 2
    assert len({who for who, _, _ in scene.seen}) == (threads + 1 if several else 1)
    assert not any(graph for _, _, graph in scene.seen)
    assert {count for _, count, _ in scene.seen[1:]} == ({1} if several else {threads})
