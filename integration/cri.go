package integration

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI talks to containerd as a kubelet does.
type CRI struct {
	c       *Containerd
	cgroup  string
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient
}

// CRI connects to containerd's CRI service.
func (c *Containerd) CRI() *CRI {
	c.env.t.Helper()
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.env.t.Fatal(err)
	}
	c.env.t.Cleanup(func() { _ = conn.Close() })
	return &CRI{c: c, cgroup: "/" + c.env.Name("pods"), Runtime: runtimeapi.NewRuntimeServiceClient(conn),
		Images: runtimeapi.NewImageServiceClient(conn)}
}

// context bounds a call, as the kubelet does.
func (k *CRI) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), commandLimit)
}

// Pull pulls an image and returns the name that containers use for it.
func (k *CRI) Pull(ref string) string {
	k.c.env.t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		k.c.env.t.Fatalf("CRI: pull %s: %v", ref, err)
	}
	return r.ImageRef
}

// RunPod starts a pod with host network and returns its id and config.
func (k *CRI) RunPod(name string) (string, *runtimeapi.PodSandboxConfig) {
	k.c.env.t.Helper()
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: k.c.env.Name(name), Namespace: "default"},
		LogDirectory: k.c.env.Path("log"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: k.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			},
		},
	}
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		k.c.env.t.Fatalf("CRI: pod %s: %v", name, err)
	}
	return r.PodSandboxId, config
}

// StartContainer creates and starts a container in a pod and returns its id.
func (k *CRI) StartContainer(pod string, config *runtimeapi.PodSandboxConfig, name, image string,
	args ...string) string {
	k.c.env.t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	r, err := k.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
		PodSandboxId:  pod,
		SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Args:     args,
			LogPath:  name + ".cri",
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			}},
		},
	})
	if err != nil {
		k.c.env.t.Fatalf("CRI: create container %s: %v", name, err)
	}
	if _, err := k.Runtime.StartContainer(ctx,
		&runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		k.c.env.t.Fatalf("CRI: start container %s: %v", name, err)
	}
	return r.ContainerId
}

// Await waits until a container has ended and returns its exit code.
func (k *CRI) Await(container string) int32 {
	k.c.env.t.Helper()
	var code int32
	Eventually(k.c.env.t, 30*time.Second, "container "+container+" ends", func() bool {
		ctx, cancel := k.context()
		defer cancel()
		r, err := k.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
		if err != nil {
			k.c.env.t.Fatalf("CRI: status of container %s: %v", container, err)
		}
		code = r.Status.ExitCode
		return r.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return code
}

// RemovePod stops and removes a pod with its containers.
func (k *CRI) RemovePod(pod string) {
	k.c.env.t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	if _, err := k.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		k.c.env.t.Fatalf("CRI: stop pod: %v", err)
	}
	if _, err := k.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		k.c.env.t.Fatalf("CRI: remove pod: %v", err)
	}
}

// RemoveImage removes an image as the kubelet's image collector does.
func (k *CRI) RemoveImage(ref string) {
	k.c.env.t.Helper()
	ctx, cancel := k.context()
	defer cancel()
	if _, err := k.Images.RemoveImage(ctx,
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		k.c.env.t.Fatalf("CRI: remove image %s: %v", ref, err)
	}
}
