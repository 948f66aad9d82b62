"""Nodes of a Ray cluster on loopback, as a process of their own: `python raylets.py CPUS CPUS CPUS`, the head first.

Says where they are as a line of JSON. Then takes a line and answers each with one of JSON: `kill NUMBER` ends a node as a
power cut does, `add CPUS` starts one, `held` lists the placement groups that anybody has. Ends with its input.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table


def raylet(node: Any) -> int:
    """Return the process that is a node's parent of everything else; 0 once it is dead."""
    rows = node.all_processes.get("raylet")
    return int(rows[0].process.pid) if rows else 0


def held() -> list[str]:
    """Return the states of placement groups that are not given back."""
    states = [str(row["state"]) for row in placement_group_table().values()]
    return [state for state in states if state != "REMOVED"]


def main() -> None:
    # Ray prints what it has to say of a node that died.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    common = {
        "node_ip_address": "127.0.0.1",
        "object_store_memory": 80 * 2**20,
        "include_log_monitor": False,
    }
    with socket.create_server(("127.0.0.1", 0)) as probe:
        client_port = probe.getsockname()[1]
    head, *others = (int(item) for item in sys.argv[1:])
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            **common,
            "num_cpus": head,
            "include_dashboard": False,
            "no_monitor": True,
            "ray_client_server_port": client_port,
        },
    )
    nodes = [cluster.head_node, *(cluster.add_node(wait=False, num_cpus=cpus, **common) for cpus in others)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
    where = {"address": cluster.address, "client_port": client_port, "raylets": [raylet(node) for node in nodes]}
    print(json.dumps(where), file=answers)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "kill":
            cluster.remove_node(nodes[int(numbers[0])], allow_graceful=False)
        elif word == "add":
            nodes.append(cluster.add_node(num_cpus=int(numbers[0]), **common))
        answer = held() if word == "held" else [raylet(node) for node in nodes]
        print(json.dumps(answer), file=answers)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
