"""Settings under prior. reach the adapters, and settings that cannot work are refused before anything is looked for.

Seen to fail: each check removed in turn; instaflow built as sd; mirror_time, t5, max_sequence_length, offload or vae
not passed on; image_size not looked at; sd's multiples taken for sd3's.
"""

import json
from importlib import import_module

import pytest
import torch

from threestudio_rf.app.build.check.config import check
from threestudio_rf.app.build.prior import ADAPTERS, PRIORS, build_prior
from threestudio_rf.app.errors import UserError
from threestudio_rf.app.settings.compose import compose, typed
from threestudio_rf.app.settings.config import Config
from threestudio_rf.app.settings.flags import choices
from threestudio_rf.app.settings.groups import QUANTIZATIONS, STORAGES, PriorConfig
from threestudio_rf.priors.facts import FACTS
from threestudio_rf.priors.folder import parts
from threestudio_rf.priors.tiny import EMBEDDED

CPU = torch.device("cpu")
KEPT = {"vae_checkpointing": True, "storage": "fp8", "offload": True, "offload_blocks": 2}


def settings(name, folder, tmp_path, **changes):
    return PriorConfig(name=name, path=str(folder), cache=str(tmp_path / "texts"), **changes)


def config_with(name, *, sizes=(64,), device="cpu", **changes):
    config = Config(prompt="a red ball", device=device)
    config.camera.sizes, config.camera.milestones = list(sizes), []
    path = "owner/name" if FACTS[name].source == "hub" else ""
    config.prior = PriorConfig(**({"name": name, "path": path} | changes))
    return config


def test_every_name_has_a_row_a_choice_and_a_file_of_settings():
    assert list(PRIORS) == list(FACTS) and set(ADAPTERS) < {row.facts.adapter for row in PRIORS.values()}
    folders = {name for name, row in PRIORS.items() if row.facts.adapter not in ADAPTERS}
    modules = {name: import_module(f"threestudio_rf.priors.adapters.{FACTS[name].adapter}") for name in folders}
    rows = {name: (module.ADAPTER.name, module.ADAPTER.network[1]) for name, module in modules.items()}
    assert rows == {name: (name, FACTS[name].network) for name in folders}
    assert set(choices("prior")) == {*FACTS, "sd21", "sd35", "sd3_as_rendered"}
    assert EMBEDDED == ("tiny_sd3", "tiny_sd", "tiny_sd_v", "tiny_instaflow")
    assert STORAGES == parts.STORAGES and tuple(parts.QUANTIZATIONS) == QUANTIZATIONS


def test_every_setting_of_sd_reaches_the_adapter(sd_folder, tiny_vae, tmp_path):
    given = KEPT | {"vae": str(tiny_vae), "kind": "flow", "mirror_time": True, "dtype": "bf16"}
    prior = build_prior(settings("sd", sd_folder, tmp_path, **given), CPU)
    assert (prior.kind, prior.mirror_time, prior.text.dtype) == ("flow", True, torch.bfloat16)
    assert prior.parts.options == parts.PartOptions(vae=str(tiny_vae), **KEPT)
    quick = build_prior(settings("sd", sd_folder, tmp_path, compile=True), CPU)
    assert quick.parts.options == parts.PartOptions(compile=True)
    assert prior.embed(["red"]).tensors["prompt"].dtype == torch.bfloat16 and list((tmp_path / "texts").iterdir())
    assert build_prior(settings("sd", sd_folder, tmp_path), CPU).kind == "eps"
    prior = build_prior(settings("instaflow", sd_folder, tmp_path), CPU)
    assert (prior.kind, prior.mirror_time, prior.name) == ("flow", False, "instaflow")


def test_every_setting_of_sd3_reaches_the_adapter(copied, tmp_path):
    index = json.loads((copied / "model_index.json").read_text())
    index["text_encoder_3"] = ["transformers", "T5EncoderModel"]
    (copied / "model_index.json").write_text(json.dumps(index))
    prior = build_prior(settings("sd3", copied, tmp_path, t5=False, max_sequence_length=5, **KEPT), CPU)
    assert (prior.text.t5, prior.text.length) == (False, 5) and prior.parts.options == parts.PartOptions(**KEPT)
    with pytest.raises(ValueError, match="text_encoder_3 holds no weights"):
        build_prior(settings("sd3", copied, tmp_path), CPU)


