"""LoRAs and differences of weights: the sum by hand, diffusers with peft as the oracle, what does not fit refused.

Seen to fail: alpha or its rank left out, the scale forgotten, base less to, the text encoder left as it was, its cache
shared, scale 0 in the cache's key, each check of a file left out.
"""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from threestudio_rf.core.random import generator
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder import lora as module
from threestudio_rf.priors.folder.changes import Changes, Delta
from threestudio_rf.priors.folder.lora import Lora, parse_loras
from threestudio_rf.priors.folder.parts import PartOptions
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

UNET = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
MMDIT = "transformer_blocks.0.attn.to_q"
TEXT = "encoder.layers.0.self_attn.q_proj"
KINDS = {"sd": (load_sd, "unet", UNET), "instaflow": (load_sd, "unet", CONV), "sd3": (load_sd3, "transformer", MMDIT)}


def kept(*loras, delta=None):
    return {"options": PartOptions(changes=Changes(loras, delta))}


def halves(weight, rank=3, seed=0):
    """Random A and B for a weight, in the shapes of peft."""
    draws = generator(seed, 0, "lora")
    a = torch.randn(rank, *weight.shape[1:], generator=draws)
    return a, torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=draws)


def product(a, b):
    return torch.einsum("or,ri...->oi...", b.flatten(1), a)


def write(file, weights, **more):
    """A LoRA over `weights` (key of the layer -> weight); its halves by key."""
    pairs = {key: halves(weight, seed=i) for i, (key, weight) in enumerate(weights.items())}
    tensors = {
        f"{key}.lora_{side}.weight": x for key, pair in pairs.items() for side, x in zip("AB", pair, strict=True)
    }
    save_file({key: x.contiguous() for key, x in (tensors | more).items()}, file)
    return pairs


@pytest.fixture(params=KINDS)
def case(request, sd_folder, sd3_folder, tmp_path):
    """load(changes), the network's part, a layer of it and its weight."""
    load, part, layer = KINDS[request.param]
    folder = sd3_folder if part == "transformer" else sd_folder
    kind = {"kind": "flow"} if request.param == "instaflow" else {}
    weight = load_file(next((folder / part).glob("*.safetensors")))[f"{layer}.weight"]
    return lambda *loras, **more: load(folder, **kind, **kept(*loras, **more)), part, layer, weight


def answer(prior):
    draws = generator(0, 0, "x")
    x = torch.randn(2, 16, 8, 8, generator=draws)
    return prior.predict(x, torch.tensor([0.2, 0.7]), prior.embed(["red", "a blue ball"]))


def test_a_lora_is_the_sum_by_hand_and_scale_0_is_none(case, tmp_path):
    load, part, layer, weight = case
    file = tmp_path / "a.safetensors"
    ((a, b),) = write(file, {f"{part}.{layer}": weight}).values()
    plain, changed, none = load(), load(Lora(str(file), 0.7)), load(Lora(str(file), 0.0))
    states = [prior.network.state_dict() for prior in (plain, changed, none)]
    for key, tensor in states[0].items():
        wanted = tensor + 0.7 * product(a, b) if key == f"{layer}.weight" else tensor
        assert torch.allclose(states[1][key], wanted, atol=1e-5) and torch.equal(states[2][key], tensor), key
    assert torch.equal(answer(none), answer(plain)) and (answer(changed) - answer(plain)).abs().max() > 1e-3
    with torch.no_grad():
        plain.network.get_parameter(f"{layer}.weight").add_(0.7 * product(a, b))
    assert torch.allclose(answer(changed), answer(plain), atol=1e-5)
    assert not changed.network.training and not any(p.requires_grad for p in changed.network.parameters())


def test_two_loras_add_up_in_either_order(case, tmp_path):
    load, part, layer, weight = case
    one, two = str(tmp_path / "one.safetensors"), str(tmp_path / "two.safetensors")
    pairs = [write(one, {f"{part}.{layer}": weight}), write(two, {f"{part}.x": weight, f"{part}.{layer}": weight})]
    stored = {key.replace(".x.", f".{layer}."): x for key, x in load_file(two).items() if ".x." not in key}
    save_file(stored, two)
    sums = weight + sum(s * product(*pair[f"{part}.{layer}"]) for s, pair in zip((1.0, -0.5), pairs, strict=True))
    loras = [Lora(one), Lora(two, -0.5)]
    for order in (loras, loras[::-1]):
        assert torch.allclose(load(*order).network.get_parameter(f"{layer}.weight"), sums, atol=1e-5)
    half = Lora(one, 0.5)
    assert torch.allclose(answer(load(half, half)), answer(load(Lora(one))), atol=1e-5)


