"""Embedded texts on disk.

Mutations tried, each seen to fail: dtype left out of the name; a broken file raised; the temporary file left behind;
the revision taken from names only; a text embedded twice, or again.
"""

import os

import pytest
import torch

from threestudio_rf.core.files import write_files
from threestudio_rf.priors.cache import ConditionCache
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

ROW = {"prompt": torch.arange(6.0).reshape(2, 3), "pooled": torch.ones(4, dtype=torch.bfloat16)}


def cache(folder, model="m", revision="r", dtype="float32"):
    return ConditionCache(folder, model, revision, dtype)


def test_a_text_comes_back_bit_for_bit_in_another_process_and_files_are_safetensors(tmp_path):
    cache(tmp_path / "new").put("a 'red' ball, 50 %", ROW)
    (file,) = (tmp_path / "new").iterdir()
    assert file.suffix == ".safetensors" and len(file.stem) == 64
    found = cache(tmp_path / "new").get("a 'red' ball, 50 %")
    assert all(torch.equal(found[name], ROW[name]) and found[name].dtype == ROW[name].dtype for name in ROW)


def test_another_text_model_revision_or_dtype_is_another_file(tmp_path):
    cache(tmp_path).put("text", ROW)
    others = [cache(tmp_path, model="n"), cache(tmp_path, revision="s"), cache(tmp_path, dtype="bfloat16")]
    assert all(other.get("text") is None for other in others) and cache(tmp_path).get("other") is None


def test_a_broken_file_counts_as_absent_and_is_replaced(tmp_path):
    one = cache(tmp_path)
    one.put("text", ROW)
    one.file("text").write_bytes(b"broken")
    again = cache(tmp_path)
    assert again.get("text") is None
    again.put("text", ROW)
    assert cache(tmp_path).get("text") is not None


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.ones(2, 3)},
        {"prompt": torch.ones(2, 3, dtype=torch.int64)},
        {"prompt": torch.full((2, 3), torch.nan)},
        {"prompt": torch.ones(3)},
        {"prompt": torch.ones(2, 3), "more": torch.ones(1)},
    ],
)
def test_a_whole_file_of_something_else_counts_as_absent_too(tmp_path, tensors):
    from safetensors.torch import save_file

    one = cache(tmp_path)
    one.put("text", ROW)
    save_file(tensors, one.file("text"))
    again = cache(tmp_path)
    assert again.get("text") is None
    assert torch.equal(again.embed(["text"], lambda texts: [ROW]).tensors["prompt"][0], ROW["prompt"])


def test_without_a_folder_texts_are_remembered_in_memory_only(tmp_path):
    one = cache(None)
    one.put("a", ROW)
    one.put("b", {name: tensor + 1 for name, tensor in ROW.items()})
    condition = one.condition(["b", "a", "b"])
    assert len(condition) == 3 and torch.equal(condition.tensors["prompt"][1], ROW["prompt"])


def test_each_text_is_encoded_once_and_known_ones_not_at_all(tmp_path):
    asked = []

    def encode(texts):
        asked.append(texts)
        return [{"prompt": torch.full((1, 1), float(len(text)))} for text in texts]

    one = cache(tmp_path)
    assert one.embed(["a", "bb", "a"], encode).tensors["prompt"].flatten().tolist() == [1, 2, 1]
    assert cache(tmp_path).embed(["ccc", "bb"], encode).tensors["prompt"].flatten().tolist() == [3, 2]
    assert asked == [["a", "bb"], ["ccc"]]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="not kept"):
        cache(tmp_path / "file").put("text", ROW)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    target = tmp_path / "x"
    write_files({target: b"old"})

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_files({target: b"new"})
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_the_revision_of_a_folder_follows_its_text_files_only(copied, copied_sd):
    for folder, load in ((copied, load_sd3), (copied_sd, load_sd)):
        before = load(folder).text.revision()
        os.utime(folder / "vae/config.json", (1, 1))
        assert load(folder).text.revision() == before
        os.utime(folder / "text_encoder/model.safetensors", (1, 1))
        assert load(folder).text.revision() != before
