package fsystest

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A fault is written as a line of text:
//
//	OPERATION [PATTERN] [#N[+]]: ACTION [ERRNO] [before|during|after]
//
//	rename blobs/sha256/*: fail ENOSPC     the first rename to a path in blobs/sha256 fails
//	sync ingest/*/data #2: fail            the second sync of a data file fails, with EIO
//	any #7: crash                          the seventh operation fails, and so does every one after it
//	build layers/*: crash during           a directory is filled, and the machine stops before it is synced
//	syncfs #1+: hang                       every syncfs waits for FS.Release
//
// OPERATION is one of the list below or "any". PATTERN is one of path.Match for the path, relative
// to the root, that the operation changes; for rename and link, the new one. Without a pattern,
// every path matches. N counts the matching operations from 1; "+" adds all later ones. The default
// is #1.
//
// An action before the operation, which is the default, prevents it; after it, the operation was
// done although it reports an error. "during" leaves a part of it: the first half of the bytes of a
// write, a directory that is built but not synced, a tree of which every second file is deleted.
// For other operations it is the same as before, and for hang it is not valid.
type fault struct {
	op, pattern string
	first       int
	repeat      bool
	action      action
	err         error
	at          moment

	seen int // matching operations so far
}

type action int

const (
	fail action = iota
	hang
	crash
)

type moment int

const (
	before moment = iota
	during
	after
)

// operations are the names in faults and in the history.
var operations = []string{
	"any", "open", "create", "write", "truncate", "chmod", "sync", "mkdir", "rename", "link", "remove", "removetree",
	"build", "syncdir", "syncfs", "commit",
}

var errnos = map[string]unix.Errno{
	"EACCES": unix.EACCES, "EDQUOT": unix.EDQUOT, "EEXIST": unix.EEXIST, "EIO": unix.EIO, "EMFILE": unix.EMFILE,
	"ENOMEM": unix.ENOMEM,
	"ENOENT": unix.ENOENT, "ENOSPC": unix.ENOSPC, "EPERM": unix.EPERM, "EROFS": unix.EROFS, "EXDEV": unix.EXDEV,
}

func parseFault(line string) (*fault, error) {
	what, how, ok := strings.Cut(line, ":")
	left, right := strings.Fields(what), strings.Fields(how)
	if !ok || len(left) == 0 || len(right) == 0 {
		return nil, fmt.Errorf("fault %q: not OPERATION [PATTERN] [#N[+]]: ACTION [ERRNO] [MOMENT]", line)
	}
	f := &fault{op: left[0], first: 1, err: unix.EIO}
	if !slices.Contains(operations, f.op) {
		return nil, fmt.Errorf("fault %q: operation %q is none of %v", line, f.op, operations)
	}
	for _, word := range left[1:] {
		number, isCount := strings.CutPrefix(word, "#")
		if !isCount {
			if _, err := path.Match(word, ""); err != nil || f.pattern != "" {
				return nil, fmt.Errorf("fault %q: pattern %q is invalid or the second one", line, word)
			}
			f.pattern = word
			continue
		}
		number, f.repeat = strings.CutSuffix(number, "+")
		n, err := strconv.Atoi(number)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("fault %q: count %q is invalid", line, word)
		}
		f.first = n
	}
	i := slices.Index([]string{"fail", "hang", "crash"}, right[0])
	if i < 0 {
		return nil, fmt.Errorf("fault %q: action %q is none of fail, hang, crash", line, right[0])
	}
	f.action = action(i)
	for _, word := range right[1:] {
		if at := slices.Index([]string{"before", "during", "after"}, word); at >= 0 {
			f.at = moment(at)
		} else if errno, ok := errnos[word]; ok && f.action == fail {
			f.err = errno
		} else {
			return nil, fmt.Errorf("fault %q: %q is neither a moment nor a known error of fail", line, word)
		}
	}
	if f.action == hang && f.at == during {
		return nil, fmt.Errorf("fault %q: an operation hangs before or after", line)
	}
	return f, nil
}

// matches reports whether an operation on name has the wanted name and pattern.
func matches(wantOp, pattern, op, name string) bool {
	if wantOp != "any" && wantOp != op {
		return false
	}
	ok, _ := path.Match(pattern, name)
	return ok || pattern == ""
}

// hits counts a matching operation and reports whether the fault is due.
func (f *fault) hits(op, name string) bool {
	if !matches(f.op, f.pattern, op, name) {
		return false
	}
	f.seen++
	return f.seen == f.first || f.repeat && f.seen > f.first
}
