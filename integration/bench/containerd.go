package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plain keeps containerd from decompressing with igzip or unpigz, which a machine has only if somebody installed them.
var plain = []string{"CONTAINERD_DISABLE_IGZIP=1", "CONTAINERD_DISABLE_PIGZ=1"}

// peerNode starts a containerd with a piece of configuration.
func peerNode(extra string, env []string) func(*run) error {
	return func(r *run) error { return r.startContainerd("", extra, env) }
}

// tankNode starts Tank's daemon with a configuration, and a containerd with the drop-in that Tank prints.
func tankNode(config string) func(*run) error {
	return func(r *run) error {
		socket := r.path("tank.sock")
		flags := []string{"--root", r.path("tank"), "--address", socket, "--config", r.path("tank.toml")}
		if err := os.WriteFile(r.path("tank.toml"), []byte(config), 0o644); err != nil {
			return err
		}
		d, err := r.startDaemon("tank", nil, "tank", append([]string{"serve", "--log-level", "warn"}, flags...)...)
		if err != nil {
			return err
		}
		if err := d.await(r.ctx, listens(socket)); err != nil {
			return err
		}
		out, err := r.command("tank", append([]string{"config", "containerd"}, flags...)...).Output()
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.path("dropin.toml"), out, 0o644); err != nil {
			return err
		}
		return r.startContainerd(r.path("dropin.toml"), "", nil)
	}
}

func (r *run) startContainerd(drop, extra string, env []string) error {
	dir := r.path("c")
	hosts := filepath.Join(dir, "hosts", r.reg.addr)
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(
		"server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", r.reg.addr)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o644); err != nil {
		return err
	}
	config := fmt.Sprintf("version = 3\nroot = \"%[1]s/root\"\nstate = \"%[1]s/state\"\n", dir)
	if drop != "" {
		config += fmt.Sprintf("imports = [%q]\n", drop)
	}
	config += fmt.Sprintf("[grpc]\n  address = \"%[1]s/c.sock\"\n[ttrpc]\n  address = \"%[1]s/t.sock\"\n", dir)
	config += fmt.Sprintf("[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = \"%s/hosts\"\n", dir)
	config += "[plugins.'io.containerd.nri.v1.nri']\n  disable = true\n" + extra
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o644); err != nil {
		return err
	}
	d, err := r.startDaemon("containerd", env, "containerd", "--config", filepath.Join(dir, "config.toml"),
		"--log-level", "warn")
	if err != nil {
		return err
	}
	return d.await(r.ctx, func() bool {
		// CRI is the last service that becomes ready
		return r.cri(func(ctx context.Context, images runtimeapi.ImageServiceClient) error {
			_, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			return err
		}) == nil
	})
}

func (r *run) ctr(args ...string) []string {
	return append([]string{"--address", r.path("c", "c.sock")}, args...)
}

// ctrPull pulls by the transfer service, as ctr does by default.
func ctrPull(snapshotter string) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		return m.pipe(
			r.command("ctr",
				r.ctr("images", "pull", "--hosts-dir", r.path("c", "hosts"), "--snapshotter", snapshotter, r.ref())...))
	}
}

// ctrPrepare makes the snapshot that a container would write to.
func ctrPrepare(snapshotter string) func(*run, *meter) error {
	return func(r *run, m *meter) error {
		return m.pipe(
			r.command("ctr",
				r.ctr("snapshots", "--snapshotter", snapshotter, "prepare", "container-"+r.tag,
					r.ChainIDs[r.tag].String())...))
	}
}

// criPull pulls as a kubelet does. The snapshotter is that of containerd's configuration.
func criPull(r *run, _ *meter) error {
	return r.cri(func(ctx context.Context, images runtimeapi.ImageServiceClient) error {
		_, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: r.ref()}})
		return err
	})
}

// cri calls containerd's image service. The CPU time of this client is not counted.
func (r *run) cri(call func(context.Context, runtimeapi.ImageServiceClient) error) error {
	conn, err := grpc.NewClient("unix://"+r.path("c", "c.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return call(r.ctx, runtimeapi.NewImageServiceClient(conn))
}

// mounted mounts the image as a container would see it. The mount ends with the file system.
func mounted(snapshotter, namespace string) func(*run) (string, error) {
	return func(r *run) (string, error) {
		dir := r.path("mounted")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
		out, err := r.command("ctr",
			r.ctr("--namespace", namespace, "images", "mount", "--snapshotter", snapshotter, r.ref(),
				dir)...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("ctr images mount: %w\n%s", err, out)
		}
		return dir, nil
	}
}
