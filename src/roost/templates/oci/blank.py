"""What layers are unpacked onto: an empty root with our agent in it, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from roost.drivers.tree import AGENT_MODE, AgentBinary
from roost.host import run
from roost.storage.images import DEFAULT_GIB, Images
from roost.storage.interface import Image
from roost.storage.pool import Pool

_KIND = "blank"
_FORM = 1  # counted up when it is made otherwise
_EPOCH = "1735689600"
_SEED = uuid.UUID("0f6a3a2e-6f0f-5a2b-8d7e-626c616e6b30")
# Where every machine has something mounted, and where we write before its start.
_DIRECTORIES = {
    **dict.fromkeys(("dev", "proc", "run", "sys", "etc", ".roost"), 0o755),
    "tmp": 0o1777,
}
_TIMEOUT_S = 60


class Blanks:
    def __init__(self, pool: Pool, images: Images, agent: AgentBinary) -> None:
        self._pool = pool
        self._images = images
        self._agent = agent

    def image(self) -> Image:
        """Blocking; made where it is not there. Always the same bytes."""
        named = f"roost-blank {_FORM}\n{self._agent.digest}\n"
        digest = f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"
        if (found := self._images.get(digest)) is not None:
            return found
        work = Path(tempfile.mkdtemp(prefix="blank-", dir=self._pool.tmp))
        try:
            root, made = work / "root", work / "image.ext4"
            root.mkdir()
            for name, mode in _DIRECTORIES.items():
                (root / name).mkdir()
                os.chmod(root / name, mode)
            (root / ".roost/agent").write_bytes(self._agent.content)
            os.chmod(root / ".roost/agent", AGENT_MODE)
            with made.open("xb") as file:
                file.truncate(DEFAULT_GIB << 30)
            _make(root, made, str(uuid.uuid5(_SEED, digest)))
            for other in self._images.list():  # of agents before
                if (self._images.manifest(other.digest) or {}).get("kind") == _KIND:
                    self._images.delete(other.digest)
            manifest = {"kind": _KIND, "agent_digest": self._agent.digest}
            return self._images.add(made, digest, manifest)
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(work)


def _make(root: Path, made: Path, identity: str) -> None:
    argv = [
        *("mke2fs", "-q", "-t", "ext4", "-m", "0", "-L", "roost", "-U", identity),
        *("-E", f"hash_seed={identity},assume_storage_prezeroed=1,root_owner=0:0"),
        *("-d", str(root), str(made)),
    ]
    env = {"LC_ALL": "C", "E2FSPROGS_FAKE_TIME": _EPOCH, "SOURCE_DATE_EPOCH": _EPOCH}
    run.run(argv, timeout_s=_TIMEOUT_S, env=env)
