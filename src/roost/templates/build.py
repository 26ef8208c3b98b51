"""A recipe to an image in the pool. Nothing half-made stays, whether it fails or is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from roost.drivers.tree import AgentBinary, put_agent
from roost.errors import MachineError, RoostError
from roost.host import apart, fiemap, files, loop, mounts, run, syscalls
from roost.host.safefs import Tree
from roost.storage.images import Images
from roost.storage.interface import Image
from roost.storage.pool import Pool
from roost.templates import sources
from roost.templates.progress import PackagesProgress, Progress
from roost.templates.recipe import Recipe
from roost.templates.tree import settle

T = TypeVar("T")

# Of everything made by a build; later times in packages are theirs no more than ours.
EPOCH = 1_735_689_600
_NEEDED_BYTES = 3 << 30
_SEAL_BYTES = 16 << 20
_BUILD_TIMEOUT_S = 1800
_PIECES = 256  # of an image; more are written anew
_STOP_GRACE_S = 10
_SEED = uuid.UUID("5b3f6a52-7e0d-5d3c-9a41-726f6f737430")
_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", "TZ": "UTC"}


class Builder:
    def __init__(self, pool: Pool, images: Images, agent: AgentBinary) -> None:
        self._pool = pool
        self._images = images
        self._agent = agent

    async def build(
        self, directory: Path, recipe: Recipe, digest: str, progress: Progress, *, force: bool
    ) -> Image:
        """``digest``: of the recipe. The image that is already there, unless ``force``. Raises
        TEMPLATE_BUILD_FAILED, STORAGE_FULL."""
        try:
            layer = None if force else await _thread(self._find, digest, None)
            if layer is None:
                await _thread(self._pool.require, _NEEDED_BYTES)
                layer = await self._layer(directory, recipe, digest, progress)
            progress("agent", 97, "adding the agent")
            image = await _thread(self._with_agent, layer, digest)
        except (RoostError, asyncio.CancelledError):
            raise
        except Exception as exc:
            raise MachineError(
                f"The template {recipe.name} could not be built: {exc}",
                code="TEMPLATE_BUILD_FAILED",
            ) from exc
        progress("done", 100, "ready")
        return image

    def _find(self, recipe_digest: str, agent_digest: str | None) -> Image | None:
        for image in self._images.list():
            manifest = self._images.manifest(image.digest) or {}
            if (
                manifest.get("recipe_digest") == recipe_digest
                and image.agent_digest == agent_digest
            ):
                return image
        return None

    # --- the layer without an agent ------------------------------------------------------------

    async def _layer(
        self, directory: Path, recipe: Recipe, digest: str, progress: Progress
    ) -> Image:
        work = Path(tempfile.mkdtemp(prefix="build-", dir=self._pool.tmp))
        try:
            root = work / "root"
            await self._packages(recipe, root, work, progress)
            progress("customize", 80, "laying the recipe's files over the tree")
            await self._customize(directory, root)
            progress("content", 85, "reading the content")
            content = await _thread(settle, root, EPOCH)
            progress("image", 90, "writing the image")
            made = work / "image.ext4"
            await self._mke2fs(recipe, content, root, made)
            return await _thread(
                self._images.add,
                made,
                content,
                {
                    "template": recipe.name,
                    "recipe_digest": digest,
                    "content_digest": content,
                    "agent_digest": None,
                },
            )
        finally:
            await asyncio.shield(_thread(_remove_tree, work))

    async def _packages(self, recipe: Recipe, root: Path, work: Path, progress: Progress) -> None:
        progress("packages", 0, "starting")
        options = sources.copied_options(
            (await _thread(_apt_config)) if shutil.which("apt-config") else ""
        )
        listing = sources.lines(recipe.suite, recipe.components, sources.host_sources())
        argv = [
            "mmdebstrap",
            "--mode=root",
            "--verbose",
            "--variant=minbase",
            "--format=directory",
            "--dpkgopt=force-unsafe-io",
            f"--include={','.join(recipe.packages)}",
            *(f"--aptopt={option}" for option in options),
            recipe.suite,
            str(root),
            *listing,
        ]
        told = PackagesProgress(progress)
        await _command(argv, told.line, {"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(work)})
        await _thread(_keep_sources, root, listing, options)

    async def _customize(self, directory: Path, root: Path) -> None:
        overlay = directory / "files"
        if overlay.is_dir():
            await _thread(_lay_over, overlay, root)
        script = directory / "customize.sh"
        if script.is_file():
            await _command(
                [
                    "unshare",
                    "--net",
                    "chroot",
                    str(root),
                    "/bin/sh",
                    "-eu",
                    "-c",
                    script.read_text(),
                ],
                lambda line: None,
                {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
            )
        await _thread(_clean, root)

    async def _mke2fs(self, recipe: Recipe, content: str, root: Path, made: Path) -> None:
        identity = str(uuid.uuid5(_SEED, content))
        with made.open("xb") as file:
            file.truncate(recipe.size_gib << 30)
        await _command(
            [
                "mke2fs",
                "-q",
                "-t",
                "ext4",
                "-m",
                "0",  # what is kept for root on a server means nothing here: root is the user
                "-L",
                "roost",
                "-U",
                identity,
                "-E",
                f"hash_seed={identity},assume_storage_prezeroed=1,root_owner=0:0",
                "-d",
                str(root),
                str(made),
            ],
            lambda line: None,
            {"E2FSPROGS_FAKE_TIME": str(EPOCH), "SOURCE_DATE_EPOCH": str(EPOCH)},
        )

    # --- the agent -----------------------------------------------------------------------------

    def _with_agent(self, layer: Image, recipe_digest: str) -> Image:
        manifest = self._images.manifest(layer.digest) or {}
        named = f"roost-image 1\n{layer.digest}\n{self._agent.digest}\n"
        return self._sealed(layer, named, manifest)

    async def seal(self, layer: Image, content: str, config: Mapping[str, Any]) -> Image:
        try:
            return await _thread(self._seal, layer, content, config)
        except OSError as exc:
            raise MachineError(
                f"The template's image could not be made: {exc}", code="TEMPLATE_BUILD_FAILED"
            ) from exc

    def _seal(self, layer: Image, content: str, config: Mapping[str, Any]) -> Image:
        known = json.dumps(config, sort_keys=True)
        named = f"roost-template 1\n{content}\n{self._agent.digest}\n{known}\n"
        if layer.raw_written or layer.imported:
            # Images are shared by who builds the same: what the host does not mount must be nobody's who can mount it.
            named += "not mounted\n"
        manifest = {
            "kind": "template",
            "content_digest": content,
            "raw_written": layer.raw_written,
            "imported": layer.imported,
        }
        return self._sealed(layer, named, manifest)

    def _sealed(self, layer: Image, named: str, manifest: Mapping[str, Any]) -> Image:
        """A clone of the layer with our agent in it, unless the host may not mount that: its driver then brings the
        agent."""
        digest = f"sha256:{hashlib.sha256(named.encode()).hexdigest()}"
        if (image := self._images.get(digest)) is not None:
            return image
        self._pool.require(_SEAL_BYTES)
        work = Path(tempfile.mkdtemp(prefix="agent-", dir=self._pool.tmp))
        try:
            made, root = work / "image.ext4", work / "root"
            root.mkdir()
            files.reflink(layer.path, made, durable=False)
            if layer.raw_written or layer.imported:
                return self._images.add(made, digest, {**manifest, "agent_digest": None})
            device, fd = loop.attach(made)
            try:
                apart.run(lambda: self._put_agent(device, root))
            finally:
                os.close(fd)
            if not loop.wait_gone(device, made, 10):
                raise OSError(f"{device} does not let go of the image")
            made = self._in_one_piece(made)
            return self._images.add(made, digest, {**manifest, "agent_digest": self._agent.digest})
        finally:
            _remove_tree(work)

    def _in_one_piece(self, made: Path) -> Path:
        """What was written step by step lies all over the pool, and each machine's disk is a clone of it."""
        if len(fiemap.extents(made)) <= _PIECES:
            return made
        self._pool.require(made.stat().st_blocks * 512)
        whole = made.with_name("whole.ext4")
        files.rewrite(made, whole)
        made.unlink()
        return whole

    def _put_agent(self, device: Path, root: Path) -> None:
        syscalls.mount(device, root, "ext4", syscalls.MS_NODEV, "noinit_itable")
        with Tree(root) as tree:
            put_agent(tree, self._agent)
        with contextlib.suppress(OSError):  # what steps deleted again
            mounts.trim(root)


