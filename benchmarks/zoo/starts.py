"""Starts that look odd on purpose, and train: zeros, tiny gates, identities, biases far from zero, frozen layers.

A checker that counts zeros, or compares scales, cries wolf here. Each network is small and is drawn as the paper or
the library that it names draws it. `python -m benchmarks.zoo --origin start --train 200 NAME` shows that one learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.zoo import case, starts_dense, starts_gated, starts_residual
from benchmarks.zoo.case import Case
from torch.nn import functional

mse = functional.mse_loss


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _residual()
    yield from _dense()
    yield from _gated()


def _residual() -> Iterator[Case]:
    of, pictures = starts_residual, case.pictures(32, 32)
    yield Case("resnet-zero-gamma", "start", of.zero_gamma, pictures)
    yield Case("resnet-skipinit", "start", partial(of.Unnormalized, start="skipinit"), pictures)
    yield Case("resnet-fixup", "start", partial(of.Unnormalized, start="fixup"), pictures)
    yield Case("convnet-layerscale-1e-6", "start", of.LayerScaled, pictures)
    yield Case("vit-zero-head", "start", of.vit_zero_head, pictures)
    yield Case("rezero-transformer", "start", of.ReZero, case.next_token(), case.token_loss)
    yield Case("gpt-lora", "start", of.lora, case.next_token(), case.token_loss)
    yield Case("gpt-mup", "start", of.MuP, case.next_token(), case.token_loss)
    yield Case("gpt-unit-embedding", "start", of.unit_embedding, case.next_token(), case.token_loss)
    yield Case("dit-adaln-zero", "start", of.DiT, of.noised, mse)
    yield Case("controlnet-zero-conv", "start", of.ControlNet, case.itself(8, 32), mse)
    yield Case("resnet-frozen-backbone", "start", of.frozen_backbone, pictures)
    yield Case("glow-zero-coupling", "start", of.Flow, case.measurements(), of.likelihood)


def _dense() -> Iterator[Case]:
    of, grey, numbers = starts_dense, case.pictures(64, 28, 1), case.measurements()
    yield Case("logistic-from-zero", "start", of.logistic, grey)
    yield Case("linear-regression-from-zero", "start", of.linear, numbers, mse)
    yield Case("first-layer-zero", "start", of.first_zero, numbers, mse)
    yield Case("mlp-default-2", "start", partial(of.default, 784, 128, 10), grey)
    yield Case("mlp-default-3", "start", partial(of.default, 784, 128, 64, 10), grey)
    yield Case("lenet-default", "start", of.lenet, grey)
    yield Case("mlp-positive-bias", "start", of.positive_bias, grey)
    yield Case("mlp-orthogonal-tanh", "start", partial(of.orthogonal, "tanh", 12), grey)
    yield Case("mlp-orthogonal-relu", "start", partial(of.orthogonal, "relu", 8), grey)
    yield Case("mlp-identity", "start", of.identity, grey)
    yield Case("deep-linear-identity", "start", of.linear_identity, numbers, mse)
    yield Case("mlp-glorot-tanh", "start", of.glorot_tanh, grey)
    yield Case("mlp-selu", "start", of.selu, grey)
    yield Case("siren", "start", of.Siren, of.coordinates, mse)
    yield Case("mlp-mup", "start", of.mup, grey)
    yield Case("mlp-weight-norm", "start", of.weight_normed, grey)
    yield Case("ppo-actor-critic", "start", of.ActorCritic, numbers, of.ppo_like)
    yield Case("dqn-atari", "start", of.dqn, case.pictures(16, 84, 4))
    yield Case("deep-and-cross", "start", of.CrossNetwork, numbers, mse)


def _gated() -> Iterator[Case]:
    of = starts_gated
    grey, text = case.pictures(64, 28, 1), case.text_classes()
    yield Case("highway-negative-gates", "start", of.Highway, grey)
    yield Case("sparse-sigmoid-gates", "start", of.SparselyGated, grey)
    yield Case("mixture-zero-router", "start", of.Mixture, grey)
    yield Case("detector-prior-bias", "start", of.Detector, of.rare_objects, of.focal)
    yield Case("irnn-identity", "start", of.IRNN, text)
    yield Case("lstm-forget-bias", "start", of.forgetful, text)
    yield Case("gru-orthogonal", "start", of.orthogonal_gru, text)
    yield Case("wavenet-gates", "start", of.WaveNet, case.next_token(8, 64), case.token_loss)
    yield Case("skipgram-zero-output", "start", of.SkipGram, of.neighbours, of.sampled)
    yield Case("dcgan-generator", "start", of.Generator, of.noise_to_images, mse)
    yield Case("vae", "start", of.VAE, case.pictures(64, 28, 1), case.its_own)
    yield Case("spatial-transformer", "start", of.Localizer, grey)
    yield Case("gcn-glorot", "start", of.GCN, of.graph)
    yield Case("transformer-post-norm", "start", of.PostNorm, text)
    yield Case("s4d-diagonal", "start", of.Diagonal, text)
