package rootlock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/fsys"
	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/internal/printable"
)

// Access is which rights a process has to the files of a root. It decides which owners and
// attributes the files can have, so a root is used with the access with which it was made. The file
// lock records it, because the database may get lost.
type Access struct {
	by string // one of the constants below, or "uid <n>" for an ordinary user
	// uids and gids are the ids of the user namespace whose root the process is. They are nil for
	// any other process.
	uids, gids idmap.Map
}

const (
	privileged  = "privileged"
	withoutCaps = "root without CAP_SYS_ADMIN" // in a container, for example
	userNS      = "root of a user namespace"
	// oneID is root of a namespace with a single id, to which all files belong: its rights are
	// those of an ordinary user.
	oneID = "the one user of a user namespace"
)

// Unprivileged reports whether all files belong to one user, who can't give them to another.
func (a Access) Unprivileged() bool { return a.by == oneID || strings.HasPrefix(a.by, "uid ") }

// Confined reports whether the process is root, but not of the whole machine: it can't make device
// files or set trusted.* attributes.
func (a Access) Confined() bool { return a.by == userNS || a.by == withoutCaps }

// IDs returns the user and group ids that the process can give to files. nil means all of them.
func (a Access) IDs() (uids, gids idmap.Map) { return a.uids, a.gids }

// known reports whether parseAccess has read something that String can have written.
func (a Access) known() bool {
	switch a.by {
	case privileged, withoutCaps, userNS, oneID:
		return true
	}
	number, ok := strings.CutPrefix(a.by, "uid ")
	_, err := strconv.ParseUint(number, 10, 32)
	return ok && err == nil
}

// currentAccess determines the access of this process. f is a file of the process in the root. The
// process tries to set a trusted.* attribute on it, because root of a container can look like root
// of the machine. If nothing may be written and the attribute is not set, the process counts as
// root of the machine.
func currentAccess(f fsys.File, readOnly bool) (Access, error) {
	if uid := os.Geteuid(); uid != 0 {
		return Access{by: fmt.Sprintf("uid %d", uid)}, nil
	}
	uids, gids, err := idmap.Process()
	switch {
	case err != nil:
		return Access{}, err
	case uids.Len() == 1 || gids.Len() == 1:
		return Access{oneID, uids, gids}, nil
	case uids != nil:
		return Access{userNS, uids, gids}, nil
	}
	// Only a process with CAP_SYS_ADMIN on the machine sees such an attribute. It stays, so that
	// later openings write nothing.
	const attr = "trusted.tank"
	if _, err := unix.Fgetxattr(int(f.Fd()), attr, nil); err == nil {
		return Access{by: privileged}, nil
	}
	if !readOnly && errors.Is(unix.Fsetxattr(int(f.Fd()), attr, nil, 0), unix.EPERM) {
		return Access{by: withoutCaps}, nil
	}
	// A file system without attributes leads here, too: the first layer that needs one reports it.
	return Access{by: privileged}, nil
}

// continues reports whether a can use a root that was made with the access was: the same, or that
// of a namespace that has got more ids since.
func (a Access) continues(was Access) bool {
	if a.by != was.by {
		return false
	}
	if a.by == userNS {
		return a.uids.Includes(was.uids) && a.gids.Includes(was.gids)
	}
	return a.String() == was.String()
}

// String describes the access as the file lock and errors do.
func (a Access) String() string {
	if a.uids == nil {
		return a.by
	}
	return fmt.Sprintf("%s, uids %s, gids %s", a.by, a.uids, a.gids)
}

// parseAccess reads what String wrote.
func parseAccess(text string) (a Access, err error) {
	by, ids, ok := strings.Cut(text, ", uids ")
	a.by = by
	if !ok {
		return a, nil
	}
	uids, gids, _ := strings.Cut(ids, ", gids ")
	if a.uids, err = idmap.Parse(uids); err == nil {
		a.gids, err = idmap.Parse(gids)
	}
	return a, err
}

// maxLock is the maximum size of the file lock. It has one line, in which a namespace may have
// hundreds of ranges.
const maxLock = 1 << 20

// recordAccess refuses a root that was made with another access (errdefs.ErrFailedPrecondition),
// and records the access of this process in the file lock unless readOnly. The file is locked, and
// at most maxLock bytes long.
func recordAccess(lock fsys.File, readOnly bool) (Access, error) {
	now, err := currentAccess(lock, readOnly)
	if err != nil {
		return now, err
	}
	text, err := io.ReadAll(io.NewSectionReader(lock, 0, maxLock+1))
	if err != nil {
		return now, err
	}
	if len(text) > maxLock {
		return now, errNotRoot("file " + lockName + ": not a small regular file")
	}
	line, _, whole := strings.Cut(string(text), "\n")
	if whole {
		was, err := parseAccess(line)
		if readOnly && err == nil && was.by == withoutCaps && now.by == privileged {
			now = was // only a write could show which of the two it is
		}
		if err != nil || !now.continues(was) {
			return now, cause.Mark(fmt.Errorf("made by %s, this process is %s: %w",
				printable.Text(line), now, errdefs.ErrFailedPrecondition), cause.OtherUser, "")
		}
		if line == now.String() {
			return now, nil
		}
	}
	if readOnly {
		return now, nil
	}
	n, err := lock.WriteAt([]byte(now.String()+"\n"), 0)
	if err != nil {
		return now, err
	}
	return now, errors.Join(lock.Truncate(int64(n)), lock.Sync())
}
