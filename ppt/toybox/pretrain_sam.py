"""Pretrains the tiny SAM on point prompts for objects and their parts, without class names."""

import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from ppt.toybox.backbones import build_sam
from ppt.toybox.measure import decode_masks, mask_iou, measure_sam, stack_prompts
from ppt.toybox.pool import Pool, build_pool
from ppt.toybox.prompts import (
    KIND_SHARES,
    KINDS,
    LITERAL_MAX_POINTS,
    LITERAL_NOISY_SHARE,
    MAX_POINTS,
    NOISY_SHARE,
    choose_literal_target,
    choose_target,
    literal_mask,
    sample_prompt,
)
from ppt.toybox.schedule import build_optimizer, build_schedule, save_weights

BATCH_SIZE = 8
PROMPTS_PER_PICTURE = 8
# Each cosine cycle's share of the iterations and its learning rate.
CYCLES = ((36 / 136, 1e-3), (30 / 136, 7e-4), (70 / 136, 7e-4))
LITERAL_CYCLE = 2  # the cycle in which the single mask begins to take points at their word
POOL_SIZE = 9_000


def pretrain_sam(seed: int, steps: int, path: Path, command: str) -> None:
    """Train for `steps` iterations and save the weights to `path`.

    The file's metadata hold the command, the seed and the measured quality.
    """
    torch.manual_seed(seed)
    start = time.perf_counter()
    pool = build_pool(seed, POOL_SIZE)
    print(f"sam: drew {len(pool)} pictures in {time.perf_counter() - start:.0f} s", flush=True)
    sam = build_sam()
    for number in range(len(CYCLES)):
        run_cycle(sam, pool, number, seed, steps, path, command, start)


def run_cycle(
    sam: Sam,
    pool: Pool,
    number: int,
    seed: int,
    steps: int,
    path: Path,
    command: str,
    start: float,
) -> None:
    """Train for one cycle of CYCLES; every cycle but the first loads the weights saved before.

    Args:
        sam: the model, trained in place.
        pool: the pictures.
        number: the index of the cycle.
        seed: the seed of the pretraining.
        steps: the iterations of all cycles together.
        path: where the weights are saved and loaded.
        command: the command line, recorded with the weights.
        start: the time.perf_counter() at which the pretraining began.
    """
    rng = np.random.default_rng(seed + number)
    if number:
        sam.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    done = round(sum(share for share, _ in CYCLES[:number]) * steps)
    end = round(sum(share for share, _ in CYCLES[: number + 1]) * steps)
    optimizer = build_optimizer(sam, CYCLES[number][1])
    schedule = build_schedule(optimizer, end - done)
    for step in range(done + 1, end + 1):
        loss = _loss(sam, pool, rng, literal=number >= LITERAL_CYCLE)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seconds = round(time.perf_counter() - start)
        if step % 50 == 0:
            print(f"sam: step {step}/{steps} loss {loss.item():.3f} {seconds} s", flush=True)
        if step % 500 == 0 or step == end:
            sam.eval()
            quality = measure_sam(sam)
            sam.train()
            print(f"sam: step {step} {quality}", flush=True)
            save_weights(
                sam,
                path,
                {"command": command, "seed": seed, "steps": step, "seconds": seconds, **quality},
            )


def _loss(sam: Sam, pool: Pool, rng: np.random.Generator, *, literal: bool) -> Tensor:
    """Return the sum of SAM's losses for the single mask, the three masks and the predicted IoU.

    The single mask learns what the points say if `literal`, else what the three masks learn.
    """
    rows = rng.integers(len(pool), size=BATCH_SIZE)
    images, part_ids = pool.images[rows], pool.part_ids[rows]
    if rng.random() < 0.5:
        images, part_ids = images[:, :, ::-1], part_ids[:, :, ::-1]
    points, labels, targets, said = _draw_prompts(part_ids, rng, literal)
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    embeddings = sam.image_encoder(sam.preprocess(pixels))
    embeddings = embeddings.repeat_interleave(PROMPTS_PER_PICTURE, 0)
    logits, predicted_iou = decode_masks(sam, embeddings, points, labels)

    wanted = targets[:, None].repeat(1, logits.shape[1], 1, 1)
    if literal:
        wanted[:, 0] = said
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none")
    probabilities = logits.sigmoid()
    shared = (probabilities * wanted).sum((2, 3))
    dice = 1 - (2 * shared + 1) / (probabilities.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    losses = 5 * cross_entropy.mean((2, 3)) + dice
    with torch.no_grad():
        real_iou = mask_iou(logits > 0, wanted)
    # SAM answers a prompt of several points with its single mask (token 0), and an ambiguous prompt
    # of one point with the best of three masks. A small loss on all three masks keeps the ones that
    # are not the best from being left untrained.
    ambiguous = (labels >= 0).sum(1) == 1
    weight = 1.0 if literal else 1 - 0.85 * ambiguous.float()
    single = (losses[:, 0] * weight).mean()
    # The three masks are never of the background, so that they forgive a point beside an object.
    objects = torch.from_numpy(part_ids > 0).repeat_interleave(PROMPTS_PER_PICTURE, 0)
    of_object = (targets & objects).flatten(1).any(1)
    three, error = losses[of_object, 1:], F.mse_loss(predicted_iou, real_iou, reduction="none")
    best_of_three = three.min(1).values.mean() + 0.03 * three.mean()
    error = torch.cat([error[:, 0], error[of_object, 1:].flatten()])
    return single + best_of_three + 0.5 * error.mean()


def _draw_prompts(part_ids: np.ndarray, rng: np.random.Generator, literal: bool) -> list[Tensor]:
    """Draw PROMPTS_PER_PICTURE prompts for each of B pictures, N together.

    If `literal`, their targets are those of `choose_literal_target`, and more are noisy.

    Returns:
        Points [N, P, 2] in pixels, labels [N, P], and as bool [N, S, S] the targets for which the
        prompts were drawn and the masks that their points ask for.
    """
    most = LITERAL_MAX_POINTS if literal else MAX_POINTS
    num_points = int(rng.integers(1, most + 1))  # the same for the batch, against padding
    prompts = []
    for ids in part_ids:
        for _ in range(PROMPTS_PER_PICTURE):
            target = (choose_literal_target if literal else choose_target)(ids, rng)
            kind = str(rng.choice(KINDS, p=KIND_SHARES))
            noisy = bool(rng.random() < (LITERAL_NOISY_SHARE if literal else NOISY_SHARE))
            xy, label = sample_prompt(target, ids, kind, num_points, noisy, rng)
            prompts.append((xy, label, target, literal_mask(xy, label, ids)))
    return stack_prompts(prompts)
