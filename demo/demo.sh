#!/usr/bin/env bash
# The demo of the README: it pulls an image alone and under containerd, and runs it. All files are in one temporary
# directory. The demo changes nothing else, except that it installs missing Debian packages, and leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/local/go/bin"

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }
exec 3>&1 # the terminal, also where stdout is a pipe
show() { printf '$ %s\n' "$*" >&3; "$@"; }
die() { echo "demo: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "needs root: containerd and runc run as root"
command -v go >/dev/null || die "needs Go (https://go.dev/dl), here or in /usr/local/go"

shared=${TANK_SHARED_IMAGES:-../shared/images}
packages=(runc skopeo make git ca-certificates)
[ -e "$shared/oci/index.json" ] || packages+=(busybox-static python3)
missing=()
for p in "${packages[@]}"; do
	dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
	say "install ${missing[*]}"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -q </dev/null
	apt-get install -yq --no-install-recommends "${missing[@]}" </dev/null
fi

say "build Tank, and containerd and a registry from the Go module proxy"
make --no-print-directory build
# The same directory as the integration tests', so that each is built once (see binDir in integration/build.go).
bin=${TANK_TEST_BIN:-$PWD/integration/.bin/containerd-2.4.2-registry-3.1.2}
mkdir -p "$bin"
for program in containerd/containerd/v2/cmd/{containerd,ctr,containerd-shim-runc-v2} distribution/distribution/v3/cmd/registry; do
	[ -x "$bin/${program##*/}" ] || (cd integration && CGO_ENABLED=0 GOFLAGS=-buildvcs=false \
		go build -trimpath -tags 'no_btrfs no_devmapper no_zfs' -o "$bin/${program##*/}" "github.com/$program")
done
export PATH="$PWD/bin:$bin:$PATH"

dir=$(mktemp -d /tmp/tank-demo.XXXXXX)
pids=()
finish() {
	local status=$?
	trap - EXIT INT TERM
	if [ "$status" -ne 0 ]; then
		for log in "$dir"/*.log; do
			[ ! -s "$log" ] || { echo "--- the end of $log"; tail -n 15 "$log"; }
		done >&2
	fi
	for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
		kill "${pids[i]}" 2>/dev/null || true
		wait "${pids[i]}" 2>/dev/null || true
	done
	awk -v d="$dir/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r m; do umount -l "$m"; done
	rm -rf "$dir"
	[ "$status" -ne 0 ] || say "done; what was started is ended, and $dir is gone"
	exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# start NAME COMMAND... runs a program in the background with its output in a log.
start() {
	local name=$1
	shift
	"$@" >"$dir/$name.log" 2>&1 </dev/null &
	pids+=($!)
}

# await WHAT COMMAND... waits until the command succeeds.
await() {
	local what=$1
	shift
	for _ in $(seq 300); do
		if "$@" >/dev/null 2>&1; then return 0; fi
		kill -0 "${pids[-1]}" 2>/dev/null || die "$what ended"
		sleep 0.1
	done
	die "$what does not answer"
}

say "a registry with one image"
port=$(shuf -i 20000-60000 -n 1)
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$(shuf -i 20000-60000 -n 1); done
cat >"$dir/registry.yml" <<YML
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: "127.0.0.1:$port"}
YML
start registry registry serve "$dir/registry.yml"
await "the registry" bash -c "exec 3<>/dev/tcp/127.0.0.1/$port"
ref=127.0.0.1:$port/demo/hello:1
if [ -e "$shared/oci/index.json" ]; then
	layout=$shared/oci:debian-python:12
else
	python3 demo/busybox-image.py "$dir/oci"
	layout=$dir/oci:hello
fi
skopeo --insecure-policy copy --quiet --dest-tls-verify=false "oci:$layout" "docker://$ref"
echo "$ref"

say "alone: a directory with the image's files, without a daemon"
show tank-snapshotter pull --root "$dir/alone" "$ref" | tee "$dir/rootfs"
show ls -C "$(tail -n 1 "$dir/rootfs")"
say "again, without the network"
show tank-snapshotter pull --root "$dir/alone" --offline --progress none "$ref"
show tank-snapshotter images --root "$dir/alone"

say "under containerd: Tank holds the blobs and the layers"
start tank tank-snapshotter serve --root "$dir/tank" --address "$dir/tank.sock"
await Tank tank-snapshotter images --address "$dir/tank.sock"
tank-snapshotter config containerd --root "$dir/tank" --address "$dir/tank.sock" >"$dir/tank.toml"
cat >"$dir/containerd.toml" <<TOML
version = 3
imports = ["$dir/tank.toml"]
root = "$dir/containerd/root"
state = "$dir/containerd/state"
[grpc]
  address = "$dir/containerd.sock"
[ttrpc]
  address = "$dir/ttrpc.sock"
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["$dir/cni"]
  conf_dir = "$dir/cni"
[plugins.'io.containerd.nri.v1.nri']
  disable = true
TOML
start containerd containerd --config "$dir/containerd.toml"
# What ctr says beside its answers (on cgroup v1 that it is old, each time) goes to a log, which is shown when something fails.
ctr() { command ctr --address "$dir/containerd.sock" --namespace demo "$@" 2>>"$dir/ctr.log"; }
await containerd ctr --connect-timeout 1s version
private=(--runc-root "$dir/runc" --fifo-dir "$dir/fifo")

say "pull with Tank first: containerd will find everything here"
show tank-snapshotter pull --address "$dir/tank.sock" --no-rootfs "$ref"
show ctr images pull --plain-http --snapshotter tank "$ref" | tail -n 1
say "a container that prints something"
show ctr run --rm --snapshotter tank "${private[@]}" "$ref" hello
say "what it sees as its root: an overlay of Tank's layers"
show ctr run --rm --snapshotter tank "${private[@]}" "$ref" mounts head -n 1 /proc/mounts
say "what is here"
show tank-snapshotter images --address "$dir/tank.sock"
show ctr images ls -q
say "containerd forgets the image; Tank's own pull of it stays"
show ctr images rm --sync "$ref"
show tank-snapshotter gc --address "$dir/tank.sock"
show tank-snapshotter check --address "$dir/tank.sock"
show tank-snapshotter pull --address "$dir/tank.sock" --offline --no-rootfs --progress none "$ref"
