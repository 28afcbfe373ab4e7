"""How network and VAE are kept: each option against the plain parts of diffusers, and what cannot work refused.

Seen to fail: storage or checkpointing ignored; the range of float8 or the sums in files unchecked; diffusers' own flag
on the tiny encoder; checkpointed layers run plainly; latents of the tiny VAE scaled, its class, channels and files
unchecked; the folder's own VAE needed beside it; with offload the other part not moved away, the encoder not computed
again, or loaded inside the checkpoint; moves without offload; a missing library, a missing CUDA, two roundings passed;
blocks ignored, or twice as many; a network in blocks moved as a whole.
"""

import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file

from threestudio_rf.core.random import generator
from threestudio_rf.priors.base import PriorError
from threestudio_rf.priors.folder import parts as module
from threestudio_rf.priors.folder.load import file_faults, weight_files
from threestudio_rf.priors.folder.parts import PartOptions
from threestudio_rf.priors.folder.vaes import Recomputed
from threestudio_rf.priors.sd import load_sd
from threestudio_rf.priors.sd3 import load_sd3

LOADERS = {"sd": load_sd, "sd3": load_sd3}


@pytest.fixture(params=["sd", "sd3"])
def load(request, sd_folder, sd3_folder):
    """The same folder with other options."""
    folder = {"sd": sd_folder, "sd3": sd3_folder}[request.param]
    return lambda **options: LOADERS[request.param](folder, options=PartOptions(**options))


def picture(batch=1):
    return torch.rand(batch, 3, 64, 48, generator=generator(0, 0, "image"))


def predicted(prior):
    x = torch.randn(2, 16, 8, 8, generator=generator(0, 0, "x"))
    return prior.predict(x, torch.tensor([0.2, 0.7]), prior.embed(["red", "a blue ball"]))


