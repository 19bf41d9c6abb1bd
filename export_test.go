package tank

import "github.com/tank-snapshotter/tank/metadata"

// Nodes lists the records of a root.
func Nodes(t *Tank) []metadata.Node {
	nodes, err := t.repairable().Nodes()
	if err != nil {
		panic(err)
	}
	return nodes
}
