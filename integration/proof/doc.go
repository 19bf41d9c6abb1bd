// Package proof has the long tests of docs/reliability.md that need real programs: power cuts, random kills, restarts
// under running containers, a soak. `make integration` runs a short version of each, and the targets of the Makefile
// run any range of seeds.
//
// Each test owns a node: Tank's daemon, a containerd and a registry on private paths, for power cuts on a file system
// of its own in a loop device. A world records what the programs acknowledged, and is compared with the node after
// every kill and every cut.
//
// The invariant: what is recorded as acknowledged was answered before the cut began. What was under way is recorded as
// unsure, and may be there or not.
//
// The surprising rule: a history is cut before the first sync of its last operation, then before the second one, and so
// on until it ends without a cut. The number of its syncs need not be known, and may differ from run to run.
package proof
