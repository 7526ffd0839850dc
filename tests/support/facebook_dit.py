"""A small DiT in the layout of facebookresearch/DiT: its attribute names and call signatures, weights at random.

Written from the paper (Scalable Diffusion Models with Transformers, arXiv 2212.09748). B batch, N tokens, D width.
"""

import math

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class PatchEmbedder(nn.Module):
    def __init__(self, patch, channels, width):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, N, D)


class TimestepEmbedder(nn.Module):
    def __init__(self, width, frequencies=32):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        half = self.frequencies // 2
        speed = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
        angle = t[:, None].float() * speed
        wave = torch.cat([angle.cos(), angle.sin()], dim=1)
        return self.mlp(wave.to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class ``num_classes`` is "no label"."""

    def __init__(self, num_classes, width, dropout):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)
        self.num_classes, self.dropout = num_classes, dropout

    def forward(self, labels, train):
        if train:
            dropped = torch.rand(labels.shape, device=labels.device) < self.dropout
            labels = labels.masked_fill(dropped, self.num_classes)
        return self.embedding_table(labels)


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_BND):
        q, k, v = self.qkv(x_BND).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BND):
        return self.fc2(gelu(self.fc1(x_BND), approximate="tanh"))


class DiTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x_BND, c_BD):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c_BD)[:, None].chunk(6, dim=2)
        x_BND = x_BND + gate_a * self.attn(self.norm1(x_BND) * (1 + scale_a) + shift_a)
        return x_BND + gate_m * self.mlp(self.norm2(x_BND) * (1 + scale_m) + shift_m)


class FinalLayer(nn.Module):
    def __init__(self, width, patch, channels):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BND, c_BD):
        shift, scale = self.adaLN_modulation(c_BD)[:, None].chunk(2, dim=2)
        return self.linear(self.norm_final(x_BND) * (1 + scale) + shift)


class DiT(nn.Module):
    """forward(x, t, y): x (B, C, H, W), t (B,), y (B,) to (B, 2C, H, W), noise and sigma."""

    def __init__(self, input_size=8, patch_size=2, in_channels=4, hidden_size=16, depth=3, num_heads=2, num_classes=10):
        super().__init__()
        self.in_channels, self.out_channels, self.patch_size = in_channels, 2 * in_channels, patch_size
        tokens = (input_size // patch_size) ** 2
        self.x_embedder = PatchEmbedder(patch_size, in_channels, hidden_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size, 0.1)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList([DiTBlock(hidden_size, num_heads) for _ in range(depth)])
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)

    def forward(self, x, t, y):
        x_BND = self.x_embedder(x) + self.pos_embed
        c_BD = self.t_embedder(t) + self.y_embedder(y, self.training)
        for block in self.blocks:
            x_BND = block(x_BND, c_BD)
        return self.unpatchify(self.final_layer(x_BND, c_BD))

    def unpatchify(self, x_BNP):
        side, patch = math.isqrt(x_BNP.shape[1]), self.patch_size
        grid = x_BNP.unflatten(2, (patch, patch, self.out_channels)).unflatten(1, (side, side))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def forward_with_cfg(self, x, t, y, cfg_scale):
        """One call on [cond; uncond], whose inputs are the first half of x twice; both halves give the guided noise."""
        half = x[: len(x) // 2]
        output = self.forward(torch.cat([half, half]), t, y)
        noise, sigma = output.split(self.in_channels, dim=1)
        cond, uncond = noise.chunk(2)
        guided = uncond + cfg_scale * (cond - uncond)
        return torch.cat([torch.cat([guided, guided]), sigma], dim=1)
