"""Exported objects in programs that are not ours: GLB in three.js, Babylon.js and f3d, OBJ in f3d.

    python bench/viewers.py outputs/tiny/a_red_mushroom@... [more runs] --out docs/images/export.png

Needs npm, Chromium and f3d (Debian packages of these names); three and babylonjs are installed into a temporary folder.
One row per run, all from the front left and above.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from threestudio_rf.export.letters import typeface

SIZE = 320
PACKAGES = ("three@0.170", "babylonjs@7", "babylonjs-loaders@7")
STYLE = "<!doctype html><meta charset=utf-8><style>body{margin:0;overflow:hidden}canvas{display:block}</style>"
THREE = """<script type=importmap>{"imports":{"three":"/node_modules/three/build/three.module.js",
"addons/":"/node_modules/three/examples/jsm/"}}</script><script type=module>
import * as THREE from "three";
import { GLTFLoader } from "addons/loaders/GLTFLoader.js";
import { RoomEnvironment } from "addons/environments/RoomEnvironment.js";
const renderer = new THREE.WebGLRenderer({ antialias: true, preserveDrawingBuffer: true });
renderer.setSize(SIZE, SIZE);
document.body.append(renderer.domElement);
const scene = new THREE.Scene();
scene.background = new THREE.Color(0.7, 0.7, 0.7);
scene.environment = new THREE.PMREMGenerator(renderer).fromScene(new RoomEnvironment(), 0.04).texture;
const { scene: model } = await new GLTFLoader().loadAsync("/model.glb");
const ball = new THREE.Box3().setFromObject(model).getBoundingSphere(new THREE.Sphere());
const camera = new THREE.PerspectiveCamera(40, 1, 0.01, 100);
camera.position.copy(ball.center).add(new THREE.Vector3(0.65, 0.45, 1).normalize().multiplyScalar(3.1 * ball.radius));
camera.lookAt(ball.center);
scene.add(model);
renderer.render(scene, camera);
</script>"""
BABYLON = """<canvas id=c width=SIZE height=SIZE></canvas><script src="/node_modules/babylonjs/babylon.js"></script>
<script src="/node_modules/babylonjs-loaders/babylonjs.loaders.js"></script><script type=module>
const engine = new BABYLON.Engine(document.getElementById("c"), true, { preserveDrawingBuffer: true });
const scene = new BABYLON.Scene(engine);
scene.useRightHandedSystem = true;
scene.clearColor = new BABYLON.Color4(0.7, 0.7, 0.7, 1);
new BABYLON.HemisphericLight("sky", new BABYLON.Vector3(0.3, 1, 0.6), scene).intensity = 3;
BABYLON.SceneLoader.ShowLoadingScreen = false;
await BABYLON.SceneLoader.AppendAsync("/", "model.glb", scene);
const { min, max } = scene.getWorldExtends();
const centre = min.add(max).scale(0.5), radius = max.subtract(min).length() / 2;
const away = new BABYLON.Vector3(0.65, 0.45, 1).normalize().scale(3.1 * radius);
const camera = new BABYLON.FreeCamera("camera", centre.add(away), scene);
camera.fov = 40 * Math.PI / 180;
camera.minZ = 0.01;
camera.setTarget(centre);
engine.runRenderLoop(() => scene.render());
</script>"""
PAGES = {"three.js": THREE, "Babylon.js": BABYLON}
CHROMIUM = ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--use-angle=swiftshader")
CHROMIUM = (*CHROMIUM, "--enable-unsafe-swiftshader", f"--window-size={SIZE},{SIZE}", "--virtual-time-budget=20000")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, without a line per request."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


def in_browser(folder: Path, page: str, model: Path, port: int) -> Image.Image:
    """A screenshot of a page that shows `model`."""
    shutil.copy2(model, folder / "model.glb")
    (folder / "page.html").write_text(STYLE + page.replace("SIZE", str(SIZE)))
    shot = folder / "shot.png"
    shot.unlink(missing_ok=True)
    browser = shutil.which("chromium") or "google-chrome"
    address = f"http://127.0.0.1:{port}/page.html"
    subprocess.run([browser, *CHROMIUM, f"--screenshot={shot}", address], check=True, capture_output=True, timeout=180)
    return Image.open(shot).convert("RGB").copy()


def in_f3d(folder: Path, model: Path) -> Image.Image:
    """The picture of f3d, without a window."""
    shot = folder / "f3d.png"
    shot.unlink(missing_ok=True)
    command = ["f3d", str(model), f"--output={shot}", f"--resolution={SIZE},{SIZE}", "--bg-color=0.7,0.7,0.7"]
    command += ["--up=+Y", "--camera-azimuth-angle=33", "--camera-elevation-angle=20"]
    offscreen = ["xvfb-run", "-a"] if shutil.which("xvfb-run") else []
    subprocess.run([*offscreen, *command], check=True, capture_output=True, timeout=180)
    return Image.open(shot).convert("RGB").copy()


def pictures(run: Path, folder: Path, port: int) -> dict[str, Image.Image]:
    """All pictures of one run, by the program that made them."""
    exports = sorted(run.glob("save/*-export"), key=lambda path: path.stat().st_mtime)
    frames = sorted(run.glob("save/it*-test/*.png"), key=lambda path: int(path.stem))
    if not exports or not frames:
        raise SystemExit(f"{run}: no export or no turntable in it")
    glb, obj = exports[-1] / "model.glb", exports[-1] / "model.obj"
    found = {"as rendered": Image.open(frames[len(frames) // 11]).convert("RGB")}
    found |= {name: in_browser(folder, page, glb, port) for name, page in PAGES.items()}
    return found | {"f3d, GLB": in_f3d(folder, glb), "f3d, OBJ": in_f3d(folder, obj)}


def sheet(rows: list[dict[str, Image.Image]]) -> Image.Image:
    """Programs across, runs down."""
    names, high = list(rows[0]), 28
    whole = Image.new("RGB", (len(names) * SIZE, high + len(rows) * SIZE), "white")
    letters = typeface(names)
    for column, name in enumerate(letters.lines):
        ImageDraw.Draw(whole).text((column * SIZE + 8, 4), name, fill="black", font=letters.at(18))
        for row, found in enumerate(rows):
            picture = found[names[column]].resize((SIZE, SIZE))
            whole.paste(picture, (column * SIZE, high + row * SIZE))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/export.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(["npm", "install", "--silent", "--no-audit", *PACKAGES], cwd=folder, check=True)
        handler = functools.partial(Quiet, directory=name)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sheet([pictures(run, folder, server.server_port) for run in options.runs]).save(options.out)
        server.shutdown()
    print(options.out)


if __name__ == "__main__":
    main()
