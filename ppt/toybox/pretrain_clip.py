"""Pretrains the tiny CLIP on pictures and their captions, without boxes or masks.

There are two main losses. CLIP's own loss contrasts pictures with captions through the class token.
A second one, similar to FILIP's, contrasts pictures with single noun phrases through the patches
that match them best; without it the patch tokens do not localise.

The first iterations (PIECE_SHARE of them) train on quarters of mosaics, which show one object each
and cost less than whole pictures. Classes and colours are learnt there. During these iterations an
auxiliary classifier reads the class and the colour off the embeddings, because the contrastive
losses alone give two untrained towers hardly any gradient for shapes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from ppt.toybox.backbones import GRID, SURGERY_DEPTH, TEMPLATES, build_clip
from ppt.toybox.expressions import Noun
from ppt.toybox.measure import measure_clip, normalise_pixels
from ppt.toybox.pool import ANY, CAPTIONS_PER_PICTURE, NONE, Pool, build_pool
from ppt.toybox.schedule import build_optimizer, build_schedule, save_weights
from ppt.toybox.shapes import CLASS_NAMES, COLOUR_NAMES
from ppt.toybox.surgery import encode_texts, patch_tokens
from ppt.toybox.world import IMAGE_SIZE

LEARNING_RATE = 1.5e-3
POOL_SIZE = 9_000
BATCH_SIZE = 48
PIECE_BATCH_SIZE = 80
PIECE_SHARE = 0.4  # of the iterations
# A phrase's cosines with the patches are averaged with the weights of a softmax of this scale.
_PATCH_SHARPNESS = 12.0
_MAX_LOGIT_SCALE = 100.0
_NAME_SCALE = 20.0  # the factor of the cosines in the auxiliary classifier


@dataclass
class _Batch:
    """B pictures with captions and phrases.

    A piece is a quarter of a mosaic, which shows one object.

    Attributes:
        images: uint8 [B, H, W, 3].
        corner: the (row, column) in the grid of patches where the upper left patch lies.
        phrases: P texts.
        phrases_hold: bool [B, P], whether the phrase is true of the picture.
        captions: T texts. The list is empty for pieces, whose phrases serve as captions.
        captions_hold: bool [B, T], whether the caption is true of the picture.
        objects: [B, 2], the numbers of the object's class and colour; None for whole pictures.
    """

    images: np.ndarray
    corner: tuple[int, int]
    phrases: list[str]
    phrases_hold: np.ndarray
    captions: list[str]
    captions_hold: np.ndarray
    objects: np.ndarray | None = None


class _NameReader(nn.Module):
    """The auxiliary classifier that reads class and colour off an embedding during training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.randn(len(CLASS_NAMES) + len(COLOUR_NAMES), width))

    def forward(self, whole: Tensor, patches: Tensor, objects: Tensor) -> Tensor:
        """Return the cross-entropy of classes and colours, summed over two ways to read them.

        Args:
            whole: the class embeddings, [B, D].
            patches: the patch embeddings, [B, L, D].
            objects: the numbers of the objects' classes and colours, [B, 2].
        """
        words = F.normalize(self.words, dim=-1)
        loss = whole.new_zeros(())
        for cosines in (whole @ words.T, _best_patches(patches, words)):
            by_class, by_colour = (_NAME_SCALE * cosines).split(
                [len(CLASS_NAMES), len(COLOUR_NAMES)], dim=1
            )
            loss = loss + F.cross_entropy(by_class, objects[:, 0])
            loss = loss + F.cross_entropy(by_colour, objects[:, 1])
        return loss


