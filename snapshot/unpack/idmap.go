package unpack

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

// IDMap is how the ids of a user namespace map to those outside of it. nil maps every id to itself.
type IDMap []IDRange

// IDRange maps the Size ids from Container on to those from Host on.
type IDRange struct{ Container, Host, Size uint32 }

// ParseIDMap reads CONTAINER:HOST:SIZE, comma-separated; errdefs.ErrInvalidArgument when it is anything else.
func ParseIDMap(s string) (IDMap, error) {
	var m IDMap
	for part := range strings.SplitSeq(s, ",") {
		r, err := parseIDRange(strings.Split(part, ":"))
		if err != nil {
			return nil, fmt.Errorf("id mapping %.100q: %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
		m = append(m, r)
	}
	return m, nil
}

func parseIDRange(fields []string) (IDRange, error) {
	var n [3]uint32
	if len(fields) != len(n) {
		return IDRange{}, fmt.Errorf("not CONTAINER:HOST:SIZE")
	}
	for i, f := range fields {
		v, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return IDRange{}, err
		}
		n[i] = uint32(v)
	}
	if n[2] == 0 {
		return IDRange{}, fmt.Errorf("empty range")
	}
	return IDRange{n[0], n[1], n[2]}, nil
}

// processIDs are the maps that ProcessIDMaps has read. A process with several threads can't enter another user
// namespace, and the kernel lets a namespace's map be written only once, so the first complete answer holds.
var processIDs struct {
	mu         sync.Mutex // guards the rest
	known      bool
	uids, gids IDMap
}

// ProcessIDMaps returns the ids of this process's user namespace, sorted, adjacent ranges as one; nil for the initial
// namespace and for kernels without any. The caller must not change the maps.
func ProcessIDMaps() (uids, gids IDMap, err error) {
	p := &processIDs
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known {
		return p.uids, p.gids, nil
	}
	if uids, err = readIDMap("/proc/self/uid_map"); err == nil {
		gids, err = readIDMap("/proc/self/gid_map")
	}
	p.known = err == nil && len(uids) > 0 && len(gids) > 0
	if uids.isAll() && gids.isAll() {
		uids, gids = nil, nil
	}
	p.uids, p.gids = uids, gids
	return uids, gids, err
}

func readIDMap(name string) (IDMap, error) {
	text, err := regular.ReadFile(name, 1<<20)
	if os.IsNotExist(err) {
		return IDMap{{Size: math.MaxUint32}}, nil
	}
	if err != nil {
		return nil, err
	}
	m := IDMap{}
	for line := range strings.Lines(string(text)) {
		r, err := parseIDRange(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		m = append(m, r)
	}
	slices.SortFunc(m, func(a, b IDRange) int { return int(int64(a.Container) - int64(b.Container)) })
	return m.joined(), nil
}

// joined makes one of ranges that continue each other. The map is sorted.
func (m IDMap) joined() IDMap {
	out := m[:0]
	for _, r := range m {
		if n := len(out) - 1; n >= 0 && out[n].Container+out[n].Size == r.Container && out[n].Host+out[n].Size == r.Host {
			out[n].Size += r.Size
			continue
		}
		out = append(out, r)
	}
	return out
}

// isAll tells whether this is the initial namespace's map, or like it.
func (m IDMap) isAll() bool {
	return len(m) == 1 && m[0] == IDRange{Size: math.MaxUint32}
}

// Len is how many ids the namespace has.
func (m IDMap) Len() uint64 {
	if m == nil {
		return math.MaxUint32
	}
	var n uint64
	for _, r := range m {
		n += uint64(r.Size)
	}
	return n
}

// Has tells whether the id has a place in the namespace.
func (m IDMap) Has(id uint32) bool {
	_, ok := m.Host(id)
	return ok
}

// Host maps an id of the namespace to the one outside; ok is false when it has none.
func (m IDMap) Host(id uint32) (host uint32, ok bool) {
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

// Includes tells whether every id of the other map is mapped by m, to the same. Both are as ProcessIDMaps returns them.
func (m IDMap) Includes(other IDMap) bool {
	for _, o := range other {
		if !slices.ContainsFunc(m, func(r IDRange) bool {
			off := int64(o.Container) - int64(r.Container)
			return off >= 0 && off+int64(o.Size) <= int64(r.Size) && int64(o.Host)-int64(r.Host) == off
		}) {
			return false
		}
	}
	return true
}

// String is the map as ParseIDMap and containerd's mounts take it.
func (m IDMap) String() string {
	parts := make([]string, len(m))
	for i, r := range m {
		parts[i] = fmt.Sprintf("%d:%d:%d", r.Container, r.Host, r.Size)
	}
	return strings.Join(parts, ",")
}
