"""Train the video pipeline: python -m deployments.demo.train_video STATE [--minutes N] [--resume] [--out FOLDER]

Flow matching that predicts clean latents x: z = (1 - s) x + s noise on masked tokens, s = 0 elsewhere, with a time per
token; loss = mean over masked tokens of |x - x'|^2 / max(s, FLOOR)^2, s drawn by `levels`. One batch has one kind of
mask: all tokens (60 %), all but the first frame (15 %), a segment of time or the rest from some frame on (12 %), a box
in space and time (13 %). So one model makes videos from text, from a first frame, and mends parts of videos.
STATE is a folder: training goes on from it, every two minutes it is written.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import nn

from deployments.demo import clips
from deployments.demo.optimiser import orthogonal, schedule
from deployments.demo.video_words import TEXT_TOKENS, text_encoder, tokenizer
from deployments.video.codec import BlockCodec, blocks, fitted
from deployments.video.positioned import PositionedWan

SEED = 20_261_121
CHANNELS, WIDTH, TEXT_WIDTH = 48, 128, 64
LEARNING_RATE, MOMENTUM, DECAY, CLIP = 5e-3, 0.95, 0.01, 1.0
SHIFT = 3.0  # towards noise, where the place and the way of a shape are decided; the scheduler's, too
FLOOR = 0.7  # the least noise level that the loss divides by
FREEDOM = {True: 0.2, False: 1.0}  # of clips of which all is made anew, and of those of which a part is given
UNPROMPTED = 0.1  # share of prompts that are empty, for guidance
BATCH_TOKENS = 48 * 48
MASKS = {"all": 0.60, "first": 0.15, "time": 0.12, "box": 0.13}
# width, height, frames: share of the batches
FORMATS = {
    (64, 64, 9): 0.56, (96, 64, 9): 0.10, (64, 96, 9): 0.10, (64, 64, 17): 0.12,
    (96, 64, 17): 0.04, (64, 96, 17): 0.04, (64, 64, 33): 0.04,
}  # fmt: skip
SAVE_EVERY_S = 120.0


@dataclass(slots=True, kw_only=True)
class Record:
    """What a checkpoint says of its training; `curve`: minutes, samples, mean loss since the line before."""

    seed: int = SEED
    parameters: int = 0
    steps: int = 0
    samples: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    curve: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Clips of one format, encoded: latents [N, C, F, H, W] in half precision, ids [N, TEXT_TOKENS], 0 is padding."""

    latents: torch.Tensor
    ids: torch.Tensor


