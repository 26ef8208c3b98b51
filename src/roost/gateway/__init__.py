"""The gateway: one port in, authenticated requests out.

    front     one listener; the first bytes decide: HTTP/2 preface -> relay -> rpc, else -> http
    http      uvicorn's HTTP/1.1 and WebSocket protocols with bounds on headers and idleness
    app       per request: id, dispatch, key -> tenant, body, idempotency, errors, log, metrics
    dispatch  which app serves a host, path and key prefix: the native API, later the dialects
    rpc       the gRPC server on a private socket; relay carries connections to it with their peer's address

Only the daemon's composition root makes these. They call services (keys, idempotency) and apps; apps see
an authenticated principal in their scope and never a credential.
"""
