"""What E2B's clients speak to inside a sandbox (there: a daemon on port 49983), answered from outside it.

```
process.Process, filesystem.Filesystem --> connect (frames, deadlines, codes) --> process, filesystem, watchers
/files, /files/compose ----------------> files (multipart, gzip, ranges) -----'        |
/health, /metrics, /envs --------------> status                             accounts (who, whose home)
                                                                                       |
                                                             Executions, Terminals, Files of the services
```

Which sandbox a request means, and whether it may, is ``Find``'s to say: ``access`` of the dialect. Nothing here is
resolved on the host, and nothing that a client or a machine sends is held without a bound.
"""
