package content

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"
)

// trash deletes by a rename first, and then in the background.
type trash struct {
	dir string
	seq atomic.Uint64

	mu   sync.Mutex
	busy int
	idle chan struct{} // closed when busy falls to 0; nil unless somebody waits
}

const trashPrefix = "content-"

// move gives path a name in staging/ and returns it. A symlink is moved, not followed.
func (t *trash) move(path string) (string, error) {
	name := fmt.Sprintf("%s%x-%x", trashPrefix, time.Now().UnixNano(), t.seq.Add(1))
	moved := filepath.Join(t.dir, name)
	err := os.Rename(path, moved)
	if errors.Is(err, fs.ErrNotExist) {
		// Either path is not there, or somebody took staging/ away as a whole.
		if mkErr := os.Mkdir(t.dir, 0o700); mkErr == nil {
			err = os.Rename(path, moved)
		}
	}
	return moved, err
}

// remove deletes a path in staging/, later.
func (t *trash) remove(path string) {
	t.mu.Lock()
	t.busy++
	t.mu.Unlock()
	go func() {
		if err := os.RemoveAll(path); err != nil {
			log.L.WithError(err).WithField("path", path).Warn("staging is left to the next opening")
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.busy--; t.busy == 0 && t.idle != nil {
			close(t.idle)
			t.idle = nil
		}
	}()
}

// wait returns when nothing is left to delete.
func (t *trash) wait() {
	t.mu.Lock()
	if t.busy == 0 {
		t.mu.Unlock()
		return
	}
	if t.idle == nil {
		t.idle = make(chan struct{})
	}
	idle := t.idle
	t.mu.Unlock()
	<-idle
}

// empty deletes what an earlier process left.
func (t *trash) empty() error {
	es, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	for _, e := range es {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			t.remove(filepath.Join(t.dir, e.Name()))
		}
	}
	return nil
}

// discard moves path to staging/ and has it deleted. It returns fs.ErrNotExist when path is not there.
func (s *Store) discard(path string) error {
	moved, err := s.trash.move(path)
	if err == nil {
		s.trash.remove(moved)
	}
	return err
}
