package tank

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/internal/printable"
	"github.com/tank-snapshotter/tank/internal/regular"
	"github.com/tank-snapshotter/tank/snapshot/unpack"
)

// mode is with whose rights a root is made: what its files are, and what their owners mean, depends on it. The root keeps it
// in the file lock, so that it outlives the database.
type mode struct {
	who string
	// uids and gids are those of the user namespace whose root the process is; nil elsewhere.
	uids, gids unpack.IDMap
}

// What mode.who may be, beside "uid <n>" for an ordinary user.
const (
	privileged  = "privileged"
	withoutCaps = "root without CAP_SYS_ADMIN" // in a container, for example
	userNS      = "root of a user namespace"
	// oneID is root of a namespace that has but one id, so that all files belong to it: an ordinary user in all but name.
	oneID = "the one user of a user namespace"
)

// known reports whether who is one of the constants above.
func (m mode) known() bool {
	switch m.who {
	case privileged, withoutCaps, userNS, oneID:
		return true
	}
	number, ok := strings.CutPrefix(m.who, "uid ")
	_, err := strconv.ParseUint(number, 10, 32)
	return ok && err == nil
}

// currentMode finds out what this process is. f is a file of its own in the root: whether trusted.* attributes can be
// written is asked of the kernel, because a container's root may look like the machine's. Where nothing may be written
// and the answer is not known, it is taken for the machine's.
func currentMode(f *os.File, readOnly bool) (mode, error) {
	if uid := os.Geteuid(); uid != 0 {
		return mode{who: fmt.Sprintf("uid %d", uid)}, nil
	}
	uids, gids, err := unpack.ProcessIDMaps()
	switch {
	case err != nil:
		return mode{}, err
	case uids.Len() == 1 || gids.Len() == 1:
		return mode{oneID, uids, gids}, nil
	case uids != nil:
		return mode{userNS, uids, gids}, nil
	}
	// Only a process with CAP_SYS_ADMIN on the machine sees such an attribute. It stays, so that later openings write
	// nothing.
	const attr = "trusted.tank"
	if _, err := unix.Fgetxattr(int(f.Fd()), attr, nil); err == nil {
		return mode{who: privileged}, nil
	}
	if !readOnly && errors.Is(unix.Fsetxattr(int(f.Fd()), attr, nil, 0), unix.EPERM) {
		return mode{who: withoutCaps}, nil
	}
	// A file system without attributes ends here too: the first layer that needs one reports it.
	return mode{who: privileged}, nil
}

// options are how layers are unpacked in this mode.
func (m mode) options() unpack.Options {
	return unpack.Options{
		Unprivileged: m.who == oneID || strings.HasPrefix(m.who, "uid "),
		Confined:     m.who == userNS || m.who == withoutCaps,
		UIDs:         m.uids,
		GIDs:         m.gids,
	}
}

// continues tells whether a root that was made as was means the same to m: the namespace may have got more ids since.
func (m mode) continues(was mode) bool {
	if m.who != was.who {
		return false
	}
	if m.who == userNS {
		return m.uids.Includes(was.uids) && m.gids.Includes(was.gids)
	}
	return m.String() == was.String()
}

func (m mode) String() string {
	if m.uids == nil {
		return m.who
	}
	return fmt.Sprintf("%s, uids %s, gids %s", m.who, m.uids, m.gids)
}

// parseMode reads what String wrote.
func parseMode(text string) (m mode, err error) {
	who, ids, ok := strings.Cut(text, ", uids ")
	m.who = who
	if !ok {
		return m, nil
	}
	uids, gids, _ := strings.Cut(ids, ", gids ")
	if m.uids, err = unpack.ParseIDMap(uids); err == nil {
		m.gids, err = unpack.ParseIDMap(gids)
	}
	return m, err
}

// maxLock bounds what is read of the file lock: one line, in which a namespace may have hundreds of ranges of ids.
const maxLock = 1 << 20

// recordMode refuses a root that was made with other rights, and remembers those of this one unless readOnly. The file
// is locked.
func recordMode(lock *os.File, readOnly bool) (mode, error) {
	now, err := currentMode(lock, readOnly)
	if err != nil {
		return now, err
	}
	text, err := regular.ReadAll(lock, maxLock)
	if err != nil {
		return now, err
	}
	line, _, whole := strings.Cut(string(text), "\n")
	if whole {
		was, err := parseMode(line)
		if readOnly && err == nil && was.who == withoutCaps && now.who == privileged {
			now = was // only a write could decide which of the two it is
		}
		if err != nil || !now.continues(was) {
			return now, cause.Mark(fmt.Errorf("made by %s, this process is %s: %w",
				printable.Text(line), now, errdefs.ErrFailedPrecondition), cause.ForeignUser, "")
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
