package diskspace

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

const (
	// A Meter leaves maxSpare bytes free, or 1/sparePart of the file system if that is less, so that the
	// database and other programs can go on.
	maxSpare  = 64 << 20
	sparePart = 64
	// meterStep is how many bytes are written before the free space is read again.
	meterStep = 8 << 20
)

// Meter compares what is written below a directory with the free space of its file system, so that
// a layer or a copy ends with an error before the file system is full. Several goroutines may use
// it.
type Meter struct {
	path string

	mu   sync.Mutex // guards left
	left int64      // bytes that may be written before the free space is read again
}

// NewMeter returns the meter for a directory, which has to exist at the first Take.
func NewMeter(path string) *Meter { return &Meter{path: path} }

// Take must be called before that many bytes are written. It returns errdefs.ErrResourceExhausted if
// the write would leave less free than the meter must.
func (m *Meter) Take(bytes int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left -= bytes; m.left >= 0 {
		return nil
	}
	space, err := Of(m.path)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
	spare := min(space.Total/sparePart, maxSpare)
	if space.Free-spare < bytes {
		err := fmt.Errorf("the disk of %s is too full: %d MiB are free, of which %d MiB are kept in reserve: %w",
			m.path, space.Free>>20, spare>>20, errdefs.ErrResourceExhausted)
		return cause.Mark(err, cause.DiskFull, "")
	}
	m.left = min(meterStep, (space.Free-spare-bytes)/4)
	return nil
}
