"""The zoo: healthy models in their makers' initialization, each with a batch and a loss.

torchvision and timm come without compiled operators (see README.md), so torchvision's are declared before it is
imported. Depth, width and resolution are reduced where a model would take more than some seconds; initialization is
never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _batches import images, segments, tokens, waves
from _own_models import MiniGPT, Recurrent, ResNet, UNet, autoencoder, dense_autoencoder, mlp
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 10

OPERATORS = (
    "nms",
    "qnms",
    "roi_align",
    "qroi_align",
    "_roi_align_backward",
    "roi_pool",
    "_roi_pool_backward",
    "ps_roi_align",
    "_ps_roi_align_backward",
    "ps_roi_pool",
    "_ps_roi_pool_backward",
    "deform_conv2d",
    "_deform_conv2d_backward",
)
"""What torchvision expects its compiled part to have declared."""


@dataclass(frozen=True, slots=True)
class Case:
    """One animal: what makes it, and what it eats.

    Attributes:
        name: As its library calls it.
        origin: torchvision, timm, transformers or own.
        build: The model.
        batch: Of a seed, what `fanin.check` takes.
        loss: loss_fn(output, target); None where the model returns its own.
    """

    name: str
    origin: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Tensor] | None = functional.cross_entropy


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _own()
    yield from _torchvision()
    yield from _timm()
    yield from _transformers()


# -- our own


def _own() -> Iterator[Case]:
    text = partial(_text_classes, 32, 32, 500)
    pictures = partial(_images, 32, 32)
    yield Case("mlp-he", "own", lambda: mlp(784, 256, 256, 256, 256, 10), partial(_grey, 64, 28))
    yield Case("resnet6-bn", "own", ResNet, pictures)
    yield Case("minigpt", "own", lambda: MiniGPT(500, 128, 6), partial(_next_token, 16, 64, 500), _token_loss)
    yield Case("lstm", "own", lambda: Recurrent(nn.LSTM), text)
    yield Case("gru", "own", lambda: Recurrent(nn.GRU), text)
    yield Case("autoencoder", "own", autoencoder, partial(_to_itself, 16, 64, 3), functional.mse_loss)
    yield Case("autoencoder-dense", "own", dense_autoencoder, partial(_to_itself, 64, 28, 1), _flat_mse)
    yield Case("unet-bn", "own", UNet, partial(_segments, 8, 64))
    yield Case("unet-plain", "own", lambda: UNet(normed=False), partial(_segments, 8, 64))


def _images(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    return images(count, side, classes=CLASSES, seed=seed)


def _grey(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    return images(count, side, channels=1, classes=CLASSES, seed=seed)


def _segments(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    return segments(count, side, seed=seed)


def _to_itself(count: int, side: int, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    pixels, _ = images(count, side, channels=channels, seed=seed)
    return pixels, pixels


def _flat_mse(output: Tensor, target: Tensor) -> Tensor:
    return functional.mse_loss(output, target.flatten(1).clamp(0, 1))


def _text_classes(count: int, length: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    ids = tokens(count, length, vocabulary, seed=seed)
    return ids, ids[:, -1] % CLASSES


def _next_token(count: int, length: int, vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    ids = tokens(count, length + 1, vocabulary, seed=seed)
    return ids[:, :-1], ids[:, 1:]


def _token_loss(output: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(output.flatten(0, 1), target.flatten())


# -- torchvision and timm


def declare_operators() -> torch.library.Library:
    """Make torchvision importable without its compiled operators; keep what is returned."""
    library = torch.library.Library("torchvision", "DEF")
    for name in OPERATORS:
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


PICTURES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "resnet18": (8, 160, {}),
    "resnet50": (8, 128, {}),
    "resnext50_32x4d": (4, 128, {}),
    "vgg11": (8, 128, {}),
    "vgg11_bn": (8, 128, {}),
    "alexnet": (16, 224, {}),
    "squeezenet1_0": (8, 160, {}),
    "squeezenet1_1": (8, 160, {}),
    "densenet121": (4, 128, {}),
    "mobilenet_v2": (8, 128, {}),
    "mobilenet_v3_small": (16, 160, {}),
    "mobilenet_v3_large": (8, 160, {}),
    "shufflenet_v2_x1_0": (8, 160, {}),
    "mnasnet0_5": (8, 160, {}),
    "efficientnet_b0": (8, 128, {}),
    "efficientnet_v2_s": (4, 96, {}),
    "convnext_tiny": (4, 128, {}),
    "regnet_y_400mf": (8, 128, {}),
    "googlenet": (8, 128, {"aux_logits": False, "init_weights": True}),
    "inception_v3": (4, 155, {"aux_logits": False, "init_weights": True}),
    "swin_v2_t": (2, 128, {}),
}
"""torchvision's classifiers: batch, resolution, arguments."""

