"""timm's animals."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.zoo import case
from benchmarks.zoo.case import CLASSES, Case
from benchmarks.zoo.torchvision_models import declare_operators

THOUSAND = {"num_classes": 1000}
"""For heads that are drawn by fan_out: with ten classes they would start larger than their makers have them."""

CONVOLUTIONAL: dict[str, tuple[int, int, dict[str, Any]]] = {
    "resnetv2_50": (4, 128, {}),
    "ecaresnet26t": (4, 128, {}),
    "seresnet18": (8, 128, {}),
    "skresnet18": (4, 96, {}),
    "resnest14d": (4, 96, {}),
    "res2net50_26w_4s": (4, 96, {}),
    "gcresnext26ts": (4, 96, {}),
    "dpn48b": (4, 96, {}),
    "cspresnet50": (4, 96, {}),
    "cspdarknet53": (4, 96, {}),
    "selecsls42": (4, 96, {}),
    "xception41": (2, 96, {}),
    "rexnet_100": (8, 96, THOUSAND),
    "nf_regnet_b0": (8, 128, {}),
    "nf_resnet26": (4, 128, {}),
    "eca_nfnet_l0": (4, 96, {}),
    "dm_nfnet_f0": (2, 64, {}),
    "regnetz_b16": (4, 96, {}),
    "repvgg_a0": (8, 128, {}),
    "mobileone_s0": (4, 96, {}),
    "ese_vovnet19b_dw": (4, 96, {}),
    "ghostnet_100": (8, 128, {}),
    "ghostnetv2_100": (8, 96, {}),
    "hrnet_w18_small": (4, 128, {}),
    "dla34": (4, 128, THOUSAND),
    "hardcorenas_a": (8, 96, THOUSAND),
    "tinynet_a": (8, 96, THOUSAND),
    "mixnet_s": (8, 96, THOUSAND),
    "fbnetc_100": (8, 96, THOUSAND),
    "lcnet_050": (8, 96, THOUSAND),
    "mobilenetv4_conv_small": (8, 96, THOUSAND),
    "hgnetv2_b0": (8, 96, {}),
    "fasternet_t0": (8, 96, {}),
    "repvit_m0_9": (4, 96, {}),
    "convnext_atto": (8, 128, {}),
    "convnextv2_atto": (8, 128, {}),
    "inception_next_atto": (8, 96, {}),
    "convmixer_768_32": (2, 64, {}),
    "focalnet_tiny_srf": (4, 128, {}),
    "mambaout_femto": (8, 128, {}),
    "starnet_s1": (8, 128, {}),
    "rdnet_tiny": (2, 96, {}),
}
"""Without attention, or with little of it: batch, resolution, arguments."""

ATTENTIVE: dict[str, tuple[int, int, dict[str, Any]]] = {
    "vit_tiny_patch16_224": (8, 224, {}),
    "vit_small_patch16_dinov3": (4, 128, {}),
    "vit_relpos_small_patch16_224": (4, 224, {"depth": 6}),
    "deit_tiny_patch16_224": (8, 224, {}),
    "deit3_small_patch16_224": (4, 224, {}),
    "cait_xxs24_224": (4, 224, {}),
    "beit_base_patch16_224": (2, 224, {"depth": 4}),
    "beitv2_base_patch16_224": (2, 224, {"depth": 4}),
    "eva02_tiny_patch14_224": (4, 112, {"img_size": 112}),
    "xcit_nano_12_p16_224": (8, 224, {}),
    "swin_tiny_patch4_window7_224": (4, 224, {}),
    "swinv2_cr_tiny_224": (2, 224, {}),
    "coat_lite_tiny": (4, 224, {}),
    "levit_128s": (16, 224, {}),
    "crossvit_tiny_240": (4, 240, {}),
    "convit_tiny": (4, 224, {}),
    "tnt_s_legacy_patch16_224": (2, 224, {"depth": 6}),
    "nest_tiny": (2, 224, {}),
    "volo_d1_224": (2, 224, {"use_aux_head": False}),
    "hiera_tiny_224": (2, 224, {}),
    "mvitv2_tiny": (2, 224, {}),
    "visformer_tiny": (4, 224, {}),
    "maxvit_rmlp_pico_rw_256": (2, 256, {}),
    "coatnet_pico_rw_224": (2, 224, {}),
    "botnet26t_256": (2, 256, {}),
    "halonet26t": (2, 256, {}),
    "lambda_resnet26t": (2, 256, {}),
    "mobilevit_xxs": (4, 128, {}),
    "edgenext_xx_small": (8, 128, {}),
    "efficientformer_l1": (4, 224, {}),
    "efficientformerv2_s0": (4, 224, {}),
    "efficientvit_b0": (4, 128, {}),
    "efficientvit_m0": (8, 224, {}),
    "fastvit_t8": (4, 128, {}),
    "pvt_v2_b0": (4, 128, {}),
    "pit_ti_224": (8, 224, {}),
    "twins_svt_small": (4, 224, {}),
    "twins_pcpvt_small": (2, 224, {}),
    "davit_tiny": (2, 128, {}),
    "gcvit_xxtiny": (2, 224, {}),
    "tiny_vit_5m_224": (4, 224, {}),
    "swiftformer_xs": (4, 224, {}),
}
"""With attention: batch, resolution, arguments."""

MIXERS: dict[str, tuple[int, int, dict[str, Any]]] = {
    "mixer_s32_224": (8, 224, {}),
    "resmlp_12_224": (4, 224, {}),
    "gmlp_ti16_224": (4, 224, {}),
    "poolformer_s12": (4, 224, {}),
    "poolformerv2_s12": (4, 128, {}),
    "caformer_s18": (2, 128, {}),
    "sequencer2d_s": (2, 224, {}),
}
"""Neither, or other mixers of tokens."""


def cases() -> Iterator[Case]:
    """All of them."""
    declare_operators()
    import timm

    for name, (count, side, arguments) in {**CONVOLUTIONAL, **ATTENTIVE, **MIXERS}.items():
        build = partial(timm.create_model, name, pretrained=False, **{"num_classes": CLASSES, **arguments})
        yield Case(name, "timm", build, case.pictures(count, side))
