//go:build tools

// Package kubelet pins the kubelet that `make kubelet` builds and runs. It is a module of its own because Kubernetes
// requires some two hundred other modules. Its go.mod refers to some of them by directories of its source tree, so each
// of those needs a replacement here. The file is never compiled: no package can import a program.
package kubelet

import _ "k8s.io/kubernetes/cmd/kubelet"
