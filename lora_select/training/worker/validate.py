"""Looking at the rows that are kept from training: their losses on all ranks, the best parameters so far, and the choice at the end."""

import json
import os
import statistics
from pathlib import Path
from typing import final

import torch
import torch.distributed

from lora_select.data.labels.tokens import TokenRow
from lora_select.records import Validation, write_text
from lora_select.training import job
from lora_select.training.validation import Point, as_json, best, is_due, is_over, mean_loss
from lora_select.training.worker import batches, checkpoints, rehearsal
from lora_select.training.worker.loss import training_loss
from lora_select.training.worker.process import Process

KEPT = 2
"""Best parameters that are kept: a resumed run may have to go behind the newest."""


@final
class Watch:
    """The looks of one training: every rank holds the same ones, rank 0 writes them down."""

    def __init__(self, rank: Process, rows: list[TokenRow], first: int) -> None:
        """Take up the looks of a killed run up to step `first`; what came after them is forgotten and done again."""
        self._rank = rank
        self._rows = rows
        self._labels = [sum(row.label_mask) for row in rows]
        self._folder = rank.folder / job.BEST
        self.points = [point for point in _read(rank.folder / job.VALIDATION) if point.step <= first] if rows else []
        if rank.is_first and rows:
            lines = "".join(json.dumps(as_json(point)) + "\n" for point in self.points)
            write_text(rank.folder / job.VALIDATION, lines)
            checkpoints.discard_after(self._folder, first)
        torch.distributed.barrier()

    def is_due(self, done: int) -> bool:
        """Whether the rows are looked at after `done` steps, and were not yet."""
        plan = self._rank.plan
        seen = any(point.step == done for point in self.points)
        return bool(self._rows) and not seen and is_due(done, plan.validation_every, plan.total_steps, plan.epochs)

    def look(self, done: int) -> float:
        """Measure, write down, keep the parameters if they are the best so far; nats per label token. Called by every rank."""
        rank = self._rank
        rank.beat("validation", done)
        point = Point(done, tuple(round(loss, 6) for loss in self._losses()))
        before = best(self._trained())
        self.points.append(point)
        if rank.is_first:
            with (rank.folder / job.VALIDATION).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(as_json(point)) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
        if done and (before is None or sum(point.losses) < sum(before.losses)):
            checkpoints.save_parameters(rank.engine, rank.plan.zero_stage, self._folder, done, KEPT)
        return mean_loss(point, self._labels)

    def is_over(self) -> bool:
        """Whether patience is at its end; the same answer on every rank."""
        return is_over(self.points, self._rank.plan.patience, self._rank.plan.validation_every)

    def choose(self, last: int) -> Validation | None:
        """Put the parameters of the best look into the model and say so; None where nothing was looked at. Called by every rank.

        The look at step 0 is the base model's: it can be the best one, but an adapter is of a later step.
        """
        there = set(checkpoints.found(self._folder)) | {last}
        point = best([point for point in self._trained() if point.step in there])
        if point is None:
            return None
        if point.step != last:
            checkpoints.restore_parameters(self._rank.engine, self._rank.plan.zero_stage, self._folder, point.step)
        a_label = sum(self._labels) / len(self._labels)
        return Validation(
            rows=len(self._rows),
            steps=tuple(one.step for one in self.points),
            losses=tuple(round(mean_loss(one, self._labels), 6) for one in self.points),
            standard_error=round(statistics.stdev(point.losses) / len(point.losses) ** 0.5 / a_label, 6),
            chosen_step=point.step,
            stopped_early=last < self._rank.plan.total_steps,
        )

    def _trained(self) -> list[Point]:
        return [point for point in self.points if point.step]

    def _losses(self) -> list[float]:
        """Summed loss of each row, a row at a time on the rank whose turn it is; all ranks make as many passes (ZeRO-3 asks for that)."""
        rank, engine = self._rank, self._rank.engine
        found = torch.zeros(len(self._rows), dtype=torch.float64, device=rank.device)
        passes = -(-len(self._rows) // rank.world)
        engine.eval()
        with torch.no_grad():
            for turn in range(passes):
                place = turn * rank.world + rank.rank
                row = self._rows[place] if place < len(self._rows) else batches.masked(self._rows[0])
                loss = training_loss(engine, rehearsal.batch_of([row], rank.plan, rank.pad_id, rank.device))
                if place < len(self._rows):
                    found[place] = loss.double()
        engine.train()
        torch.distributed.all_reduce(found)
        return found.tolist()


def _read(path: Path) -> list[Point]:
    """The whole lines of a file of looks."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a kill tore the last line
        found.append(Point(int(values["step"]), tuple(values["losses"])))
    return found
