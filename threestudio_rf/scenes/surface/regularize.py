"""Regularisers of a surface: scalar functions of a mesh and its edges, of no unit, so that neither the size of the
object nor the number of its faces changes their scale. A mesh without faces has 0, in the graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from threestudio_rf.scenes.surface.edges import Edges
from threestudio_rf.scenes.surface.tetra import Triangles


def face_normals(mesh: Triangles) -> Tensor:
    """Normals (F, 3) of the faces, twice as long as their area."""
    a, b, c = (mesh.vertices.index_select(0, corner) for corner in mesh.faces.t())
    normals: Tensor = torch.linalg.cross(b - a, c - a)
    return normals


def vertex_normals(mesh: Triangles) -> Tensor:
    """Unit normals (V, 3): the sum of those of the faces around each vertex, weighted by area; 0 where they cancel."""
    n = face_normals(mesh)
    total = torch.zeros_like(mesh.vertices).index_add(0, mesh.faces.t().reshape(-1), n.repeat(3, 1))
    return functional.normalize(total, dim=-1, eps=1e-20)


def laplacian(mesh: Triangles, edges: Edges) -> Tensor:
    """Mean squared distance of the vertices from the mean of their neighbours, in units of the mean squared edge: 0 for
    a vertex in the middle of its neighbours (the umbrella operator, Desbrun et al. 1999)."""
    a, b = edges.ends
    p, q = mesh.vertices.index_select(0, a), mesh.vertices.index_select(0, b)
    count = p.new_zeros(len(mesh.vertices)).index_add(0, torch.cat((a, b)), p.new_ones(2 * len(a)))
    pull = torch.zeros_like(mesh.vertices).index_add(0, torch.cat((a, b)), torch.cat((q - p, p - q)))
    away = pull / count.clamp(min=1)[:, None]
    unit = (p - q).square().sum(-1).detach()
    return away.square().sum() / max(len(mesh.vertices), 1) / _mean(unit).clamp(min=1e-20)


def normal_consistency(mesh: Triangles, edges: Edges) -> Tensor:
    """Mean of 1 - cos of the angle between the two faces at an edge: 0 for a plane, 2 for a fold."""
    first, second = _pairs(mesh, edges)
    return _mean(1 - (first * second).sum(-1))


def convex(mesh: Triangles, edges: Edges) -> Tensor:
    """Mean sine by which, at an edge, one face rises above the plane of the other: 0 for a convex body. Against objects
    turned inside out, such as hollow faces."""
    first, second = _pairs(mesh, edges)
    chosen = edges.inner.nonzero()[:, 0]
    ends, others = edges.ends.index_select(1, chosen), edges.others.index_select(1, chosen)
    p, q = mesh.vertices.index_select(0, others[0]), mesh.vertices.index_select(0, others[1])
    middle = (mesh.vertices.index_select(0, ends[0]) + mesh.vertices.index_select(0, ends[1])) / 2
    rise = (first * functional.normalize(q - middle, dim=-1, eps=1e-20)).sum(-1)
    rise = rise + (second * functional.normalize(p - middle, dim=-1, eps=1e-20)).sum(-1)
    return _mean(rise.clamp(min=0)) / 2


def _pairs(mesh: Triangles, edges: Edges) -> tuple[Tensor, Tensor]:
    """Unit normals (K, 3), (K, 3) of the two faces at each inner edge."""
    unit = functional.normalize(face_normals(mesh), dim=-1, eps=1e-20)
    first, second = edges.faces.index_select(1, edges.inner.nonzero()[:, 0])
    return unit.index_select(0, first), unit.index_select(0, second)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(len(values), 1)
