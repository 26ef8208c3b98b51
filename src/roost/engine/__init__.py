"""The engine: keeps machines in the state they should be in, whatever fails meanwhile.

    services -> Engine -> Desk (one queue a machine) -> Journal (do/undo steps) -> driver, network, storage, agent
                             |                              |
                          lifecycle (decides, no I/O)     store (row before step)

``lifecycle`` says which states follow which. ``flows`` has create, wake, sleep, destroy and reap as lists of
steps; ``journal`` runs them and, after a crash, finishes or undoes them. ``desk`` keeps operations on one machine
in line and lets a delete interrupt a create. ``roster`` is what runs now, in memory, for the calls that cannot
wait. ``recovery`` is the daemon's start: adopt what lives, settle what does not, sweep debris.
"""
