package snapshot_test

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/tank-snapshotter/tank/snapshot"
	. "github.com/tank-snapshotter/tank/snapshot/unpack/unpacktest"
)

// modelTime returns how long TestModel may run. TANK_MODEL_TIME overrides the default of 20
// seconds.
func modelTime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("TANK_MODEL_TIME")); err == nil {
		return d
	}
	return 20 * time.Second
}

// modelSeeds returns the first seed of TestModel and the largest number of seeds. TANK_MODEL_SEEDS overrides them.
func modelSeeds() (first, count uint64) {
	if _, err := fmt.Sscanf(os.Getenv("TANK_MODEL_SEEDS"), "%d,%d", &first, &count); err == nil {
		return first, count
	}
	return 1, 350
}

func names(sn *snapshot.Snapshotter) (list []string, err error) {
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		list = append(list, i.Name)
		return nil
	})
	return list, err
}

// plain returns an item of the same type with default attributes.
func plain(i Item) Item {
	n, l := i.Header.Name, i.Header.Linkname
	switch i.Header.Typeflag {
	case tar.TypeDir:
		return D(n)
	case tar.TypeSymlink:
		return S(n, l)
	case tar.TypeLink:
		return H(n, l)
	case tar.TypeReg:
		return F(n, i.Body)
	}
	return P(n)
}

// program prints layers as Go code for a row of a table.
func program(lists [][]Item) string {
	var text []string
	for _, items := range lists {
		var parts []string
		for _, i := range items {
			parts = append(parts, i.String())
		}
		text = append(text, "\t{"+strings.Join(parts, ", ")+"},\n")
	}
	return "[][]Item{\n" + strings.Join(text, "") + "}\n"
}