class Model(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder(vocabulary, TEXT_WIDTH)
        self.transformer = PositionedWan(
            patch_size=(1, 2, 2),
            num_attention_heads=4,
            attention_head_dim=WIDTH // 4,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=TEXT_WIDTH,
            freq_dim=64,
            ffn_dim=3 * WIDTH,
            num_layers=4,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=64,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)

    def forward(self, latents: torch.Tensor, timestep: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        known = ids.ne(0)
        text = self.text_encoder(ids, known).last_hidden_state * known.unsqueeze(-1)  # as the pipeline pads
        predicted: torch.Tensor = self.transformer.clean(latents, timestep, text)
        return predicted


class Optimiser:
    """Muon for matrices inside the layers, AdamW for the rest."""

    def __init__(self, model: nn.Module) -> None:
        self.live = dict(model.named_parameters())
        inner = {name for name, p in self.live.items() if p.ndim == 2 and ("blocks." in name or "block." in name)}
        inner -= {name for name in inner if "embed" in name or "relative" in name}
        self.momenta = {name: torch.zeros_like(self.live[name]) for name in sorted(inner)}
        rest = [p for name, p in self.live.items() if name not in inner]
        self.adam = torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self.steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        nn.utils.clip_grad_norm_(self.live.values(), CLIP)
        self.adam.param_groups[0]["lr"] = learning_rate / 2
        self.adam.step()
        for same in _by_shape(self.momenta):
            gradients = torch.stack([self.live[name].grad for name in same])  # type: ignore[misc]
            momenta = torch.stack([self.momenta[name] for name in same]).mul_(MOMENTUM).add_(gradients)
            updates = orthogonal(momenta * MOMENTUM + gradients) * (0.2 * max(momenta.shape[-2:]) ** 0.5)
            for name, momentum, update in zip(same, momenta, updates, strict=True):
                self.momenta[name].copy_(momentum)
                self.live[name].mul_(1 - learning_rate * DECAY).sub_(update, alpha=learning_rate)
        for p in self.live.values():
            p.grad = None
        self.steps += 1

    def state(self) -> dict[str, Any]:
        live = {name: p.detach() for name, p in self.live.items()}
        return {"live": live, "momenta": self.momenta, "adam": self.adam.state_dict(), "steps": self.steps}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        for mine, stored in ((self.live, "live"), (self.momenta, "momenta")):
            for name, tensor in mine.items():
                tensor.copy_(state[stored][name])
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]


def _by_shape(tensors: dict[str, torch.Tensor]) -> list[list[str]]:
    groups: dict[torch.Size, list[str]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(tensor.shape, []).append(name)
    return list(groups.values())


def filmed(
    count: int, layout: tuple[int, int, int], freedom: float, rng: np.random.Generator
) -> tuple[torch.Tensor, list[str]]:
    """Videos [N, 3, F, H, W] in -1..1 of the kinds trained on, and their prompts."""
    width, height, frames = layout
    kinds = clips.kinds()[0]
    chosen = [kinds[index] for index in rng.integers(len(kinds), size=count)]
    paths = [clips.drawn(kind, width, height, rng, freedom) for kind in chosen]
    pictures = [clips.rendered(kind, path, width, height, frames) for kind, path in zip(chosen, paths, strict=True)]
    video = torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float().div_(127.5).sub_(1)
    return video, [clips.phrased(kind, rng) for kind in chosen]


def codec(count: int, rng: np.random.Generator) -> BlockCodec:
    """Fitted to so many clips."""
    video, _ = filmed(count, (64, 64, 9), 1.0, rng)
    split = blocks(video).flatten(0, -2)
    return fitted(split, CHANNELS)


def pool(
    vae: BlockCodec, count: int, layout: tuple[int, int, int], rng: np.random.Generator, freedom: float = 1.0
) -> Pool:
    words, latents, prompts = tokenizer(), [], []
    for begun in range(0, count, 100):
        video, said = filmed(min(100, count - begun), layout, freedom, rng)
        latents.append((vae.encode(video).latent_dist.mode() / scale(vae)).half())
        prompts += said
    ids = words(prompts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt").input_ids
    return Pool(latents=torch.cat(latents), ids=ids)


def scale(vae: BlockCodec) -> torch.Tensor:
    """The divisors of latents, [1, C, 1, 1, 1]."""
    config: Any = vae.config
    return torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)


def masks(kind: str, count: int, shape: tuple[int, int, int], rng: np.random.Generator) -> torch.Tensor:
    """[count, F, h, w] over tokens: 1 is made anew, 0 is given."""
    frames, height, width = shape
    mask = torch.ones(count, *shape) if kind in ("all", "first") else torch.zeros(count, *shape)
    if kind == "first":
        mask[:, 0] = 0
    for one in mask if kind in ("time", "box") else ():
        begin = int(rng.integers(1 if kind == "time" else 0, frames))
        end = frames if rng.random() < 0.6 else int(rng.integers(begin + 1, frames + 1))
        if kind == "time":
            one[begin:end] = 1
        else:
            top, left = int(rng.integers(height - 1)), int(rng.integers(width - 1))
            down, across = (int(rng.integers(2, size + 1)) for size in (height, width))
            one[begin:end, top : top + down, left : left + across] = 1
    return mask


def levels(count: int, rng: np.random.Generator) -> torch.Tensor:
    """Noise levels between 0 and 1: of logistic-normal ones the shift that the scheduler makes of even ones."""
    even = torch.from_numpy(1 / (1 + np.exp(-rng.normal(0.2, 1.2, count)))).float()
    return SHIFT * even / (1 + (SHIFT - 1) * even)


def loss_of(model: Model, batch: Pool, kind: str, rng: np.random.Generator) -> torch.Tensor:
    clean = batch.latents.float()
    count, _, frames, height, width = clean.shape
    grid = (frames, height // 2, width // 2)
    sigma = levels(count, rng)
    mask = masks(kind, count, grid, rng)
    wide = mask.repeat_interleave(2, 2).repeat_interleave(2, 3).unsqueeze(1)
    level = sigma.view(-1, 1, 1, 1, 1) * wide
    noisy = clean + level * (torch.randn_like(clean) - clean)
    time = sigma * 1000 if kind == "all" else mask.flatten(1) * sigma.view(-1, 1) * 1000
    unprompted = torch.from_numpy(rng.random(count) < UNPROMPTED)
    ids = torch.where(unprompted.unsqueeze(1), unprompted_ids(batch.ids), batch.ids)
    error = (model(noisy, time, ids) - clean).square() * wide
    weight = sigma.clamp_min(FLOOR).square().reciprocal().view(-1, 1, 1, 1, 1)
    mean: torch.Tensor = (error * weight).sum() / (wide.sum() * clean.shape[1])
    return mean


def unprompted_ids(ids: torch.Tensor) -> torch.Tensor:
    """The ids of the empty prompt: the end mark, then padding."""
    empty = torch.zeros_like(ids)
    empty[:, 0] = 1
    return empty


class Trainer:
    """`clips` are encoded beforehand, the codec is fitted to `fitted_to`."""

    def __init__(self, state: Path, *, minutes: float, clips: int = 16_000, fitted_to: int = 600) -> None:
        self.state, self.budget_s, self.clips = state, minutes * 60, clips
        self.rng = np.random.default_rng(SEED)
        torch.manual_seed(SEED)
        self.vae = codec(fitted_to, self.rng)
        self.model = Model(len(tokenizer()))
        self.optimiser = Optimiser(self.model)
        self.record = Record(parameters=sum(p.numel() for p in self.model.parameters()))

    def resume(self) -> None:
        stored = torch.load(self.state / "state.pt", weights_only=True)
        self.vae.load_state_dict(stored["codec"])
        self.vae.register_to_config(latents_std=stored["latents_std"])
        self.optimiser.restore(stored["optimiser"])
        self.record = Record(**stored["record"])
        self.rng = np.random.default_rng([SEED, self.record.steps])
        torch.manual_seed(SEED + self.record.steps)

    def save(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        fresh = self.state / "state.new"
        config: Any = self.vae.config
        codec = {"codec": self.vae.state_dict(), "latents_std": config.latents_std}
        torch.save(codec | {"optimiser": self.optimiser.state(), "record": asdict(self.record)}, fresh)
        fresh.rename(self.state / "state.pt")

    def pools(self, anew: bool) -> list[Pool]:
        """Of each format at least 64 clips, of which all is made `anew` or a part is given."""
        part = MASKS["all"] if anew else 1 - MASKS["all"]
        counts = [max(64, int(self.clips * part * share)) for share in FORMATS.values()]
        layouts = zip(counts, FORMATS, strict=True)
        return [pool(self.vae, count, layout, self.rng, FREEDOM[anew]) for count, layout in layouts]

    def run(self) -> None:
        """Until the budget of wall time, all resumed parts of the run counted, is spent."""
        pools, shares = {anew: self.pools(anew) for anew in (True, False)}, list(FORMATS.values())
        print(f"{self.record.parameters} parameters", flush=True)
        saved_s = time.monotonic()
        wall_s, cpu_s = saved_s - self.record.wall_s, time.process_time() - self.record.cpu_s
        losses: list[float] = []
        while self.record.wall_s < self.budget_s:
            kind = str(self.rng.choice(list(MASKS), p=list(MASKS.values())))
            losses.append(self.step(pools[kind == "all"][self.rng.choice(len(shares), p=shares)], kind))
            now_s = time.monotonic()
            self.record.wall_s, self.record.cpu_s = now_s - wall_s, time.process_time() - cpu_s
            if self.record.steps % 100 == 0:
                self.note(losses)
                losses = []
            if now_s - saved_s > SAVE_EVERY_S:
                saved_s = now_s
                self.save()
        self.save()

    def step(self, chosen: Pool, kind: str) -> float:
        tokens = chosen.latents[0, 0].numel() // 4
        rows = torch.from_numpy(self.rng.integers(len(chosen.ids), size=max(8, BATCH_TOKENS // tokens)))
        batch = Pool(latents=chosen.latents[rows], ids=chosen.ids[rows])
        loss = loss_of(self.model, batch, kind, self.rng)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step(LEARNING_RATE * schedule(self.record.wall_s / self.budget_s))
        self.record.steps += 1
        self.record.samples += len(rows)
        return loss.item()

    def note(self, losses: list[float]) -> None:
        record = self.record
        minutes, loss = round(record.wall_s / 60, 1), round(float(np.mean(losses)), 4)
        record.curve.append((minutes, record.samples, loss))
        print(f"{minutes} min, {record.steps} steps, {record.samples} samples, loss {loss}", flush=True)


def pipeline(vae: BlockCodec, model: Model) -> Any:
    model.eval()
    return WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=model.text_encoder,
        transformer=model.transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        expand_timesteps=True,
    )


def write(trainer: Trainer, folder: Path) -> None:
    pipeline(trainer.vae, trainer.model).save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps(asdict(trainer.record)) + "\n", encoding="utf-8")
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("state", type=Path, help="folder of the run's state")
    parser.add_argument("--minutes", type=float, default=80.0, help="wall time of the run; 0 only writes --out")
    parser.add_argument("--clips", type=int, default=16_000, help="clips encoded beforehand")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, help="where to write the pipeline at the end")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    trainer = Trainer(given.state, minutes=given.minutes, clips=given.clips)
    if given.resume:
        trainer.resume()
    if given.minutes:
        trainer.run()
    if given.out:
        write(trainer, given.out)


if __name__ == "__main__":
    main()