SEGMENTERS = ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large")

TIMM: dict[str, tuple[int, int, dict[str, Any]]] = {
    "resnetv2_50": (4, 128, {}),
    "ecaresnet26t": (4, 128, {}),
    "seresnet18": (8, 128, {}),
    "nf_regnet_b0": (8, 128, {}),
    "nf_resnet26": (4, 128, {}),
    "eca_nfnet_l0": (4, 96, {}),
    "dm_nfnet_f0": (2, 64, {}),
    "repvgg_a0": (8, 128, {}),
    "ghostnet_100": (8, 128, {}),
    "hrnet_w18_small": (4, 128, {}),
    "dla34": (4, 128, {}),
    "vit_tiny_patch16_224": (8, 224, {}),
    "vit_small_patch16_dinov3": (4, 128, {}),
    "deit_tiny_patch16_224": (8, 224, {}),
    "deit3_small_patch16_224": (4, 224, {}),
    "cait_xxs24_224": (4, 224, {}),
    "beit_base_patch16_224": (2, 224, {"depth": 4}),
    "xcit_nano_12_p16_224": (8, 224, {}),
    "swin_tiny_patch4_window7_224": (4, 224, {}),
    "mixer_s32_224": (8, 224, {}),
    "resmlp_12_224": (4, 224, {}),
    "gmlp_ti16_224": (4, 224, {}),
    "coat_lite_tiny": (4, 224, {}),
    "levit_128s": (16, 224, {}),
    "poolformer_s12": (4, 224, {}),
    "maxvit_rmlp_pico_rw_256": (2, 256, {}),
    "coatnet_pico_rw_224": (2, 224, {}),
    "convnext_atto": (8, 128, {}),
    "convnextv2_atto": (8, 128, {}),
    "convmixer_768_32": (2, 64, {}),
    "mobilevit_xxs": (4, 128, {}),
    "edgenext_xx_small": (8, 128, {}),
    "efficientformer_l1": (4, 224, {}),
    "fastvit_t8": (4, 128, {}),
    "pvt_v2_b0": (4, 128, {}),
    "pit_ti_224": (8, 224, {}),
    "twins_svt_small": (4, 224, {}),
    "focalnet_tiny_srf": (4, 128, {}),
    "davit_tiny": (2, 128, {}),
    "sequencer2d_s": (2, 224, {}),
    "mambaout_femto": (8, 128, {}),
    "starnet_s1": (8, 128, {}),
}
"""timm's classifiers: batch, resolution, arguments."""


def _torchvision() -> Iterator[Case]:
    from torchvision import models

    for name, (count, side, arguments) in PICTURES.items():
        build = partial(getattr(models, name), weights=None, num_classes=CLASSES, **arguments)
        yield Case(name, "torchvision", build, partial(_images, count, side))
    for name in SEGMENTERS:
        build = partial(_of(models.segmentation, name), weights=None, weights_backbone=None, num_classes=5)
        yield Case(name, "torchvision", build, partial(_segments, 2, 96), _segmentation_loss)


def _of(module: Any, name: str) -> Callable[..., nn.Module]:
    return getattr(module, name)


def _segmentation_loss(output: Any, target: Tensor) -> Tensor:
    return functional.cross_entropy(output["out"], target)


def _timm() -> Iterator[Case]:
    import timm

    for name, (count, side, arguments) in TIMM.items():
        build = partial(timm.create_model, name, pretrained=False, num_classes=CLASSES, **arguments)
        yield Case(name, "timm", build, partial(_images, count, side))


# -- transformers

VOCABULARY = 1000

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}

CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 128, "n_layer": 6, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
    "GPTNeoX": SMALL,
    "OPT": {**SMALL, "ffn_dim": 512, "word_embed_proj_dim": 128},
    "Bloom": {"hidden_size": 128, "n_layer": 6, "n_head": 4},
    "Llama": {**SMALL, "num_key_value_heads": 2},
    "Mistral": {**SMALL, "num_key_value_heads": 2},
    "Qwen2": {**SMALL, "num_key_value_heads": 2},
    "Gemma": {**SMALL, "num_key_value_heads": 2, "head_dim": 32},
    "Phi": SMALL,
    "Mixtral": {**SMALL, "num_key_value_heads": 2, "num_local_experts": 4},
    "Mamba": {"hidden_size": 96, "num_hidden_layers": 4, "state_size": 8, "use_mambapy": False},
}
"""Models that continue text, by the prefix of their classes."""

