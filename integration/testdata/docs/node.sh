#!/bin/bash
# Runs a script as on a freshly installed node: on an overlay of this machine's file system, with empty directories where containerd and
# Tank keep things, in PID and mount namespaces that take everything with them when they end.
#
#   node.sh DIR REPOSITORY BIN SCRIPT     DIR is empty, on a tmpfs or not; BIN has containerd, ctr, the shim
set -euo pipefail
dir=$1 repository=$2 bin=$3 script=$4

mount --make-rprivate /
mount -t tmpfs node "$dir"
mkdir "$dir"/{upper,work,root,upper2,work2}
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work,redirect_dir=off" "$dir/root"
root=$dir/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mkdir -p "$root$repository"
mount -t overlay overlay -o "lowerdir=$repository,upperdir=$dir/upper2,workdir=$dir/work2,redirect_dir=off" "$root$repository"
mkdir -p "$root$bin" "$root$(dirname "$script")"
mount --bind "$bin" "$root$bin"
mount --bind "$(dirname "$script")" "$root$(dirname "$script")"
for d in var/lib run etc/containerd etc/tank-snapshotter etc/systemd/system usr/local/bin opt; do
	mkdir -p "$root/$d"
	mount -t tmpfs tmpfs "$root/$d"
done
exec chroot "$root" /bin/bash "$script"