@pytest.mark.parametrize("name", ["sd", "sd3", "instaflow"])
def test_revision_variant_and_offline_are_settings(monkeypatch, tmp_path, name):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    config = settings(name, "owner/model", tmp_path, offline=True, revision="abc", variant="fp16")
    with pytest.raises(ValueError, match=r"prior\.offline=true, so it cannot be downloaded"):
        build_prior(config, CPU)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_priors_have_rows_and_stay_in_float32(monkeypatch, name):
    asked = {}
    monkeypatch.setattr(
        "threestudio_rf.app.build.prior.load_tiny", lambda name, **given: asked.update(given) or SD(name)
    )
    prior = build_prior(PriorConfig(name=name, mirror_time=True, **KEPT), torch.device("cuda"))
    assert prior.name == name and asked["dtype"] == torch.float32 and asked["mirror_time"]
    assert asked["options"] == parts.PartOptions(**KEPT)


class SD:
    licence = "none"

    def __init__(self, name):
        self.name = name


def test_the_preset_for_little_memory_saves_where_it_changes_little():
    config = typed(compose(["experiment=rfds_sd3", "preset=low_vram", "prompt=x"]))
    check(config)
    prior = config.prior
    assert (prior.name, prior.dtype, prior.t5, prior.vae_checkpointing) == ("sd3", "bf16", False, True)
    assert (prior.storage, prior.quantization, prior.offload, prior.vae) == ("none", "none", False, "")
    for name in FACTS:
        check(config_with(name, dtype="bf16", t5=False, vae_checkpointing=True))


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("sd", {"path": ""}, r"prior=sd needs weights: prior\.path="),
        ("sd3", {"path": ""}, r"prior=sd3 needs weights: prior\.path="),
        ("instaflow", {"path": ""}, r"prior=instaflow needs weights"),
        ("sd", {"mirror_time": True}, r"prior\.mirror_time=true: expected a flow of sd's shape"),
        ("tiny_sd3", {"mirror_time": True}, r"prior\.mirror_time=true"),
        ("instaflow", {"kind": "eps"}, r"prior\.kind=eps: expected auto with prior instaflow"),
        ("sd3", {"kind": "flow"}, r"prior\.kind=flow: expected auto with prior sd3"),
        ("sd", {"kind": "velocity"}, r"prior\.kind=velocity: expected one of auto, eps, v, flow"),
        ("sd", {"max_sequence_length": 9}, r"prior\.max_sequence_length=9: expected null"),
        ("sd3", {"max_sequence_length": 600}, r"at most 512"),
        ("sd", {"storage": "fp8", "quantization": "int8"}, r"prior\.storage=fp8, prior\.quantization=int8: .*only one"),
        ("sd", {"quantization": "nf4"}, r"prior\.quantization=nf4: expected .* a CUDA device"),
        ("sd", {"device": "auto", "quantization": "nf4", "offload": True}, r"nf4: expected prior\.offload=false"),
        ("sd", {"device": "auto", "quantization": "nf4", "offload_blocks": 1}, r"nf4: expected prior\.offload=false"),
        ("gaussian", {"vae": "x"}, r"prior\.vae.*expected none with prior gaussian"),
        ("sd", {"image_size": 500}, r"prior\.image_size=500: expected multiples of 64 pixels for prior sd, got 500"),
        ("sd", {"sizes": [96]}, r"camera\.sizes=\[96\]: expected multiples of 64 pixels for prior sd"),
        ("tiny_sd", {"sizes": [72]}, r"multiples of 16 pixels for prior tiny_sd, got 72"),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, given, words):
    with pytest.raises(UserError, match=words):
        check(config_with(name, **given))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sd", {"kind": "flow", "mirror_time": True}),
        ("instaflow", {"kind": "flow", "mirror_time": True}),
        ("tiny_instaflow", {"mirror_time": True}),
        ("sd3", {"image_size": 528}),
        ("sd", {"image_size": 512, "sizes": [100]}),
        ("tiny_sd", {"sizes": [80]}),
        ("sd", {"device": "auto", "quantization": "nf4"}),
    ],
)
def test_what_can_work_is_not(name, given):
    check(config_with(name, **given))
