"""Two processes in one gloo group that run functions of the tests; they import torch and DeepSpeed only once."""

import io
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Work = Callable[..., Any]  # (rank, *arguments) → what rank 0 returns


class TwoRanks:
    """Runs a module-level function on both ranks at once, and returns rank 0's result.

    Args:
        folder: an empty one, where the ranks meet.
    """

    def __init__(self, folder: Path) -> None:
        context = mp.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        for rank in (0, 1):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(folder), there), daemon=True)
            process.start()
            there.close()  # so that a rank that dies ends `wait`
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, work: Work, *arguments: Any) -> Any:
        """Run `work(rank, *arguments)` on both ranks.

        Raises:
            RuntimeError: it failed on a rank; the message is the rank's traceback.
            EOFError: a rank died.
        """
        try:
            for pipe in self.pipes:
                pipe.send((work, arguments))
            pending = [*self.pipes]
            while pending:
                for pipe in wait(pending):
                    if error := pipe.recv():  # type: ignore[union-attr]
                        raise RuntimeError(error)
                    pending.remove(pipe)  # type: ignore[arg-type]
            return torch.load(io.BytesIO(self.pipes[0].recv_bytes()), weights_only=False)
        except BaseException:  # a timeout too: the ranks may wait for each other for ever
            self.close()
            raise

    def close(self) -> None:
        """End both processes."""
        for process in self.processes:
            process.kill()
            process.join()


def import_deepspeed() -> None:
    """Import DeepSpeed without its shared-memory op: training does not use it, and compiling it takes minutes."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _serve(rank: int, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    while True:
        work, arguments = pipe.recv()
        try:
            result = work(rank, *arguments)
        except BaseException:
            pipe.send(traceback.format_exc())
            raise
        pipe.send(None)
        if rank == 0:
            buffer = io.BytesIO()
            torch.save(result, buffer)
            pipe.send_bytes(buffer.getvalue())
