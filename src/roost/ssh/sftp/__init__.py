"""SFTP, version 3, over a machine's files (draft-ietf-secsh-filexfer-02, and OpenSSH's extensions).

    wire     packets: bytes to fields and back; sans-I/O
    server   requests, one after the other, to calls of ``services.files``
    handles  an open file: reads that run on in one stream, writes gathered into one
    listing  an open directory, page after page

Our own, since asyncssh's server acts on this host's files in every method that is not overridden.
"""