def encoded(prior, generator=None):
    """(latents, gradient at the image, bytes kept for backward) of one encoding."""
    image, kept = picture().requires_grad_(), {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        z = prior.encode(image, generator)
    (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
    return z.detach(), image.grad, sum(kept.values())


# Options that cannot work


@pytest.mark.parametrize(
    "options",
    [
        {"storage": "fp4"},
        {"quantization": "int2"},
        {"storage": "fp8", "quantization": "int8"},
        {"quantization": "nf4", "offload": True},
        {"quantization": "nf4", "offload_blocks": 1},
        {"compile": True, "offload_blocks": 1},
    ],
)
def test_unknown_names_and_impossible_combinations_are_refused(options):
    with pytest.raises(PriorError, match=r"got .*, expected"):
        PartOptions(**options)


@pytest.mark.parametrize(("name", "library"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named_with_the_line_that_installs_it(monkeypatch, name, library):
    monkeypatch.setattr(module, "find_spec", lambda found: None)
    with pytest.raises(PriorError, match=f'prior.quantization={name} needs {library}: pip install "{library}>='):
        PartOptions(quantization=name).check(torch.device("cuda"))


def test_nf4_without_cuda_is_refused_in_one_sentence_before_the_folder_is_looked_for():
    with pytest.raises(PriorError, match="needs a CUDA device, got cpu; use int8, or storage=fp8"):
        load_sd("no such folder", options=PartOptions(quantization="nf4"))


def test_compiled_parts_are_asked_in_the_place_of_the_plain_ones_with_static_shapes(load, monkeypatch):
    """The compiler itself stays away: what it is given, and that what it returns is what computes."""
    plain, noted, calls = load(), [], []

    def compiled(call, **options):
        noted.append(options)
        return lambda *args, **kwargs: (calls.append(len(noted)), call(*args, **kwargs))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    quick = load(compile=True)
    assert torch.equal(predicted(quick), predicted(plain)) and calls == [1]
    for ours, theirs in zip(encoded(quick)[:2], encoded(plain)[:2], strict=True):
        assert torch.equal(ours, theirs)
    assert calls == [1, 2] and noted == [{"dynamic": False}] * 2


# Storage


def test_fp8_storage_halves_float16_and_moves_predictions_little(load):
    plain, small = load(), load(storage="fp8")
    weights = list(small.parts.network.parameters())
    assert torch.float8_e4m3fn in {weight.dtype for weight in weights}
    size = sum(weight.numel() * weight.element_size() for weight in weights)
    assert size < 0.6 * sum(weight.numel() * 4 for weight in weights)
    change = (predicted(small) - predicted(plain)).norm() / predicted(plain).norm()
    assert 1e-4 < change < 0.1
    assert {weight.dtype for weight in small.parts.vae.parameters()} == {torch.float32}


def test_weights_beyond_float8_are_refused_instead_of_becoming_nan(copied_sd):
    file = copied_sd / "unet/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_out.bias": torch.full((16,), 500.0)}, file, metadata={"format": "pt"})
    load_sd(copied_sd).load()
    with pytest.raises(PriorError, match=r"numbers up to 448, conv_out\.bias has larger ones"):
        load_sd(copied_sd, options=PartOptions(storage="fp8")).load()


def test_faults_of_weights_that_will_be_quantised_are_found_in_their_files(copied_sd):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = copied_sd / "unet"
    assert file_faults(UNet2DConditionModel, folder, weight_files(folder)) == ([], [])
    assert file_faults(AutoencoderKL, copied_sd / "vae", weight_files(copied_sd / "vae")) == ([], [])
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    tensors["conv_out.bias"][3] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    assert file_faults(UNet2DConditionModel, folder, [file]) == (["conv_in.weight"], ["conv_out.bias"])


def test_int8_quarters_the_weights_of_linear_layers_and_moves_predictions_little(load):
    plain, small = load(), load(quantization="int8")
    rounded = [w for w in small.parts.network.parameters() if "Int8" in type(w).__name__]
    assert rounded and {w.qdata.dtype for w in rounded} == {torch.int8} and not any(w.requires_grad for w in rounded)
    change = (predicted(small) - predicted(plain)).norm() / predicted(plain).norm()
    assert 1e-5 < change < 0.05
    with pytest.raises(PriorError, match="nf4 needs a CUDA device"):
        load(quantization="nf4")


# The VAE's encoder


def test_a_checkpointed_encoder_keeps_less_and_changes_nothing(load, tiny_vae):
    for vae in ("", str(tiny_vae)):
        z, grad, kept = encoded(load(vae=vae))
        again_z, again_grad, again_kept = encoded(load(vae=vae, vae_checkpointing=True))
        assert torch.equal(again_z, z) and torch.equal(again_grad, grad) and grad.abs().min() > 0
        assert again_kept < 0.5 * kept


def test_a_checkpointed_encoder_computes_twice_only_where_a_gradient_is_wanted(load):
    prior, calls = load(vae_checkpointing=True), []
    prior.parts.vae.encoder.down_blocks[0].resnets[0].register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad():
        prior.encode(picture())
    assert len(calls) == 1
    encoded(prior)
    assert len(calls) == 1 + 2 and not prior.parts.vae.training


def test_a_tiny_vae_is_diffusers_own_without_scale_or_shift_and_has_no_posterior(load, tiny_vae):
    from diffusers import AutoencoderTiny

    plain, prior = AutoencoderTiny.from_pretrained(tiny_vae).eval(), load(vae=str(tiny_vae))
    with torch.no_grad():
        wanted = plain.encode(2 * picture() - 1).latents
        shown = plain.decode(wanted).sample
    z, _, _ = encoded(prior)
    assert torch.equal(z, wanted) and torch.equal(encoded(prior, generator(0, 0, "posterior"))[0], wanted)
    torch.testing.assert_close(prior.decode(z), (shown / 2 + 0.5).clamp(0, 1), rtol=0, atol=0)
    checkpointed = load(vae=str(tiny_vae), vae_checkpointing=True).parts.vae
    assert not checkpointed.is_gradient_checkpointing, "diffusers' own flag leaves out the map to [0, 1]"
    assert all(isinstance(layer, Recomputed) for layer in checkpointed.encoder.layers)


def test_the_folders_own_vae_is_not_needed_beside_a_tiny_one(copied, copied_sd, tiny_vae):
    options = PartOptions(vae=str(tiny_vae))
    for folder, load in ((copied, load_sd3), (copied_sd, load_sd)):
        shutil.rmtree(folder / "vae", ignore_errors=True)
        assert load(folder, options=options).encode(picture()).shape == (1, 16, 8, 6)


def test_a_vae_of_another_kind_or_shape_is_refused(copied_sd, tiny_vae, tmp_path):
    from diffusers import AutoencoderTiny

    def refused(vae):
        with pytest.raises(PriorError) as caught:
            load_sd(copied_sd, options=PartOptions(vae=str(vae)))
        return str(caught.value)

    assert "holds a AutoencoderKL, expected an AutoencoderTiny" in refused(copied_sd / "vae")
    sizes = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    AutoencoderTiny(latent_channels=4, **sizes).save_pretrained(tmp_path / "four")
    assert "makes 4 latent channels, the network reads 16" in refused(tmp_path / "four")
    broken = shutil.copytree(tiny_vae, tmp_path / "broken")
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    assert "is empty, truncated or damaged" in refused(broken)
    assert "no such folder ./x" in refused("./x")


# Offloading


@contextmanager
def moves(prior):
    """What is moved where: a list of (part, "in" or "out"), by the device's name, while inside."""
    found, device = [], prior.parts.device
    for name in ("network", "vae"):
        part = prior.parts.on_device(name)

        def to(target, *, name=name, part=part):
            found.append((name, "in" if target is device else "out"))
            return part

        part.to = to
    found.clear()
    try:
        yield found
    finally:
        for part in prior.parts.loaded.values():
            del part.to


def test_of_network_and_vae_only_the_one_in_use_is_on_the_device_also_in_backward(load):
    prior, plain = load(offload=True), load()
    condition, t = prior.embed(["red"]), torch.tensor([0.5])
    image, wanted = picture().requires_grad_(), picture().requires_grad_()
    weights = torch.randn(1, 16, 8, 6, generator=generator(0, 0, "weights"))
    (plain.encode(wanted) * weights).sum().backward()
    with moves(prior) as found:
        z = prior.encode(image)
        assert found == []  # it was the last one asked for
        prior.predict(z.detach(), t, condition)
        prior.predict(z.detach(), t, condition)
        assert found == [("vae", "out"), ("network", "in")]
        (z * weights).sum().backward()
        assert found[2:] == [("network", "out"), ("vae", "in")]
        prior.decode(z.detach())
        assert len(found) == 4
    assert torch.equal(image.grad, wanted.grad) and torch.equal(z, plain.encode(picture()))


def test_offloading_and_checkpointing_go_together(load):
    z, grad, kept = encoded(load())
    again_z, again_grad, again_kept = encoded(load(offload=True, vae_checkpointing=True))
    assert torch.equal(again_z, z) and torch.equal(again_grad, grad) and again_kept < 0.1 * kept
    drawn = [encoded(load(offload=offload), generator(0, 0, "posterior"))[:2] for offload in (False, True)]
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def blocks_in(monkeypatch):
    """How many groups of blocks are on the device after every change, and how many weights they have."""
    from diffusers.hooks.group_offloading import ModuleGroup

    held, seen = [], []

    def spy(name, change):
        inner = getattr(ModuleGroup, name)

        def changed(group):
            inner(group)
            change(group)
            lists = [[*one.parameters, *(p for m in one.modules for p in m.parameters())] for one in held]
            seen.append((len(held), sum({id(p): p.numel() for ps in lists for p in ps}.values())))

        monkeypatch.setattr(ModuleGroup, name, changed)

    spy("onload_", held.append)
    spy("offload_", held.remove)
    return seen


@pytest.mark.parametrize("storage", ["none", "fp8"])
def test_of_the_networks_blocks_so_many_at_a_time_are_on_the_device(load, storage, monkeypatch):
    plain, most = predicted(load(storage=storage)), []
    for blocks in (1, 2):
        prior = load(offload_blocks=blocks, offload=True, storage=storage)
        condition, z = prior.embed(["red"]), prior.encode(picture())
        prior.load()
        with moves(prior) as found, monkeypatch.context() as patched:
            seen = blocks_in(patched)
            assert torch.equal(predicted(prior), plain)
            prior.decode(z)
            prior.predict(z, torch.tensor([0.5]), condition)
        assert {name for name, _ in found} == {"vae"}
        assert max(seen)[0] == 2 and seen[-1][0] == 0  # one group of blocks, and what is in none
        most.append(max(weights for _, weights in seen))
    assert most[0] < most[1] <= sum(p.numel() for p in prior.network.parameters())


def test_without_offloading_nothing_moves_after_loading(load):
    prior = load()
    condition = prior.embed(["red"])
    with moves(prior) as found:
        z = prior.encode(picture())
        prior.predict(z, torch.tensor([0.5]), condition)
        prior.decode(z)
    assert found == []
