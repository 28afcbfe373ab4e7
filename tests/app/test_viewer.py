"""`viewer=true`: the run is the same with and without it, and whoever connects sees the object.

Seen to fail: a viewer that moves a parameter, the address 0.0.0.0, no free port sought, a pause that waits for ever,
azimuth of the other sign, an error of a picture let through, "Stop and save" with SIGTERM's exit code.
"""

from __future__ import annotations

import contextlib
import csv
import math
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
import torch

from threestudio_rf.app.run.run import Run
from threestudio_rf.app.run.signals import Stop
from threestudio_rf.app.settings.layers import settings
from threestudio_rf.app.tasks.output import viewer
from threestudio_rf.app.tasks.output.result import Result
from threestudio_rf.trainer.checkpoint import load

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--remote-debugging-port=0"]
FAST = ["prompt=a red ball", "trainer.steps=3", "trainer.log_every=1", "evaluate.auto=false"]
STATE = SimpleNamespace(step=0, metrics={"loss": 1.0, "t": 0.5}, rendering=SimpleNamespace(rgb=torch.rand(1, 3, 8, 8)))


def rows(folder):
    """metrics.csv without what the clock says."""
    with (folder / "csv_logs" / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture
def opened(small, tmp_path):
    """A viewer of a fresh scene, on a free port."""
    changes = dict(item.split("=", 1) for item in small if not item.startswith("prior="))
    changes = {key: eval(value, {"false": False, "uniform": "uniform"}) for key, value in changes.items()}
    config = settings({"prior": "gaussian"}, changes | {"prompt": "a red ball", "viewer": True, "viewer_port": 0})
    one = viewer.open_viewer(Result(Run(config, tmp_path, torch.device("cpu"))))
    yield one
    one.close()


def connected(one, azimuth=0.0):
    """A browser's connection, its camera at that azimuth; waits until the server knows it."""
    import msgspec
    import viser
    from viser import _messages
    from websockets.sync.client import connect

    wire = connect(f"ws://127.0.0.1:{one.port}", subprotocols=[f"viser-v{viser.__version__}"], max_size=None)
    place = (2 * math.cos(azimuth), 2 * math.sin(azimuth), 0.0)
    eye = _messages.ViewerCameraMessage(
        (1.0, 0.0, 0.0, 0.0), place, 0.8, 0.01, 10.0, 90, 160, (0.0,) * 3, (0.0, 0.0, 1.0)
    )
    wire.send(msgspec.msgpack.encode(eye.as_serializable_dict()))
    until(lambda: one.server.get_clients())
    return wire


def until(done, seconds=10.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def received(wire, name: bytes) -> bool:
    """Whether a message of that type comes."""
    import zstandard

    for _ in range(50):
        frame = wire.recv(timeout=10)
        if name in zstandard.ZstdDecompressor().decompressobj().decompress(frame[16:]):
            return True
    return False


def test_a_run_is_the_same_to_the_bit_with_a_viewer_whose_port_is_taken(small, launcher, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = [*small, *FAST, f"exp_root_dir={tmp_path}"]
        _, plain, *_ = launcher(*line, "tag=plain")
        code, watched, out, err = launcher(*line, "tag=watched", "viewer=true", f"viewer_port={port}")
    assert code == 0 and err == "" and out.count("viewer: http://127.0.0.1:") == 1
    assert f"(port {port} is taken)" in out and "viser" not in out
    assert len(rows(plain)) == 3 and rows(plain) == rows(watched)
    scenes = [load(folder / "ckpts" / "last.ckpt").state["scene"] for folder in (plain, watched)]
    assert all(torch.equal(scenes[0][name], scenes[1][name]) for name in scenes[0])


def test_a_missing_viser_is_one_line_and_the_run_goes_on(small, launcher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "viser", None)
    code, folder, _, err = launcher(*small, *FAST, "viewer=true", f"exp_root_dir={tmp_path}")
    assert code == 0 and len(rows(folder)) == 3
    (line,) = [line for line in err.splitlines() if "viser" in line]
    assert "pip install viser" in line and "goes on without a viewer" in line


def test_pictures_have_no_viewer(small, launcher):
    code, *_, err = launcher(*[item for item in small if "=" in item][:1], "scene=image", "prompt=x", "viewer=true")
    assert code == 2 and "scene.name=image does not read it" in err
    code, *_, err = launcher("prompt=x", "viewer_port=8080")
    assert code == 2 and "viewer=false does not read it" in err


def test_the_page_is_for_this_machine_and_who_looks_gets_the_object(opened):
    assert opened.server.get_host() == "127.0.0.1"
    assert b"<html" in urlopen(f"http://127.0.0.1:{opened.port}", timeout=10).read()
    opened.show(STATE, Stop())
    assert opened.at == {}  # nobody looks
    wire = connected(opened)
    opened.show(STATE, Stop())
    assert received(wire, b"BackgroundImageMessage")
    wire.close()
    until(lambda: not opened.server.get_clients())
    opened.show(STATE, Stop())


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_a_browser_is_shown_the_object_and_may_be_closed_at_any_time(opened, tmp_path):
    line = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"http://127.0.0.1:{opened.port}"]
    browser = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(opened.server.get_clients, 90)
        opened.show(STATE, Stop())
        (where,) = opened.at.values()
        assert math.hypot(*where[:3]) > 1 and not opened.broken
    finally:
        browser.terminate()
        browser.wait(30)
    until(lambda: not opened.server.get_clients(), 30)
    opened.show(STATE, Stop())


def test_a_pause_ends_when_nobody_looks_any_more_and_stop_asks_to_stop(opened, monkeypatch):
    monkeypatch.setattr(viewer, "ABSENT", 0.2)
    opened.pause.value = True
    stop = Stop()
    opened.show(STATE, stop)
    assert opened.pause.value is False and not stop.asked
    opened.halt.value = True
    opened.show(STATE, stop)
    assert stop.asked and stop.code == 130


def test_a_viewer_that_fails_is_told_once_and_the_run_goes_on(opened, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(viewer, "renderings", broken)
    told = []
    monkeypatch.setattr(viewer.LOG, "warning", lambda *words: told.append(words))
    wire = connected(opened)
    for _ in range(3):
        opened.next = 0.0
        opened.show(STATE, Stop())
    wire.close()
    assert len(told) == 1 and "goes on" in told[0][0]


def test_a_port_is_found_where_the_last_one_is_taken():
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 65535)):
        assert viewer.free_port(65535) not in (None, 65535)


def test_the_camera_stands_where_the_browsers_does():
    camera = viewer.camera_of((1.0, -2.0, 0.5), (0.0, 0.0, 0.0), fov=math.radians(40), aspect=1.5)
    assert torch.allclose(camera.position[0], torch.tensor([1.0, -2.0, 0.5]), atol=1e-5)
    assert (camera.height, camera.width) == (128, 192) and camera.fovy.item() == pytest.approx(40)
    assert viewer.camera_of((0, 0, 0), (0, 0, 0), fov=1.0, aspect=9.0).width == 256
