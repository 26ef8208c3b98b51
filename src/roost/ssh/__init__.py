"""SSH into machines, answered by the daemon: no machine runs an SSH server or has a port for one.

```
ssh, scp, sftp, rsync --> server     accepts, counts, bounds the time until somebody is known
                          connection the asyncssh connection, bounded; who may come in, and to which machine
                          session    one channel of it: a shell, a command, SFTP
                             shell    -> Terminals        sftp/  -> Files
                             command  -> Executions       forward -> Doors (the machine's own loopback, nothing else)
```

asyncssh speaks the protocol; everything behind a channel is a call of the services, as the API's are, with the same
limits and the same words for what goes wrong. Nothing here touches a file of this host but the host key: the SFTP server
is our own, since asyncssh's serves the host's files wherever a method was forgotten.

The user name says which machine: its id, key or name, and after a "+" the user inside. Made by the composition root.
"""
