"""A small random CLIP model with a tokenizer that knows letters."""

import json

import torch


def make_clip(folder):
    """A small random CLIP model in a folder, with a tokenizer that knows letters."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    signs = [*"abcdefghijklmnopqrstuvwxyz", *[f"{each}</w>" for each in "abcdefghijklmnopqrstuvwxyz"]]
    words = [*signs, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53}
    vision = sizes | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    resize = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    CLIPProcessor(CLIPImageProcessor(**resize), tokenizer).save_pretrained(folder)
    return folder
