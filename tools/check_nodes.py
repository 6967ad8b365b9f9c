"""Take a node away in the middle of a run on a Ray cluster of three, add another, and compare with an undisturbed run.

    python -m tools.check_nodes --work /tmp/faults [--seed 0] [--json nodes.json]

The cluster is Ray's own for tests: three nodes of this machine, each a raylet of its own. The node that holds a worker
is killed without grace, the new one comes 20 seconds later; the same corpus and recipe as tools/check_faults.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tools.check_faults import STEPS, Campaign, Trainer

NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}


def node_of_a_worker(nodes: list[Any]) -> Any:
    """A node, not the head, whose raylet has a training worker among its children."""
    for node in nodes:
        raylet = next(iter(node.all_processes["raylet"])).process
        children = psutil.Process(raylet.pid).children(recursive=True)
        if any("RayTrainWorker" in " ".join(p.cmdline()[:1]) for p in children):
            return node
    sys.exit("no node but the head holds a training worker")


def main() -> int:
    """Run it and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from ray.cluster_utils import Cluster

    campaign = Campaign(args.work, args.seed)
    campaign.undisturbed(2)
    step = random.Random(args.seed).randrange(10, STEPS - 20)
    name = f"node-removed-2-at-{step}"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 150 * 2**20})
    nodes = [cluster.add_node(**NODE) for _ in range(2)]
    cluster.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = cluster.address
    trainer, began = Trainer(campaign.recipe, campaign.runs / name, 2), time.monotonic()
    try:
        trainer.wait_for(step)
        lost = node_of_a_worker(nodes)
        removed = time.monotonic()
        cluster.remove_node(lost, allow_graceful=False)
        print(f"removed a node at step {trainer.step()}", flush=True)
        time.sleep(20)
        cluster.add_node(**NODE)
        before = trainer.step()
        while trainer.step() >= before and trainer.process.poll() is None:  # the trace is cut back when it resumes
            time.sleep(0.1)
        again = time.monotonic()
        campaign.finish(trainer)
    finally:
        if trainer.process.poll() is None:
            trainer.process.send_signal(signal.SIGKILL)
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS")
    campaign.judge(name, 2, began)
    print(f"{again - removed:.0f} s from the loss of the node to the first step after it, 20 s of them without a node")
    if args.json:
        args.json.write_text(json.dumps(campaign.results, indent=1))
    return 0 if all(result["passed"] for result in campaign.results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
