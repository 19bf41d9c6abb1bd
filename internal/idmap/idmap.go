// Package idmap describes how the user and group ids of a user namespace map to the ids outside of it.
//
// It owns nothing; it reads /proc/self/uid_map and gid_map.
//
// Its invariant: a Map of a process is sorted and its ranges do not touch, so that equal mappings are equal values.
//
// The surprising rule: a nil Map maps every id to itself.
package idmap

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/regular"
)

// Map maps the ids of a user namespace to the ids outside of it. nil maps every id to itself.
type Map []Range

// Range maps Size ids: Container, the first, to Host, and so on.
type Range struct{ Container, Host, Size uint32 }

// Parse reads ranges of the form CONTAINER:HOST:SIZE, separated by commas. It returns errdefs.ErrInvalidArgument for
// anything else.
func Parse(s string) (Map, error) {
	var m Map
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseRange(strings.Split(part, ":"))
		if err != nil {
			return nil, fmt.Errorf("id mapping %.100q: %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
		m = append(m, r)
	}
	return m, nil
}

func parseRange(fields []string) (Range, error) {
	var n [3]uint32
	if len(fields) != len(n) {
		return Range{}, fmt.Errorf("not CONTAINER:HOST:SIZE")
	}
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return Range{}, err
		}
		n[i] = uint32(v)
	}
	if n[2] == 0 {
		return Range{}, fmt.Errorf("empty range")
	}
	return Range{n[0], n[1], n[2]}, nil
}

// processIDs are the maps that Process has read. A process with several threads cannot enter another user
// namespace, and the kernel lets a namespace's map be written only once, so that the first complete answer stays
// true.
var processIDs struct {
	mu         sync.Mutex // guards the rest
	known      bool
	uids, gids Map
}

// Process returns the ids of this process's user namespace, sorted and with adjacent ranges joined; nil for the
// initial namespace and for kernels without user namespaces. The caller must not change the maps.
func Process() (uids, gids Map, err error) {
	p := &processIDs
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known {
		return p.uids, p.gids, nil
	}
	if uids, err = readMap("/proc/self/uid_map"); err == nil {
		gids, err = readMap("/proc/self/gid_map")
	}
	p.known = err == nil && len(uids) > 0 && len(gids) > 0
	if uids.isAll() && gids.isAll() {
		uids, gids = nil, nil
	}
	p.uids, p.gids = uids, gids
	return uids, gids, err
}

func readMap(name string) (Map, error) {
	text, err := regular.ReadFile(name, 1<<20)
	if os.IsNotExist(err) {
		return Map{{Size: math.MaxUint32}}, nil
	}
	if err != nil {
		return nil, err
	}
	m := Map{}
	for line := range strings.Lines(string(text)) {
		r, err := parseRange(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		m = append(m, r)
	}
	slices.SortFunc(m, func(a, b Range) int { return int(int64(a.Container) - int64(b.Container)) })
	return m.joined(), nil
}

// joined joins ranges that continue each other. The map is sorted.
func (m Map) joined() Map {
	out := m[:0]
	for _, r := range m {
		if n := len(out) - 1; n >= 0 && out[n].Container+out[n].Size == r.Container &&
			out[n].Host+out[n].Size == r.Host {
			out[n].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}

// isAll reports whether the map is that of the initial namespace.
func (m Map) isAll() bool {
	return len(m) == 1 && m[0] == Range{Size: math.MaxUint32}
}

// Len returns the number of ids that the namespace has.
func (m Map) Len() uint64 {
	if m == nil {
		return math.MaxUint32
	}
	var n uint64
	for _, r := range m {
		n += uint64(r.Size)
	}
	return n
}

// Has reports whether the namespace maps the id.
func (m Map) Has(id uint32) bool {
	_, ok := m.Host(id)
	return ok
}

// Host returns the id outside of the namespace. ok is false if the namespace does not map the id.
func (m Map) Host(id uint32) (host uint32, ok bool) {
	if m == nil {
		return id, true
	}
	for _, r := range m {
		if id >= r.Container && id-r.Container < r.Size {
			return r.Host + (id - r.Container), true
		}
	}
	return 0, false
}

// Includes reports whether m maps every id of the other map, and to the same id. Both maps are of the form that
// Process returns.
func (m Map) Includes(other Map) bool {
	for _, o := range other {
		if !slices.ContainsFunc(m, func(r Range) bool {
			off := int64(o.Container) - int64(r.Container)
			return off >= 0 && off+int64(o.Size) <= int64(r.Size) && int64(o.Host)-int64(r.Host) == off
		}) {
			return false
		}
	}
	return true
}

// String returns the map in the form that Parse and containerd's mounts read.
func (m Map) String() string {
	parts := make([]string, len(m))
	for i, r := range m {
		parts[i] = fmt.Sprintf("%d:%d:%d", r.Container, r.Host, r.Size)
	}
	return strings.Join(parts, ",")
}
