package model_test

import (
	"fmt"
	"strings"

	"github.com/tank-snapshotter/tank/snapshot/model"
	"github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// A directory that a layer only implies keeps the attributes of its parent.
func Example() {
	res, err := model.Apply([][]unpacktest.Item{
		{unpacktest.D("d").Mode(0o700), unpacktest.F("d/old", "1")},
		{unpacktest.F("d/new", "2"), unpacktest.W("d/.wh.old")},
	})
	fmt.Println(strings.Join(res.Lines, "\n"), err)
	// Output:
	// d dir 0700
	// d/new file "2" <nil>
}
