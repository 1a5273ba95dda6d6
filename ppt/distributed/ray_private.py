"""All that is used of Ray's private modules, and why no public function serves.

- `get_num_cpus` is what `ray.init` calls for the number of CPUs of this machine, within a
  container's limit. `ppt doctor` needs the number without a cluster, but `ray.cluster_resources`
  needs a cluster.
- `ControllerCallback` is called in the process of Ray Train's controller. It tells which actor
  the controller is, and only that actor can end a training at once. `TorchTrainer.fit` keeps it to
  itself, and what it offers instead is a handler of Ctrl-C that exits the process.
- `ExecutionCallback` is called after each round of Ray Data's scheduling loop. In Ray 2.60 this
  loop runs without a rest in the training worker's process while a finished block waits to be
  taken, and no public setting of Ray Data slows it down (see `stream.Pause`).
- `RUNTIME_ENV_LOGGER` is the name of the logger that tells about the upload of a job's folder. No
  public setting silences it.
- `HEAD` is a resource that only the head node of a Ray cluster has. There is no public way to
  place an actor on the head node.
- `canonicalize_bootstrap_address` tells which address `ray.init` would join, and
  `init_grpc_channel` opens a channel to it as Ray does, with its certificates and its token. With
  them it can be asked whether a cluster answers; `ray.init` waits for minutes and then ends the
  process.
- `Node` holds the processes that `ray.init` has started. When they do not come up in time, Ray
  leaves them running until this process ends, and `ray.shutdown` does not know them.
"""

from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray._private.utils import get_num_cpus
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train.v2._internal.execution.callback import ControllerCallback

HEAD = "node:__internal_head__"
RUNTIME_ENV_LOGGER = "ray._private.runtime_env"

__all__ = [
    "HEAD",
    "RUNTIME_ENV_LOGGER",
    "ControllerCallback",
    "ExecutionCallback",
    "Node",
    "canonicalize_bootstrap_address",
    "get_num_cpus",
    "init_grpc_channel",
]
