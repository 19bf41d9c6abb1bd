//go:build tools

// Package kubelet pins the kubelet that `make kubelet` builds and runs. It is a module of its own
// because Kubernetes takes some two hundred others, and names its own parts by folders beside it, which
// have to be replaced one by one. The file is never compiled: a program can't be imported.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
