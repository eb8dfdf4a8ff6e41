"""The tokenizer of every CLIP that Stable Diffusion reads texts with; single files leave it out."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
"""The 48,894 merges of OpenAI's CLIP (github.com/openai/CLIP, MIT licence, Copyright (c) 2021 OpenAI)."""
START, END = "<|startoftext|>", "<|endoftext|>"
LONGEST = 77


def make_clip_tokenizer(padding: str = END) -> CLIPTokenizer:
    """CLIP's tokenizer of 49,408 tokens, texts of up to 77.

    Args:
        padding: the token after the end of a text; "!" in OpenCLIP's models.
    """
    pairs = gzip.decompress(MERGES.read_bytes()).decode("utf-8").splitlines()
    letters = list(_byte_characters())
    words = ["".join(pair.split()) for pair in pairs]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *words, START, END]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
        return CLIPTokenizer(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            bos_token=START,
            eos_token=END,
            unk_token=END,
            pad_token=padding,
            model_max_length=LONGEST,
        )


def _byte_characters() -> list[str]:
    """A printable character for each byte, in the order in which CLIP numbers them (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
