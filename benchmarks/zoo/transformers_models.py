"""transformers' animals: their makers' initialization in reduced configurations."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from benchmarks._batches import images, segments, tokens, waves
from benchmarks.zoo.case import CLASSES, VOCABULARY, Case, Eats, sounds
from benchmarks.zoo.torchvision_models import declare_operators
from torch import Tensor, nn

Settings = dict[str, Any]

IDS: Settings = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHAPE: Settings = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
SMALL: Settings = {"vocab_size": VOCABULARY, **SHAPE, **IDS}
GROUPED: Settings = {**SMALL, "num_key_value_heads": 2}
BOTH: Settings = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
}
"""An encoder and a decoder, as Bart names them."""

WHOLE: Settings = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
"""No layer is left out at random, which some do by default."""

STARTS: Settings = {**IDS, "decoder_start_token_id": 0}
T5: Settings = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 512,
    "num_layers": 4,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}

CAUSAL: dict[str, Settings] = {
    "GPT2": {"n_embd": 128, "n_layer": 6, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1},
    "GPTNeo": {
        **SMALL,
        "num_layers": 6,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 3]],
        "window_size": 16,
    },
    "GPTJ": {"n_embd": 128, "n_layer": 6, "n_head": 4, "rotary_dim": 16, "n_positions": 128, **IDS},
    "GPTNeoX": SMALL,
    "GPTBigCode": {"n_embd": 128, "n_layer": 6, "n_head": 4, "n_positions": 128, **IDS},
    "CodeGen": {"n_embd": 128, "n_layer": 6, "n_head": 4, "rotary_dim": 16, "n_positions": 128, **IDS},
    "CTRL": {"n_embd": 128, "n_layer": 6, "n_head": 4, "dff": 512, "n_positions": 128},
    "OPT": {**SMALL, "ffn_dim": 512, "word_embed_proj_dim": 128},
    "Bloom": {"hidden_size": 128, "n_layer": 6, "n_head": 4},
    "Falcon": SMALL,
    "Mpt": {"d_model": 128, "n_layers": 6, "n_heads": 4, "max_seq_len": 128},
    "Llama": GROUPED,
    "Mistral": GROUPED,
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 32},
    "Gemma": {**GROUPED, "head_dim": 32},
    "Gemma2": {**GROUPED, "head_dim": 32},
    "Olmo2": GROUPED,
    "StableLm": GROUPED,
    "Cohere": GROUPED,
    "Granite": GROUPED,
    "Starcoder2": GROUPED,
    "Phi": SMALL,
    "Phi3": GROUPED,
    "Mixtral": {**GROUPED, "num_local_experts": 4},
    "Mamba": {"hidden_size": 96, "num_hidden_layers": 4, "state_size": 8, "use_mambapy": False},
    "Mamba2": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "state_size": 16,
        "num_heads": 6,
        "head_dim": 32,
        "n_groups": 1,
        "chunk_size": 32,
        **IDS,
    },
    "Rwkv": {"hidden_size": 96, "num_hidden_layers": 4, "attention_hidden_size": 96, "context_length": 64},
    "RecurrentGemma": {
        **GROUPED,
        "lru_width": 128,
        "attention_window_size": 32,
        "head_dim": 32,
    },
    "XGLM": {"d_model": 128, "num_layers": 6, "attention_heads": 4, "ffn_dim": 512, **IDS},
    "BioGpt": SMALL,
}
"""Models that continue text, by the prefix of their classes."""

MASKED: dict[str, Settings] = {
    "Bert": SMALL,
    "Roberta": {**SMALL, "max_position_embeddings": 200},
    "RobertaPreLayerNorm": {**SMALL, "max_position_embeddings": 200},
    "DistilBert": {"dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512},
    "Albert": {**SMALL, "embedding_size": 64},
    "Electra": {**SMALL, "embedding_size": 64},
    "ModernBert": SMALL,
    "Deberta": {
        **SMALL,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "max_position_embeddings": 128,
    },
    "DebertaV2": {**SMALL, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "MPNet": SMALL,
    "ConvBert": {**SMALL, "embedding_size": 64},
    "RoFormer": SMALL,
    "MobileBert": {
        **SMALL,
        "intra_bottleneck_size": 64,
        "embedding_size": 64,
        "intermediate_size": 256,
    },
    "SqueezeBert": {**SMALL, "embedding_size": 128},
    "Nystromformer": {
        **SMALL,
        "num_landmarks": 16,
        "segment_means_seq_len": 64,
        "inv_coeff_init_option": False,
    },
    "FNet": {**SMALL, "tpu_short_seq_length": 64},
    "BigBird": {**SMALL, "attention_type": "original_full"},
    "Longformer": {**SMALL, "attention_window": 16, "max_position_embeddings": 200},
    "LayoutLM": SMALL,
    "Perceiver": {
        "num_latents": 16,
        "d_latents": 64,
        "d_model": 64,
        "num_self_attends_per_block": 4,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 64,
        "max_position_embeddings": 64,
    },
    "Reformer": {
        "hidden_size": 128,
        "num_attention_heads": 4,
        "attention_head_size": 32,
        "feed_forward_size": 512,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_embds": False,
        "max_position_embeddings": 128,
        "local_attn_chunk_length": 16,
        "lsh_attn_chunk_length": 16,
        "num_buckets": 4,
        "is_decoder": False,
    },
}
"""Models that fill gaps."""

PAIRS: dict[str, Settings] = {
    "T5": T5,
    "UMT5": T5,
    "LongT5": {**T5, "local_radius": 15},
    "SwitchTransformers": {**T5, "num_experts": 4, "num_decoder_layers": 4},
    "Bart": BOTH,
    "MBart": {**BOTH, **STARTS},
    "Pegasus": {**BOTH, **STARTS},
    "PegasusX": {**BOTH, **STARTS, "block_size": 16, "num_global_tokens": 8},
    "Marian": {**BOTH, **STARTS},
    "Blenderbot": {**BOTH, **STARTS},
    "M2M100": {**BOTH, **STARTS, **WHOLE},
    "LED": {
        **BOTH,
        "attention_window": 16,
        "max_encoder_position_embeddings": 128,
        "max_decoder_position_embeddings": 128,
        **STARTS,
    },
    "ProphetNet": {
        "hidden_size": 128,
        "num_encoder_layers": 3,
        "num_decoder_layers": 3,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512,
        "max_position_embeddings": 128,
        **STARTS,
    },
}
"""Models from text to text."""

PATCHES: Settings = {**SHAPE, "image_size": 64, "patch_size": 8, "num_labels": CLASSES}
STAGES: Settings = {"depths": [2, 2, 4, 2], "hidden_sizes": [32, 64, 96, 128], "num_labels": CLASSES}

PICTURES: dict[str, tuple[str, Settings]] = {
    "ViT": ("ViTForImageClassification", PATCHES),
    "DeiT": ("DeiTForImageClassification", PATCHES),
    "Beit": ("BeitForImageClassification", PATCHES),
    "Dinov2": ("Dinov2ForImageClassification", PATCHES),
    "Siglip": ("SiglipForImageClassification", {"vision_config": PATCHES, "num_labels": CLASSES}),
    "ViTMAE": (
        "ViTMAEForPreTraining",
        {
            **PATCHES,
            "decoder_hidden_size": 64,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 256,
        },
    ),
    "Swin": (
        "SwinForImageClassification",
        {"image_size": 64, "embed_dim": 32, "depths": [2, 2, 4], "num_heads": [2, 4, 8], "window_size": 4,
         "patch_size": 2, "num_labels": CLASSES},
    ),
    "ConvNext": ("ConvNextForImageClassification", STAGES),
    "ConvNextV2": ("ConvNextV2ForImageClassification", STAGES),
    "ResNet": ("ResNetForImageClassification", {**STAGES, "embedding_size": 32, "layer_type": "basic"}),
    "RegNet": ("RegNetForImageClassification", {**STAGES, "embedding_size": 32, "groups_width": 16}),
    "Bit": ("BitForImageClassification", {**STAGES, "embedding_size": 32, "num_groups": 8,
                                                "hidden_sizes": [64, 128, 192, 256]}),
    "PoolFormer": ("PoolFormerForImageClassification", STAGES),
    "PvtV2": ("PvtV2ForImageClassification", {**STAGES, "num_attention_heads": [1, 2, 3, 4], "image_size": 64}),
    "Cvt": ("CvtForImageClassification", {"embed_dim": [32, 64, 128], "num_heads": [1, 2, 4], "depth": [1, 2, 4],
                                          "num_labels": CLASSES}),
    "MobileViT": ("MobileViTForImageClassification", {"image_size": 64, "num_labels": CLASSES}),
    "Segformer": (
        "SegformerForImageClassification",
        {"hidden_sizes": [32, 64, 96, 128], "num_attention_heads": [1, 2, 3, 4], "num_labels": CLASSES},
    ),
}  # fmt: skip
"""Classifiers of images, and one that fills gaps in them: class, settings."""

HEARS: Settings = {**SMALL, "num_labels": CLASSES, "apply_spec_augment": False, "layerdrop": 0.0}
SPEECH: Settings = {**HEARS, "conv_dim": (64,) * 7}
LISTENERS: dict[str, tuple[str, Settings]] = {
    "Wav2Vec2": ("Wav2Vec2ForSequenceClassification", SPEECH),
    "Wav2Vec2-layer-norm": (
        "Wav2Vec2ForSequenceClassification",
        {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    "Hubert": ("HubertForSequenceClassification", SPEECH),
    "WavLM": ("WavLMForSequenceClassification", SPEECH),
    "UniSpeech": ("UniSpeechForSequenceClassification", SPEECH),
    "SEW": ("SEWForSequenceClassification", {
        **HEARS, "conv_dim": (32, 64, 64, 64, 64, 64, 64),
        "conv_stride": (5, 2, 2, 2, 2, 2, 2), "conv_kernel": (10, 3, 3, 3, 3, 2, 2)}),
    "Data2VecAudio": ("Data2VecAudioForSequenceClassification", SPEECH),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """All of them."""
    declare_operators()
    import transformers

    for slow in ("PreTrainedModel", "GenerationMixin"):
        getattr(transformers, slow)  # imports once what every model would import in its own process
    make = partial(_made, transformers)
    for name, settings in CAUSAL.items():
        yield _case(
            name, make(name, (f"{name}LMHeadModel", f"{name}ForCausalLM"), _worded(settings)), _language
        )
    for name, settings in MASKED.items():
        eats = _with_global(_masked) if name == "Longformer" else _masked
        yield _case(name, make(name, (f"{name}ForMaskedLM",), _worded(settings)), eats)
    for name, settings in PAIRS.items():
        heads = (f"{name}ForConditionalGeneration", f"{name}MTModel")
        eats = _with_global(_pair) if name == "LED" else _pair
        yield _case(name, make(name, heads, _worded(settings)), eats)
    for name, (head, settings) in PICTURES.items():
        eats = _unnamed_images if name == "ViTMAE" else _images
        yield _case(name if name != "ResNet" else "ResNet-hf", make(name, (head,), settings), eats)
    for name, (head, settings) in LISTENERS.items():
        yield _case(name, make(name.removesuffix("-layer-norm"), (head,), settings), sounds())
    yield from _others(make)


def _others(make: Any) -> Iterator[Case]:
    for name, (head, settings, eats) in OTHERS.items():
        yield _case(name, make(name.split("-")[0], (head,), settings), eats)


def _case(name: str, build: Any, eats: Eats) -> Case:
    return Case(name, "transformers", build, eats, None)


def _made(library: Any, name: str, heads: tuple[str, ...], settings: Settings) -> partial[nn.Module]:
    return partial(_hugging, library, name, heads, settings)


def _hugging(library: Any, name: str, heads: tuple[str, ...], settings: Settings) -> nn.Module:
    config = getattr(library, f"{name}Config")
    model = next(getattr(library, head) for head in heads if hasattr(library, head))
    return model(config(**settings))


def _worded(settings: Settings) -> Settings:
    return {"vocab_size": VOCABULARY, **settings}


# -- batches, under the names that transformers gives their parts


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


def _with_global(eats: Eats) -> Eats:
    """The first token sees all and is seen by all."""
    first = torch.zeros(8, 64, dtype=torch.long)
    first[:, 0] = 1
    return lambda seed: {**eats(seed), "global_attention_mask": first}


def _classes(seed: int) -> dict[str, Tensor]:
    ids = tokens(8, 64, VOCABULARY, seed=seed)
    return {"input_ids": ids, "labels": ids[:, -1] % CLASSES}


def _typed_classes(seed: int) -> dict[str, Tensor]:
    named = _classes(seed)
    return {**named, "token_type_ids": (torch.arange(64) >= 32).long().expand(8, 64)}


def _images(seed: int) -> dict[str, Tensor]:
    pixels, labels = images(16, 64, classes=CLASSES, seed=seed)
    return {"pixel_values": pixels, "labels": labels}


def _unnamed_images(seed: int) -> dict[str, Tensor]:
    return {"pixel_values": _images(seed)["pixel_values"]}


def _segments(seed: int) -> dict[str, Tensor]:
    pixels, labels = segments(4, 64, seed=seed)
    return {"pixel_values": pixels, "labels": labels}


def _captioned(seed: int) -> dict[str, Any]:
    pixels, labels = images(8, 64, classes=CLASSES, seed=seed)
    ids = tokens(8, 16, VOCABULARY, seed=seed)
    ids[:, -1], ids[:, 1] = VOCABULARY - 1, 3 + labels
    return {"input_ids": ids, "pixel_values": pixels, "return_loss": True}


def _spectra(seed: int) -> dict[str, Tensor]:
    pixels, _ = images(4, 200, channels=1, seed=seed)
    return {"input_features": pixels[:, 0, :80], "labels": tokens(4, 24, VOCABULARY, seed=seed)}


def _upright_spectra(seed: int) -> dict[str, Tensor]:
    named = _spectra(seed)
    return {**named, "input_features": named["input_features"].transpose(1, 2).contiguous()}


def _spectrum_classes(seed: int) -> dict[str, Tensor]:
    pixels, labels = images(8, 128, channels=1, classes=CLASSES, seed=seed)
    return {"input_values": pixels[:, 0], "labels": labels}


def _series(seed: int) -> dict[str, Tensor]:
    past = torch.stack([waves(16, 96 + 24, seed=seed + k) for k in range(3)], -1)
    return {"past_values": past[:, :96], "future_values": past[:, 96:]}


def _timed_series(seed: int) -> dict[str, Tensor]:
    values = waves(16, 96 + 24, seed=seed)
    time = torch.linspace(-0.5, 0.5, 96 + 24)[None, :, None].expand(16, -1, -1)
    return {
        "past_values": values[:, :96],
        "past_time_features": time[:, :96].contiguous(),
        "past_observed_mask": torch.ones(16, 96),
        "future_values": values[:, 96:],
        "future_time_features": time[:, 96:].contiguous(),
    }


FORECAST: Settings = {
    **WHOLE,
    "prediction_length": 24,
    "context_length": 72,
    "lags_sequence": [1, 2, 3, 12, 24],
    "num_time_features": 1,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
SMALL_FUNNEL: Settings = {
    "vocab_size": VOCABULARY,
    "block_sizes": [2, 2, 2],
    "d_model": 128,
    "n_head": 4,
    "d_head": 32,
    "d_inner": 512,
}
"""As a classifier only: tied to embeddings N(0, 1), its language head starts with a loss of 77 (chance: 6.9)."""

SMALL_XLNET: Settings = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "n_layer": 6,
    "n_head": 4,
    "d_inner": 512,
    **IDS,
}
TEXT_TOWER: Settings = {**SMALL, "eos_token_id": VOCABULARY - 1, "projection_dim": 64, "num_hidden_layers": 4}
VISION_TOWER: Settings = {**SHAPE, "image_size": 64, "patch_size": 8, "num_hidden_layers": 4}

OTHERS: dict[str, tuple[str, Settings, Eats]] = {
    "Whisper": (
        "WhisperForConditionalGeneration",
        {
            **{k: v for k, v in BOTH.items() if k != "max_position_embeddings"},
            **STARTS,
            "max_source_positions": 100,
        },
        _spectra,
    ),
    "Speech2Text": (
        "Speech2TextForConditionalGeneration",
        {
            **{k: v for k, v in BOTH.items() if k != "max_position_embeddings"},
            **STARTS,
            "conv_channels": 128,
            "max_source_positions": 200,
            "max_target_positions": 64,
        },
        _upright_spectra,
    ),
    "AST": (
        "ASTForAudioClassification",
        {**SHAPE, "num_mel_bins": 128, "max_length": 128, "num_labels": CLASSES},
        _spectrum_classes,
    ),
    "Canine": (
        "CanineForSequenceClassification",
        {
            **{k: v for k, v in SMALL.items() if k != "vocab_size"},
            "num_labels": CLASSES,
            "downsampling_rate": 4,
            "local_transformer_stride": 16,
            "num_hash_buckets": 512,
        },
        _classes,
    ),
    "Funnel": ("FunnelForSequenceClassification", {**SMALL_FUNNEL, "num_labels": CLASSES}, _classes),
    "XLNet": (
        "XLNetForSequenceClassification",
        {**SMALL_XLNET, "num_labels": CLASSES},
        _typed_classes,
    ),
    "CLIP": (
        "CLIPModel",
        {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER, "projection_dim": 64},
        _captioned,
    ),
    "Siglip-pair": ("SiglipModel", {"text_config": TEXT_TOWER, "vision_config": VISION_TOWER}, _captioned),
    "Segformer-masks": (
        "SegformerForSemanticSegmentation",
        {
            "hidden_sizes": [32, 64, 96, 128],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 64,
            "num_labels": 5,
        },
        _segments,
    ),
    "DPT": (
        "DPTForSemanticSegmentation",
        {
            **VISION_TOWER,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [32, 64, 96, 128],
            "fusion_hidden_size": 64,
            "num_labels": 5,
            "readout_type": "project",
        },
        _segments,
    ),
    "PatchTST": (
        "PatchTSTForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 96,
            "prediction_length": 24,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 64,
            "ffn_dim": 128,
        },
        _series,
    ),
    "PatchTSMixer": (
        "PatchTSMixerForPrediction",
        {
            "num_input_channels": 3,
            "context_length": 96,
            "prediction_length": 24,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 32,
        },
        _series,
    ),
    "TimeSeriesTransformer": ("TimeSeriesTransformerForPrediction", FORECAST, _timed_series),
    "Informer": ("InformerForPrediction", FORECAST, _timed_series),
    "Autoformer": (
        "AutoformerForPrediction",
        {**FORECAST, "label_length": 12, "moving_average": 5},
        _timed_series,
    ),
}
"""Those with an input of their own: class, settings, batch."""
