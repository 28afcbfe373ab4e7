"""What makes a surface fit for others: without the noise of its density, without specks, with fewer triangles."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def smoothed(volume: np.ndarray, level: float, width: float) -> tuple[np.ndarray, float]:
    """The volume blurred by a Gaussian of `width` cells, and the level at which it has as many cells inside as before.

    Densities are cut at twice the level first, so that the noise deep inside does not move the surface, and the level
    that keeps the volume undoes the shrinking of round parts. Width 0 changes nothing.
    """
    from scipy.ndimage import gaussian_filter

    if width <= 0:
        return volume, level
    low = float(volume.min())
    share = np.clip((volume - low) / (2 * (level - low)), 0, 1)
    blurred = gaussian_filter(share, width, mode="constant").astype(np.float32)
    count = int((volume > level).sum())
    ordered = np.partition(blurred.ravel(), (-count - 1, -count))
    return blurred, float(ordered[-count - 1] / 2 + ordered[-count] / 2)


def without_specks(vertices: Tensor, faces: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """Vertices (V, 3) and faces (F, 3) without the closed parts whose volume is below `keep` of the largest, and
    without the inner walls of hollows, whose volume is negative."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(vertices)
    pairs = torch.cat((faces[:, :2], faces[:, 1:])).numpy()
    graph = coo_matrix((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    labels = torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))
    a, b, c = vertices.double()[faces].unbind(dim=1)
    part = labels[faces[:, 0]]
    volume = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
    volume.index_add_(0, part, (a * torch.linalg.cross(b, c)).sum(dim=-1))
    good = (volume > 0) & (volume >= keep * volume.max())
    return _compact(vertices, faces[good[part]])


def decimated(vertices: Tensor, faces: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most about `most` triangles, edges collapsed by quadric error (Garland and Heckbert 1997); 0 keeps all.

    Raises ImportError without the package fast-simplification.
    """
    if not 0 < most < len(faces):
        return vertices, faces
    import fast_simplification

    points, triangles = fast_simplification.simplify(vertices.numpy(), faces.numpy(), target_count=most)
    kept = torch.from_numpy(points.astype(np.float32)), torch.from_numpy(triangles.astype(np.int64))
    return _compact(*kept)


def _compact(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """The same faces with the vertices that they use, in their order."""
    used, index = torch.unique(faces, return_inverse=True)
    return vertices[used], index.view_as(faces)
