"""Previews: browsers' way to the servers inside machines, at the level of the protocol.

```
 the one port -> Visitor (a browser's connection) <--> Upstream (one to a machine's port) -> server in the machine
                    |  head.py, body.py: strict, sans-I/O       |  reach.py: a socket into the machine's
                    |  access.py: who may; cookies.py           |  network, or through its agent
                    '-- plane.py: routes, pool, bounds, ends ---'
```

Each request is routed by itself: a proxy in front sends many hosts' requests down one connection, the API's among
them, which go back to the front listener. Nothing is forwarded that was not understood: heads are verified and put
together anew, bodies are counted. No task runs for a request whose machine runs and has a connection free.

Called by the front listener; calls ``services`` (Ports, Machines, Keys) and nothing below.
"""
