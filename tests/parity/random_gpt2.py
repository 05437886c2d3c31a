"""GPT-2s of transformers that are not trained, but whose texts do not repeat themselves."""

import functools

import numpy as np

LENGTH, END = 64, 3
SIZES = {
    "tiny": {"vocab_size": 97, "n_positions": 90, "n_embd": 24, "n_layer": 2, "n_head": 3},
    "medium": {"vocab_size": 900, "n_positions": 128, "n_embd": 192, "n_layer": 6, "n_head": 6},
    "untied": {
        "vocab_size": 97,
        "n_positions": 90,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 40,
        "tie_word_embeddings": False,
    },
}


@functools.cache
def theirs(size):
    """Build a model whose every parameter counts, and whose logits are not flat."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(list(SIZES).index(size))
    model = GPT2LMHeadModel(GPT2Config(**SIZES[size], bos_token_id=END, eos_token_id=END)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                # Places as loud as tokens, so that texts do not repeat one.
                scale = {"wte": 2 / model.config.n_embd**0.5, "wpe": 1.0}
                scale = scale.get(name.split(".")[1], 2 / len(parameter) ** 0.5)
                parameter.normal_(0, scale)
    return model


def prompts(model, batch=3, length=12):
    return np.random.default_rng(1).integers(4, model.config.vocab_size, (batch, length), np.int32)


def logits_theirs(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()


def write_theirs(model, tokens, **options):
    import torch

    with torch.no_grad():
        tokens = torch.from_numpy(tokens.astype(np.int64))
        mask = torch.ones_like(tokens)
        return model.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=LENGTH,
            do_sample=False,
            pad_token_id=0,
            **options,
        ).numpy()[:, tokens.shape[1] :]


def filled(text):
    """Fill up to the length, as ours is."""
    return np.pad(text, ((0, 0), (0, LENGTH - text.shape[1])))
