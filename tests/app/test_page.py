"""The page of a run in a browser: the object turns, the video plays, nothing is fetched, a prompt stays text.

Chromium is Debian's package `chromium` (`apt-get install chromium`); without it the test of the browser is left out.

Mutations seen to fail: the drag's sign left out of the azimuth, the texture not bound, the video linked under a wrong
name, a picture from outside, the title not escaped, the step of the newest files ignored, no limit of what is inside.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from torch import Tensor

from threestudio_rf.app.report import page
from threestudio_rf.app.report.overview import write_overview
from threestudio_rf.app.report.page import write_report
from threestudio_rf.export.files import write
from threestudio_rf.export.media import png, video
from threestudio_rf.export.mesh import extract
from threestudio_rf.export.texture import textured

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--remote-debugging-port=0"]
PROMPT = "<script>document.title='broken'</script> & a ball"
PROBE = """<script type="module">
const canvas = document.getElementById("object"), found = { errors: [] };
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const look = () => new Promise((done) => requestAnimationFrame(() => {
  const copy = new OffscreenCanvas(3, 3).getContext("2d");
  copy.drawImage(canvas, canvas.width / 2 - 1, canvas.height / 2 - 1, 3, 3, 0, 0, 3, 3);
  done([...copy.getImageData(1, 1, 1, 1).data.slice(0, 3)]);
}));
for (let i = 0; i < 600 && !canvas.dataset.triangles; i++) await pause(50);
found.triangles = canvas.dataset.triangles;
const light = document.getElementById("light"), again = () => light.dispatchEvent(new Event("change"));
again(); found.front = await look();
for (let i = 0; i < 6; i++)
  canvas.dispatchEvent(new PointerEvent("pointermove", { buttons: 1, movementX: -60 }));
found.back = await look();
found.azimuth = canvas.dataset.azimuth;
const film = document.querySelector("video");
for (let i = 0; i < 600 && film.readyState < 2; i++) await pause(50);
found.film = [film.videoWidth, film.readyState >= 2, film.error === null];
found.fetched = performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("data:") && !name.startsWith("blob:"));
found.title = document.title;
new Image().src = `http://127.0.0.1:PORT/?${encodeURIComponent(JSON.stringify(found))}`;
</script>"""


def colour(points: Tensor) -> Tensor:
    """Red in front, blue behind."""
    front = (points[:, :1] > 0).float()
    return torch.cat((front, torch.zeros_like(front), 1 - front), dim=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with what a page shows."""
    run = tmp_path_factory.mktemp("page")
    mesh = extract(lambda p: 20 * torch.sigmoid((0.5 - p.norm(dim=-1)) / 0.05), colour, radius=0.8, resolution=20)
    atlas = textured(mesh, lambda points, *_: colour(points), 64)
    write(mesh, run / "save/it20-export", formats=("glb",), atlas=atlas)
    video(run / "save/it20-test.mp4", torch.rand(6, 3, 48, 64, generator=torch.Generator().manual_seed(0)), 10)
    for name in ("it3-sheet", "it20-sheet", "items-sheet", "a#b 100%-grid"):
        png(run / f"save/{name}.png", torch.full((3, 8, 8), 0.5))
    (run / "configs").mkdir()
    (run / "configs/parsed.yaml").write_text("prompt: x\n")
    (run / "cmd.txt").write_text("python launch.py\n")
    (run / "metrics.json").write_text(json.dumps({"volume_iou": 0.9, "janus": None, "prompts": {"<b>": 1}}))
    write_report(run, PROMPT)
    return run


def without_files(text: str) -> str:
    """A page without what is stored inside it."""
    return re.sub(r'base64,[^"]*|(?<=id="glb">)[^<]*', "", text)


def told_by(text: str, place: Path) -> dict[str, Any]:
    """What the probe of a page says, opened as a file."""
    heard: Queue[str] = Queue()

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.put(unquote(self.path[2:]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        (place / "alone.html").write_text(text.replace("PORT", str(server.server_port)), encoding="utf-8")
        line = [str(CHROMIUM), *FLAGS, f"--user-data-dir={place / 'profile'}", f"file://{place}/alone.html#turn=0"]
        browser = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return json.loads(heard.get(timeout=90))
        finally:
            browser.terminate()
            browser.wait(30)
            server.shutdown()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_in_a_browser_the_object_turns_the_video_plays_and_nothing_is_fetched(folder: Path, tmp_path: Path):
    text = (folder / "index.html").read_text(encoding="utf-8")
    found = told_by(text + PROBE, tmp_path)
    assert int(found["triangles"]) > 1000 and float(found["azimuth"]) == 180
    assert found["front"] == [255, 0, 0] and found["back"] == [0, 0, 255]
    assert found["film"] == [64, True, True] and found["fetched"] == []
    assert found["title"] == PROMPT


def test_a_page_is_one_file_without_an_address_outside(folder: Path):
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert len(text) < 6_000_000 and "http" not in without_files(text)
    links = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', text)
    assert "save/it20-export/model.glb" in links and "save/a%23b%20100%25-grid.png" in links
    for link in links:
        assert (folder / unquote(link)).exists(), link


def test_what_is_shown_is_the_newest_and_words_say_what_figures_mean(folder: Path):
    text = without_files((folder / "index.html").read_text(encoding="utf-8"))
    assert "it20-sheet" in text and "it3-sheet" not in text
    assert "<b>volume_iou 0.9: good; overlap of the solid with the true one" in text
    assert "&lt;b&gt;" in text and "<script>" not in text


def test_what_does_not_fit_is_linked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy = shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setattr(page, "LARGEST", 1000)
    text = write_report(copy, "x").read_text(encoding="utf-8")
    assert 'src="save/it20-test.mp4"' in text and "model.glb is too large to be shown here" in text
    assert len(text) < 20_000


def test_all_runs_are_listed_newest_first_and_no_prompt_is_code(folder: Path, tmp_path: Path):
    for number, prompt in enumerate((PROMPT, "a cube")):
        run = shutil.copytree(folder, tmp_path / f"tiny/x@20260101-00000{number}")
        about = {"prompt": prompt, "method": "sds", "prior": "tiny_sd3 x", "status": "finished", "task": "lift"}
        (run / "run.json").write_text(json.dumps(about))
    (tmp_path / "tiny/broken@20250101-000000").mkdir()
    (tmp_path / "tiny/broken@20250101-000000/run.json").write_text("{")
    found = write_overview(tmp_path)
    assert found == tmp_path / "index.html"
    text = found.read_text(encoding="utf-8")
    assert text.index("a cube") < text.index("&lt;script&gt;document") < text.index("broken")
    assert "<script>" not in text and "volume_iou 0.9: good" in text and "http" not in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len([link for link in links if link.endswith("sheet.png")]) == 2
    for link in links:
        assert (tmp_path / unquote(link)).exists(), link
    assert write_overview(tmp_path / "tiny") is None


def test_runs_and_pictures_have_a_page_and_the_folder_above_lists_them(launcher, tmp_path: Path):
    line = ["task=sample", "prior=tiny_sd", "prompt=a red ball", "n=1", "steps=1", f"exp_root_dir={tmp_path}"]
    code, run, _, err = launcher(*line)
    assert code == 0 and run is not None, err
    text = (run / "index.html").read_text(encoding="utf-8")
    assert "a red ball" in text and "save/sheet.png" in text and "Curves" not in text
    above = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert f"{run.parent.name}/{run.name}/index.html" in above and "save/00000.png" in above and "finished" in above