def pretrain_clip(seed: int, steps: int, path: Path, command: str) -> None:
    """Train for `steps` iterations and save the weights to `path`.

    The file's metadata hold the command, the seed and the measured quality.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    pool = build_pool(seed, POOL_SIZE)
    print(f"clip: drew {len(pool)} pictures in {time.perf_counter() - start:.0f} s", flush=True)
    clip = build_clip()
    reader = _NameReader(clip.visual.output_dim)
    trained = nn.ModuleList([clip, reader])
    optimizer = build_optimizer(trained, LEARNING_RATE)
    schedule = build_schedule(optimizer, steps)
    for step in range(1, steps + 1):
        draw = _draw_pieces if step <= PIECE_SHARE * steps else _draw_pictures
        losses = _losses(clip, reader, draw(pool, rng), rng)
        optimizer.zero_grad()
        sum(losses).backward()
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            seconds = time.perf_counter() - start
            values = " ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"clip: step {step}/{steps} losses {values} {seconds:.0f} s", flush=True)
        if step % 400 == 0 or step == steps:
            clip.eval()
            quality = measure_clip(clip)
            clip.train()
            seconds = round(time.perf_counter() - start)
            print(f"clip: step {step} {quality}", flush=True)
            save_weights(
                clip,
                path,
                {"command": command, "seed": seed, "steps": step, "seconds": seconds, **quality},
            )


def _draw_pieces(pool: Pool, rng: np.random.Generator) -> _Batch:
    """Draw pieces, which are quarters of mosaics, with one random place in the grid for all."""
    mosaics = np.flatnonzero(pool.is_mosaic)
    rows, quarters = rng.choice(mosaics, PIECE_BATCH_SIZE), rng.integers(4, size=PIECE_BATCH_SIZE)
    half = IMAGE_SIZE // 2
    images = np.stack(
        [
            pool.images[row, half * (q // 2) :, half * (q % 2) :][:half, :half]
            for row, q in zip(rows, quarters, strict=True)
        ]
    )
    top, left = rng.integers(GRID // 2 + 1, size=2)
    objects = pool.objects[rows, quarters]
    phrases, nouns = _draw_phrases(objects[:, None], bool(rng.random() < 0.5), rng)
    holds = nouns_hold(objects[:, None], nouns)
    return _Batch(images, (int(top), int(left)), phrases, holds, [], holds, objects)


def _draw_pictures(pool: Pool, rng: np.random.Generator) -> _Batch:
    """Draw whole pictures of all kinds."""
    rows = rng.integers(len(pool), size=BATCH_SIZE)
    # Either every text of a batch names a colour or none does. Without colours the pictures can be
    # told apart by the shapes only.
    with_colour = bool(rng.random() < 0.5)
    columns = 2 * rng.integers(CAPTIONS_PER_PICTURE // 2, size=BATCH_SIZE) + with_colour
    # A caption may also be true of other pictures of the batch. For a placed caption this is not
    # known, so it counts as false of all pictures but its own, which is right for most of them.
    holds = nouns_hold(pool.objects[rows], pool.nouns[rows, columns])
    holds = holds & ~pool.placed[rows, columns] | np.eye(BATCH_SIZE, dtype=bool)
    phrases, nouns = _draw_phrases(pool.objects[rows], with_colour, rng)
    return _Batch(
        images=pool.images[rows],
        corner=(0, 0),
        phrases=phrases,
        phrases_hold=nouns_hold(pool.objects[rows], nouns),
        captions=[pool.texts[row][column] for row, column in zip(rows, columns, strict=True)],
        captions_hold=holds,
    )


def _draw_phrases(
    objects: np.ndarray, with_colour: bool, rng: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Draw a phrase, such as "a red car" or "a car", about one object of each picture.

    Returns:
        The B phrases, and their nouns [B, 1, 2] as numbers of class and colour, which may be ANY.
    """
    phrases, nouns = [], np.full((len(objects), 1, 2), NONE)
    for row, things in enumerate(objects):
        class_number, colour_number = rng.choice(things[things[:, 0] != NONE])
        with_class = not with_colour or bool(rng.random() < 0.8)
        nouns[row, 0] = (
            class_number if with_class else ANY,
            colour_number if with_colour else ANY,
        )
        noun = Noun(
            CLASS_NAMES[class_number] if with_class else None,
            COLOUR_NAMES[colour_number] if with_colour else None,
        )
        phrases.append(str(rng.choice((*TEMPLATES, "{}"))).format(noun.text))
    return phrases, nouns


def nouns_hold(objects: np.ndarray, nouns: np.ndarray) -> np.ndarray:
    """Return bool [B, T], whether every noun of a text is true of some object of a picture.

    Args:
        objects: the numbers of the objects' classes and colours, [B, O, 2], padded with NONE.
        nouns: the same for the nouns, [T, W, 2], which may be ANY; padded with NONE.
    """
    wanted, there = nouns[None, :, :, None], objects[:, None, None]
    matches = ((wanted == there) | (wanted == ANY)).all(-1).any(-1)
    return (matches | (nouns[..., 0] == NONE)).all(-1)


def _losses(
    clip: CLIP, reader: _NameReader, batch: _Batch, rng: np.random.Generator
) -> tuple[Tensor, ...]:
    """Compute the terms of the loss, which are added without further weights.

    Returns:
        The caption loss, the phrase loss over CLIP Surgery's and the plain patch tokens, and a loss
        that pulls the empty phrase's embedding to the mean of all texts, because CLIP Surgery
        subtracts the empty phrase as the part that all texts share. Pieces also have the loss of
        the auxiliary classifier.
    """
    empty = str(rng.choice(TEMPLATES)).format("")
    texts = encode_texts(clip, [*batch.phrases, *batch.captions, empty])
    phrases = texts[: len(batch.phrases)]
    captions = texts[len(batch.phrases) : -1] if batch.captions else phrases
    whole, patches, surgery = patch_tokens(
        clip.visual, normalise_pixels(batch.images), SURGERY_DEPTH, batch.corner
    )
    scale = clip.logit_scale.exp().clamp(max=_MAX_LOGIT_SCALE)
    caption_loss = _contrast(scale * whole @ captions.T, batch.captions_hold)
    surgery_loss, plain_loss = (
        _contrast(scale * _best_patches(tokens, phrases), batch.phrases_hold)
        for tokens in (surgery, patches)
    )
    shared = F.normalize(texts[:-1].detach().mean(0), dim=0)
    losses = (caption_loss, surgery_loss + 0.5 * plain_loss, 0.5 * (1 - texts[-1] @ shared))
    if batch.objects is None:
        return losses
    return *losses, reader(whole, surgery, torch.from_numpy(batch.objects))


def _contrast(logits: Tensor, holds: np.ndarray) -> Tensor:
    """Return CLIP's contrastive loss for texts that may be true of several pictures.

    Each true pair competes with the false pairs of its row and with those of its column.

    Args:
        logits: the similarities of pictures and texts, [B, T].
        holds: bool [B, T], whether the text is true of the picture.
    """
    true = torch.from_numpy(holds)
    false = logits.masked_fill(true, -1e4)
    by_row = F.softplus(false.logsumexp(1, keepdim=True) - logits)
    by_column = F.softplus(false.logsumexp(0, keepdim=True) - logits)
    return (by_row + by_column)[true].mean() / 2


def _best_patches(patches: Tensor, texts: Tensor) -> Tensor:
    """Return each text's cosine with its best patches, as a softmax-weighted mean over all patches.

    Args:
        patches: L2-normalised patch tokens, [B, L, D].
        texts: L2-normalised text embeddings, [T, D].

    Returns:
        The cosines, [B, T]. The weights have no gradient.
    """
    cosines = torch.einsum("bld,td->btl", patches, texts)
    weights = (cosines.detach() * _PATCH_SHARPNESS).softmax(-1)
    return (cosines * weights).sum(-1)
