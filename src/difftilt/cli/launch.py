"""Under ``torchrun`` one command is several processes: the first does all that is seen, the others only train along."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed

from difftilt.cli.job import load_job
from difftilt.cli.settings import Plan
from difftilt.tracking.run import RunFolder
from difftilt.training.finetune import finetune

PATIENCE = timedelta(days=7)
"""How long a process waits for another, which may be waiting for a slow reward; torchrun ends all if one fails."""


@contextmanager
def joined() -> Generator[None]:
    """Joins the processes that torchrun started, on one GPU each where there are any; alone, nothing."""
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def follow(plan: Plan) -> None:
    """Train along, as any process but the first: nothing is asked, written or printed."""
    job = load_job(plan)
    folder = None if plan.place.resume is None else RunFolder.existing(plan.place.resume)
    finetune(job.policy, job.reward, job.plan.method, loop=job.plan.loop, folder=folder, resume=folder is not None)
