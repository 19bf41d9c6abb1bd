// Package unpack turns the tar stream of one image layer into one directory, in the form of overlay's upper
// directories.
//
// On disk it owns only the directory that it is given, by descriptor, and only until Extract returns. It knows no
// store, no database, and not where the bytes come from. Package tarlayer decides what the entries mean, and package
// dirwriter makes the directory.
//
// Its invariant: whatever the stream holds, nothing outside that directory is created, changed, opened or read, and the
// entries that Extract returns are those that a walk finds in the directory afterwards.
//
// The surprising rule: after an error the directory holds anything. The caller has to remove it.
package unpack

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/snapshot/unpack/internal/dirwriter"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// Options adapt an extraction to the process and to the mounts that will show the layer.
type Options struct {
	// Unprivileged is for a process that is an ordinary user: everything belongs to that user, setuid bits are
	// cleared, and device nodes and security.* and trusted.* attributes are left out. It implies UserXattr. false:
	// the process has root's rights.
	Unprivileged bool
	// Confined is for a process that is root only in a user namespace, or has no CAP_SYS_ADMIN: device nodes,
	// trusted.* attributes and those security.* attributes that are no file capabilities are left out. It implies
	// UserXattr. false: the process has all of root's rights.
	Confined bool
	// UIDs and GIDs are the ids that the process's user namespace has, as idmap.Process returns them. Others cannot be
	// set: they are an error, and an ordinary user's ACLs that name them are left out. nil: all ids.
	UIDs, GIDs idmap.Map
	// UserXattr writes overlay's own attributes as user.overlay.*, for mounts with the option userxattr. false:
	// trusted.overlay.*.
	UserXattr bool
	// Limits bound what a layer may hold. Zero fields: the defaults.
	Limits tarlayer.Limits
	// Memory is called before an extraction keeps so many bytes more until its result is forgotten. It may wait. An
	// error ends the extraction. nil: there is enough.
	Memory func(ctx context.Context, bytes int64) error
	// Room is called before so many bytes are written to the file system. An error ends the extraction. nil: there is
	// enough.
	Room func(bytes int64) error
	// Aside opens an empty directory beside the one that is extracted to. It takes the files that an entry of the tar
	// removes although they may have other paths above some parent. It is called at most once, when the first such file
	// comes up. nil: such files are removed.
	Aside func() (*os.File, error)
	// Descriptors is how many an extraction may have open at once, beside the directory and the stream. 0, and at most:
	// 200, more of which make nothing faster; at least: 5.
	Descriptors int

	withoutOpenat2 bool // for tests
}

// Result is the layer and how it was written.
type Result struct {
	tarlayer.Result
	// PlainMarks reports that some whiteouts or opaque directories do not have overlay's form, because the file
	// system refused that. Overlay must not show such a directory.
	PlainMarks bool
	// DroppedXattrs are the names, sorted, of extended attributes that were left out because the file system does not
	// have them.
	DroppedXattrs []string
}

// Extract unpacks an uncompressed tar stream into dir, an open and empty directory, in the form of overlay's upper
// directories, and reads r to its end. Bytes after the end of the archive are read and ignored. It reads pieces of 4 to
// 256 KiB. After an error the directory holds anything and has to be removed. opts may be nil.
//
// Errors are of class stream.ErrInvalidLayer if the content is to blame, and of class errdefs.ErrFailedPrecondition if
// dir is not empty or the user namespace does not map an id. Errors of r, of the context and of the file system are
// wrapped.
func Extract(ctx context.Context, dir *os.File, r io.Reader, opts *Options) (*Result, error) {
	if opts == nil {
		opts = &Options{}
	}
	defer runtime.KeepAlive(dir)
	w, err := dirwriter.New(int(dir.Fd()), dirwriter.Options{
		UserXattr:      opts.UserXattr || opts.Unprivileged || opts.Confined,
		Aside:          opts.Aside,
		Descriptors:    opts.Descriptors,
		WithoutOpenat2: opts.withoutOpenat2,
	})
	if err != nil {
		return nil, fmt.Errorf("layer directory %q: %w", dir.Name(), err)
	}
	defer w.Close()
	layer, err := tarlayer.Read(ctx, r, w, &tarlayer.Options{
		Unprivileged: opts.Unprivileged,
		UID:          uint32(os.Geteuid()),
		GID:          uint32(os.Getegid()),
		Confined:     opts.Confined,
		UIDs:         opts.UIDs,
		GIDs:         opts.GIDs,
		Limits:       opts.Limits,
		Memory:       opts.Memory,
		Room:         opts.Room,
	})
	if err != nil {
		return nil, err
	}
	return &Result{Result: *layer, PlainMarks: w.Plain(), DroppedXattrs: w.Dropped()}, nil
}
