#!/usr/bin/env python3
"""Writes an OCI layout with an image of Debian's busybox-static, for the demo where the shared images are not at hand."""
import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile

layout = sys.argv[1]
os.makedirs(layout + "/blobs/sha256")


def blob(data, media_type):
    name = hashlib.sha256(data).hexdigest()
    with open(f"{layout}/blobs/sha256/{name}", "wb") as f:
        f.write(data)
    return {"mediaType": media_type, "digest": "sha256:" + name, "size": len(data)}


def layer(add):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar)
    packed = gzip.compress(raw.getvalue(), mtime=0)
    diff_ids.append("sha256:" + hashlib.sha256(raw.getvalue()).hexdigest())
    layers.append(blob(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))


def entry(tar, name, kind=tarfile.DIRTYPE, mode=0o755, link="", data=b""):
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, len(data)
    tar.addfile(info, io.BytesIO(data))


def base(tar):
    for name in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        entry(tar, name, mode=0o1777 if name == "tmp" else 0o755)
    with open("/bin/busybox", "rb") as f:
        entry(tar, "bin/busybox", tarfile.REGTYPE, data=f.read())
    for name in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if name != "busybox":
            entry(tar, "bin/" + name, tarfile.SYMTYPE, 0o777, "busybox")


layers, diff_ids = [], []
layer(base)
layer(lambda tar: entry(tar, "etc/motd", tarfile.REGTYPE, 0o644, data=b"hello from tank\n"))

arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
config = {
    "architecture": arch,
    "os": "linux",
    "config": {"Cmd": ["cat", "/etc/motd"], "Env": ["PATH=/bin"]},
    "rootfs": {"type": "layers", "diff_ids": diff_ids},
}
manifest = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": blob(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
    "layers": layers,
}
desc = blob(json.dumps(manifest).encode(), manifest["mediaType"])
desc["annotations"] = {"org.opencontainers.image.ref.name": "hello"}
with open(layout + "/index.json", "w") as f:
    json.dump({"schemaVersion": 2, "manifests": [desc]}, f)
with open(layout + "/oci-layout", "w") as f:
    json.dump({"imageLayoutVersion": "1.0.0"}, f)
