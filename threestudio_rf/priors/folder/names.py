"""Names of weights that the libraries have changed since files were written."""

from __future__ import annotations

from collections.abc import Collection

OLDER = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""Names of attention weights in files of the first diffusers versions, which its loader renames."""


def present_name(key: str, known: Collection[str]) -> str:
    """The name that the libraries of today give to a stored `key`: files of older ones say `text_model.` before every
    weight of a CLIPTextModel, and `query` for `to_q`; those of a Qwen with eyes leave a part out. `known` are today's
    names."""
    if key in known:
        return key
    renamed = key.removeprefix("text_model.")
    for old, new in OLDER:
        renamed = renamed.replace(old, new)
    inner = key.replace("model.", "model.language_model.", 1)
    return next((name for name in (renamed, f"model.{key}", inner) if name in known), key)
