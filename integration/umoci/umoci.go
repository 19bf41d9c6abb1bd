//go:build tools

// Package umoci pins the umoci that the comparison of generated images builds and runs. It is a module of its own
// because umoci replaces one of its dependencies, so that `go install` refuses it. The file is never compiled: no
// package can import a program.
package umoci

import _ "github.com/opencontainers/umoci/cmd/umoci"
