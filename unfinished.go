package tank

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/internal/usage"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/metadata"
)

// unfinished lists what unfinished pulls and downloads of containerds keep, the largest first.
func (t *Tank) unfinished(ctx context.Context) (all []Unfinished, err error) {
	var pulls, containerds []metadata.Holder
	if err := t.db.View(func(tx *metadata.Tx) error {
		ps, err := tx.Pulls()
		for _, p := range ps {
			pulls = append(pulls, metadata.PullHolder(p.Ref))
		}
		containerds = append(containerds, metadata.Containerd)
		for _, h := range tx.AllHolders() {
			if h.IsContainerd() && h != metadata.Containerd {
				containerds = append(containerds, h)
			}
		}
		return err
	}); err != nil {
		return nil, err
	}
	measured := usage.Sizes{}
	for _, h := range pulls {
		info, err := t.holder(ctx, h, measured)
		if errdefs.IsNotFound(err) {
			continue // the pull has ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		if info.Exclusive > 0 {
			all = append(all, Unfinished{Holder: info.Holder, Bytes: info.Exclusive, Running: info.Running})
		}
	}
	for _, h := range containerds {
		ingests, err := t.content.For(h).ListStatuses(ctx)
		if err != nil {
			return nil, err
		}
		u := Unfinished{Holder: string(h)}
		for _, i := range ingests {
			u.Bytes += i.Offset
		}
		if u.Bytes > 0 {
			all = append(all, u)
		}
	}
	slices.SortFunc(all, func(a, b Unfinished) int {
		if a.Bytes != b.Bytes {
			return int(min(max(b.Bytes-a.Bytes, -1), 1))
		}
		return strings.Compare(a.Holder, b.Holder)
	})
	return all, nil
}

// measureWithin is how long fullDisk measures sizes at most.
const measureWithin = 10 * time.Second

// fullDisk adds to the error of a pull that found the disk full how much unfinished pulls keep. It names at
// most maxNamed of them.
func (t *Tank) fullDisk(ctx context.Context, err error) error {
	const maxNamed = 3
	ctx, cancel := context.WithTimeout(ctx, measureWithin)
	defer cancel()
	all, lerr := t.unfinished(ctx)
	if lerr != nil {
		return err // the more important error
	}
	if len(all) == 0 {
		return err
	}
	var names []string
	sum := int64(0)
	for i, u := range all {
		sum += u.Bytes
		if i < maxNamed {
			names = append(names, fmt.Sprintf("%s %d", u.Holder, u.Bytes))
		}
	}
	if more := len(all) - maxNamed; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return fmt.Errorf("%w; unfinished pulls hold %d bytes: %s", err, sum, strings.Join(names, ", "))
}
