"""The daemon's side of the agent channel.

    services -> Agents.get(machine) -> AgentClient -> gRPC over what the driver offers -> the agent

``channel`` makes gRPC channels and waits for an agent to come up; ``client`` is the contract as methods;
``failures`` turns what gRPC and the agent say into ``roost.errors``; ``dialler`` offers a unix socket for
byte streams that grpcio cannot dial; ``v1`` is generated from the contract.

Everything an agent says is the word of a stranger: sizes are capped, offsets checked, text cleaned.
"""

import os

# grpcio's fork handlers serve programs that fork and go on with gRPC in the child; we only start others.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