# --- pieces --------------------------------------------------------------------------------------


async def _thread(function: Callable[..., T], *args: Any) -> T:
    return await asyncio.to_thread(function, *args)


async def _command(
    argv: list[str], line: Callable[[str], None], environment: dict[str, str]
) -> None:
    """To its end, each line told. On failure the last lines are the message; on cancel its whole
    process group goes, first asked (mmdebstrap unmounts what it mounted), then killed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath), **_ENVIRONMENT, **environment},
        start_new_session=True,
    )
    assert process.stdout is not None
    tail: list[str] = []
    try:
        async with asyncio.timeout(_BUILD_TIMEOUT_S):
            async for raw in process.stdout:
                text = raw.decode(errors="replace").rstrip()
                tail = [*tail[-14:], text]
                line(text)
            code = await process.wait()
    finally:
        if process.returncode is None:
            await asyncio.shield(_stop(process))
    if code != 0:
        said = [t for t in tail if t.startswith(("E:", "W:"))] or tail[-3:]
        raise OSError(f"{argv[0]} failed ({code}): {' / '.join(said)[-600:]}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    for number, grace in ((signal.SIGTERM, _STOP_GRACE_S), (signal.SIGKILL, _STOP_GRACE_S)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await process.wait()
                return


def _apt_config() -> str:
    return run.run(["apt-config", "dump"], timeout_s=20).stdout


def _keep_sources(root: Path, listing: list[str], options: list[str]) -> None:
    (root / "etc/apt/sources.list").write_text("\n".join(listing) + "\n")
    kept = [option for option in options if "Proxy" not in option]
    if kept:
        (root / "etc/apt/apt.conf.d/81mirror").write_text("\n".join(kept) + "\n")


def _lay_over(overlay: Path, root: Path) -> None:
    """Root's, 0755 or 0644: a checkout's umask does not reach the image."""
    for path in sorted(overlay.rglob("*")):
        target = root / path.relative_to(overlay)
        if path.is_dir():
            target.mkdir(mode=0o755, exist_ok=True)
            continue
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)
        os.chmod(target, 0o755 if path.stat().st_mode & 0o100 else 0o644)
        os.chown(target, 0, 0)


def _clean(root: Path) -> None:
    """What differs from build to build, or belongs to one machine only."""
    for pattern in (
        "var/log/*.log",
        "var/log/apt/*",
        "var/cache/ldconfig/aux-cache",
        "var/cache/apt/*.bin",
        "var/lib/apt/lists/*_*",
        "var/lib/dbus/machine-id",
        "etc/*-",
        "run/*",
    ):
        for path in root.glob(pattern):
            if stat.S_ISDIR(path.lstat().st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
    (root / "etc/machine-id").write_text("")
    for name in ("etc/resolv.conf", "etc/hostname", "etc/hosts"):
        (root / name).unlink(missing_ok=True)


def _remove_tree(path: Path) -> None:
    """With whatever a killed mmdebstrap left mounted in it."""
    for target in reversed(mounts.below(path)):
        mounts.unmount(target)
    for attempt in range(5):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError:
            if attempt == 4:
                raise
            time.sleep(0.1)