MASKED: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": {**SMALL, "max_position_embeddings": 200},
    "DistilBert": {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512},
    "Albert": {**SMALL, "embedding_size": 64},
    "Electra": {**SMALL, "embedding_size": 64},
    "ModernBert": SMALL,
}
"""Models that fill gaps."""

SEQUENCE: dict[str, dict[str, Any]] = {
    "T5": {
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 512,
        "num_layers": 4,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "Bart": {
        "d_model": 128,
        **{
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("layers", 4), ("ffn_dim", 512))
        },
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 128,
    },
}
"""Models from text to text."""

SEQUENCE_HEAD = "ForConditionalGeneration"


def _transformers() -> Iterator[Case]:
    import transformers

    for name, settings in CAUSAL.items():
        heads = (f"{name}LMHeadModel", f"{name}ForCausalLM")
        yield Case(
            name, "transformers", partial(_hugging, transformers, name, heads, settings), _language, None
        )
    for name, settings in MASKED.items():
        heads = (f"{name}ForMaskedLM",)
        yield Case(
            name, "transformers", partial(_hugging, transformers, name, heads, settings), _masked, None
        )
    for name, settings in SEQUENCE.items():
        heads = (f"{name}{SEQUENCE_HEAD}",)
        yield Case(name, "transformers", partial(_hugging, transformers, name, heads, settings), _pair, None)
    yield from _transformers_other(transformers)


def _transformers_other(library: Any) -> Iterator[Case]:
    picture = {k: v for k, v in SMALL.items() if not k.endswith("_id") and k != "vocab_size"}
    vit = {**picture, "image_size": 64, "patch_size": 8, "num_labels": CLASSES}
    heads = ("ViTForImageClassification",)
    yield Case("ViT", "transformers", partial(_hugging, library, "ViT", heads, vit), _named_images, None)
    sound = {**SMALL, "conv_dim": (64,) * 7, "num_labels": CLASSES, "apply_spec_augment": False}
    heads = ("Wav2Vec2ForSequenceClassification",)
    yield Case(
        "Wav2Vec2", "transformers", partial(_hugging, library, "Wav2Vec2", heads, sound), _sounds, None
    )
    whisper = {**SEQUENCE["Bart"], "max_source_positions": 100, "decoder_start_token_id": 0}
    whisper |= {"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    del whisper["max_position_embeddings"]
    heads = (f"Whisper{SEQUENCE_HEAD}",)
    yield Case(
        "Whisper", "transformers", partial(_hugging, library, "Whisper", heads, whisper), _spectra, None
    )


def _hugging(library: Any, name: str, heads: tuple[str, ...], settings: dict[str, Any]) -> nn.Module:
    config = getattr(library, f"{name}Config")
    model = next(getattr(library, head) for head in heads if hasattr(library, head))
    text = {} if {"image_size", "conv_dim"} & settings.keys() else {"vocab_size": VOCABULARY}
    return model(config(**{**text, **settings}))


def _language(seed: int) -> dict[str, Tensor]:
    ids = tokens(8, 64, VOCABULARY, seed=seed)
    return {"input_ids": ids, "labels": ids.clone()}


def _masked(seed: int) -> dict[str, Tensor]:
    ids = tokens(8, 64, VOCABULARY, seed=seed)
    hidden = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    return {"input_ids": ids.masked_fill(hidden, 3), "labels": ids.masked_fill(~hidden, -100)}


def _pair(seed: int) -> dict[str, Tensor]:
    ids = tokens(8, 64, VOCABULARY, seed=seed)
    return {"input_ids": ids, "labels": ids.flip(1)[:, :32].contiguous()}


def _named_images(seed: int) -> dict[str, Tensor]:
    pixels, labels = images(16, 64, classes=CLASSES, seed=seed)
    return {"pixel_values": pixels, "labels": labels}


def _sounds(seed: int) -> dict[str, Tensor]:
    return {"input_values": waves(4, 8000, seed=seed), "labels": torch.arange(4)}


def _spectra(seed: int) -> dict[str, Tensor]:
    pixels, _ = images(4, 200, channels=1, seed=seed)
    return {"input_features": pixels[:, 0, :80], "labels": tokens(4, 24, VOCABULARY, seed=seed)}