@pytest.mark.parametrize("spelling", ["peft", "diffusers", "kohya"])
def test_the_prior_answers_as_diffusers_with_the_same_file(spelling, sd_folder, tmp_path):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_folder)
    weights = {name: pipe.unet.get_parameter(f"{name}.weight") for name in (UNET, CONV)}
    tensors = {}
    for i, (name, weight) in enumerate(weights.items()):
        ends = dict(zip("AB", halves(weight, seed=i), strict=True))
        if spelling == "kohya":
            flat = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{flat}.lora_down.weight": ends["A"], f"{flat}.lora_up.weight": ends["B"]}
            tensors[f"{flat}.alpha"] = torch.tensor(6.0)
        elif spelling == "diffusers":
            tensors |= {f"unet.{name}.lora.{word}.weight": ends[side] for word, side in (("down", "A"), ("up", "B"))}
        else:
            tensors |= {f"unet.{name}.lora_{side}.weight": x for side, x in ends.items()}
    save_file(tensors, tmp_path / "style.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name="style.safetensors")
    prior = load_sd(sd_folder, **kept(Lora(str(tmp_path))))
    x, condition = torch.randn(2, 16, 8, 8, generator=generator(0, 0, "x")), prior.embed(["red", "ball"])
    t = torch.tensor([0.2, 0.7])
    theirs = pipe.unet(x, prior.label(t), encoder_hidden_states=condition.tensors["prompt"]).sample
    ours = prior.predict(x, t, condition)
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(
        ours, load_sd(sd_folder).predict(x, t, condition)
    )


def test_every_layer_has_its_own_alpha(sd_folder, tmp_path):
    """Where a kohya file has several, diffusers 0.42.1 takes one of them for all attention."""
    state = load_sd(sd_folder).network.state_dict()
    tensors, wanted = {}, {}
    for i, name in enumerate((UNET, CONV)):
        a, b = halves(state[f"{name}.weight"], seed=i)
        flat = f"lora_unet_{name.replace('.', '_')}"
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": torch.tensor(1.0 + i)}
        wanted[name] = state[f"{name}.weight"] + (1 + i) / 3 * product(a, b)
    save_file(tensors, tmp_path / "alphas.safetensors")
    network = load_sd(sd_folder, **kept(Lora(str(tmp_path)))).network
    assert all(torch.allclose(network.get_parameter(f"{name}.weight"), x, atol=1e-5) for name, x in wanted.items())


def test_the_difference_of_two_networks_leads_from_one_to_the_other(case, sd_folder, sd3_folder, tmp_path):
    load, part, layer, _ = case
    other = shutil.copytree(sd3_folder if part == "transformer" else sd_folder, tmp_path / "other")
    file = next((other / part).glob("*.safetensors"))
    moved = {
        key: x + 0.1 * torch.randn(x.shape, generator=generator(i, 0, "w"))
        for i, (key, x) in enumerate(load_file(file).items())
    }
    save_file(moved, file, metadata={"format": "pt"})
    base = str(sd3_folder if part == "transformer" else sd_folder)
    whole = load(delta=Delta(str(other), base)).network.state_dict()
    half = load(delta=Delta(str(other), base, 0.5)).network.state_dict()
    for key, start in load().network.state_dict().items():
        assert torch.allclose(whole[key], moved[key], atol=1e-6), key
        assert torch.allclose(half[key], (start + moved[key]) / 2, atol=1e-6)
    back = load(delta=Delta(base, str(other))).network.get_parameter(f"{layer}.weight")
    assert torch.allclose(
        back, 2 * load().network.get_parameter(f"{layer}.weight") - moved[f"{layer}.weight"], atol=1e-6
    )


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_a_lora_of_the_text_encoder_changes_texts_and_their_place_in_the_cache(name, sd_folder, sd3_folder, tmp_path):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    load, part, layer = KINDS[name]
    folder = {"sd": sd_folder, "sd3": sd3_folder}[name]
    cls = CLIPTextModel if name == "sd" else CLIPTextModelWithProjection
    encoder = cls.from_pretrained(folder / "text_encoder").requires_grad_(False)
    weight = dict(encoder.named_parameters())[next(k for k in encoder.state_dict() if k.endswith(f"{TEXT}.weight"))]
    prefix = "" if name == "sd" else "text_model."
    ((a, b),) = write(tmp_path / "t.safetensors", {f"text_encoder.{prefix}{TEXT}": weight}).values()
    network = load_file(next((folder / part).glob("*.safetensors")))[f"{layer}.weight"]
    write(tmp_path / "n.safetensors", {f"{part}.{layer}": network})
    cache = tmp_path / "texts"

    def texts(*loras):
        return load(folder, cache=cache, **kept(*loras)).embed(["red"]).tensors["prompt"]

    plain = texts()
    changed = texts(Lora(str(tmp_path / "t.safetensors"), 0.5))
    assert (changed - plain).abs().max() > 1e-3 and len(list(cache.iterdir())) == 2
    assert torch.equal(texts(Lora(str(tmp_path / "n.safetensors"))), plain) and len(list(cache.iterdir())) == 2
    assert torch.equal(texts(Lora(str(tmp_path / "t.safetensors"), 0.0)), plain) and len(list(cache.iterdir())) == 2
    assert torch.equal(texts(), plain)
    assert not torch.equal(texts(Lora(str(tmp_path / "t.safetensors"), 0.25)), changed)
    weight.add_(0.5 * product(a, b))
    other = shutil.copytree(folder, tmp_path / "by-hand")
    encoder.save_pretrained(other / "text_encoder")
    assert torch.allclose(load(other).embed(["red"]).tensors["prompt"], changed, atol=1e-5)


def test_a_twin_and_float8_come_on_top_of_a_lora(sd_folder, tmp_path):
    from threestudio_rf.priors.twin import Twin

    weight = load_file(next((sd_folder / "unet").glob("*.safetensors")))[f"{UNET}.weight"]
    write(tmp_path / "a.safetensors", {f"unet.{UNET}": weight})
    prior = load_sd(sd_folder, **kept(Lora(str(tmp_path), 0.1)))
    before = answer(prior)
    Twin(prior, prior.embed(["red"]), posed=False)
    assert torch.equal(answer(prior), before)
    small = load_sd(sd_folder, options=PartOptions(storage="fp8", changes=Changes((Lora(str(tmp_path), 0.1),))))
    assert (answer(small) - before).abs().max() < 0.3
    with pytest.raises(PriorError, match="int8 with changed weights, expected no quantization"):
        PartOptions(quantization="int8", changes=Changes((Lora("x"),)))


# What does not fit


def broken(weight):
    """What a file holds, and what is said of it."""
    (a, b), key, flat = halves(weight), f"unet.{UNET}", f"lora_unet_{UNET.replace('.', '_')}"
    both = {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    moved = {name.replace("down_blocks.1", "down_blocks.7"): x.clone() for name, x in both.items()}
    return {
        "rank": (both | {f"{key}.lora_B.weight": b[:, :2].contiguous()}, r"B \(24, 2\) are of different ranks"),
        "size": (both | {f"{key}.lora_A.weight": a[:, :7].contiguous()}, "do not fit .* made for another model"),
        "half": ({f"{key}.lora_A.weight": a}, r"half a LoRA: .*lora_A\.weight has no lora_B \(1 such"),
        "some halves": (both | {f"unet.{CONV}.lora_B.weight": b[:, :, None, None]}, "half a LoRA: .* has no lora_A"),
        "half of kohya's": ({f"{flat}.lora_down.weight": a, f"{flat}.alpha": a[0, 0].clone()}, "has no lora_up"),
        "half of old diffusers'": ({f"{key}.lora.up.weight": b}, r"half a LoRA: .* has no lora\.down"),
        "layer": (both | moved, "the prior has no layer unet.down_blocks.7.*made for another model"),
        "part": (
            both | {name.replace("unet", "prior"): x.clone() for name, x in both.items()},
            "unknown key prior.down_",
        ),
        "word": (both | {f"{key}.lora_C.weight": a.clone()}, "unknown key"),
        "nan": (both | {f"{key}.lora_A.weight": a * float("nan")}, "not finite"),
        "whole": ({"conv_in.weight": a}, "conv_in.weight is no weight of a LoRA"),
        "other model": (
            {name.replace("unet.", "transformer."): x for name, x in both.items()},
            "unknown key transformer",
        ),
    }


HALVES = ["half", "some halves", "half of kohya's", "half of old diffusers'"]


@pytest.mark.parametrize("fault", ["rank", "size", *HALVES, "layer", "part", "word", "nan", "whole", "other model"])
def test_a_lora_that_does_not_fit_is_refused_before_the_prior_loads(fault, sd_folder, tmp_path):
    weight = load_file(next((sd_folder / "unet").glob("*.safetensors")))[f"{UNET}.weight"]
    tensors, words = broken(weight)[fault]
    save_file({key: x.clone().contiguous() for key, x in tensors.items()}, tmp_path / "bad.safetensors")
    with pytest.raises(PriorError, match=rf"^prior\.lora={re.escape(str(tmp_path))}.*{words}") as told:
        load_sd(sd_folder, **kept(Lora(str(tmp_path / "bad.safetensors"), 0.0)))
    assert "\n" not in str(told.value) and not re.search(r"\w(Error|Exception)\b", str(told.value))


def test_places_without_a_lora_say_what_they_are(sd_folder, tmp_path):
    (tmp_path / "two").mkdir()
    for name in "ab":
        save_file({f"unet.{name}.lora_A.weight": torch.ones(1)}, tmp_path / f"two/{name}.safetensors")
    (tmp_path / "pickled.bin").write_bytes(b"x")
    (tmp_path / "cut.safetensors").write_bytes(b"x")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "two/a.safetensors").read_bytes()[:-2])
    for path, words in (
        (tmp_path / "none.safetensors", "no such file; to download write owner/name"),
        (tmp_path / "two", r"holds a\.safetensors, b\.safetensors, expected one file"),
        (tmp_path / "pickled.bin", "expected safetensors; pickled weights are never read"),
        (tmp_path / "cut.safetensors", "empty, truncated or damaged"),
        (tmp_path / "short.safetensors", "empty, truncated or damaged"),
        (sd_folder, r"is a whole prior; .* prior\.delta"),
        (sd_folder / "scheduler", "holds no safetensors"),
    ):
        with pytest.raises(PriorError, match=words):
            load_sd(sd_folder, **kept(Lora(str(path))))
    with pytest.raises(PriorError, match=r"LoRA weights go into prior\.lora"):
        load_sd(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("path", ["owner/style", "owner/style/inner/one.safetensors"])
def test_a_repository_is_asked_for_its_lora_alone(path, monkeypatch, tmp_path):
    import huggingface_hub

    asked, file = [], tmp_path / (path.partition("style/")[2] or "pytorch_lora_weights.safetensors")
    file.parent.mkdir(exist_ok=True)
    save_file({"unet.x.lora_A.weight": torch.ones(1)}, file)

    def download(repository, *, allow_patterns, local_files_only):
        asked.append((repository, allow_patterns, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert module.lora_file(path) == file
    ((repository, patterns, local),) = asked
    assert repository == "owner/style" and local and all("lora" in x or "adapter" in x or x in path for x in patterns)


def test_a_difference_between_different_models_is_refused(sd_folder, sd3_folder, tmp_path, change_json):
    from threestudio_rf.priors.folder.architecture_sd import make_unet

    wide = shutil.copytree(sd_folder, tmp_path / "wide")
    make_unet(16, channels=(24, 24), heads=2, seed=4).save_pretrained(wide / "unet")
    for delta, words in (
        (Delta(str(wide), str(sd_folder)), r"^prior\.delta=.* got \(24, .*, expected \(16, "),
        (Delta(str(sd_folder), str(wide)), r"^prior\.delta_from=.* holds another network than the prior's"),
        (Delta(str(sd3_folder), str(sd_folder)), "holds no weights"),
        (Delta("./none", str(sd_folder)), "no such folder ./none"),
    ):
        with pytest.raises(PriorError, match=words):
            load_sd(sd_folder, **kept(delta=delta))


def test_a_path_and_its_scale_are_told_apart():
    assert parse_loras("") == () and parse_loras("a.safetensors") == (Lora("a.safetensors"),)
    assert parse_loras("owner/name:0.5, C:\\x,b:-1") == (Lora("owner/name", 0.5), Lora("C:\\x"), Lora("b", -1.0))
    for text in (":0.5", "a,,b", "a:nan", "a:inf"):
        with pytest.raises(PriorError, match=r"expected <file or owner/name>\[:scale\]"):
            parse_loras(text)


def test_every_row_is_of_diffusers():
    import diffusers

    for cls, row in {**module.ROWS, "UNet2DConditionModel ": module.XL}.items():
        assert getattr(diffusers, cls.strip()) and getattr(diffusers, row.pipeline).lora_state_dict, cls
