"""Cuts a mesh open and lays it flat by xatlas: `vertices`, `faces`, `normals`, `size`, `padding` as an .npz on stdin,
`origin`, `faces`, `uv` as one on stdout.

`unwrapped` runs this file as a process of its own, since taking an atlas down can wait for ever: xatlas wakes its
threads without holding their lock, so one that is just about to sleep misses the word. This process leaves without
asking them.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import numpy as np

NAMES = ("origin", "faces", "uv")


class UnwrapError(RuntimeError):
    """xatlas ended without an atlas."""


def unwrapped(
    vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, *, size: int, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vertex (W,) behind each corner of the atlas, faces (F, 3) in corners, and uv (W, 2) in [0, 1], of a mesh with
    `vertices` (V, 3), `faces` (F, 3) and `normals` (V, 3), for a picture of `size` texels with `padding` of them
    between pieces. UnwrapError, with the last line that was said, where xatlas ends without an atlas."""
    given = io.BytesIO()
    np.savez(given, vertices=vertices, faces=faces, normals=normals, size=size, padding=padding)
    command = [sys.executable, "-P", __file__]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        done = subprocess.run(command, input=given.getvalue(), capture_output=True, env=environment, check=False)
    except OSError as error:
        raise UnwrapError(f"xatlas: {sys.executable} cannot be run ({error.strerror})") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnwrapError(f"xatlas: {said[-1] if said else f'ended with {done.returncode}'}")
    found = np.load(io.BytesIO(done.stdout))
    origin, faces, uv = (found[name] for name in NAMES)
    return origin, faces, uv


def main() -> None:
    """From stdin to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import xatlas

    given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    atlas, options = xatlas.Atlas(), xatlas.PackOptions()
    atlas.add_mesh(given["vertices"], given["faces"].astype(np.uint32), given["normals"])
    options.resolution, options.padding = int(given["size"]), int(given["padding"])
    atlas.generate(xatlas.ChartOptions(), options)
    found = io.BytesIO()
    np.savez(found, **dict(zip(NAMES, atlas[0], strict=True)))
    sys.stdout.buffer.write(found.getvalue())
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
