// Package hostsdir reads and checks the hosts.toml files and certificates of registries. They lie
// in a directory like containerd's /etc/containerd/certs.d.
//
// The directory belongs to the user. The package owns a temporary directory while containerd's code
// reads a copy of files that are not regular.
//
// Its invariant: every read has a limit, and ends when the context ends.
//
// The surprising rule: a hosts.toml of which containerd would ignore a part, with only a log line,
// is an error here.
package hostsdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"

	"github.com/tank-snapshotter/tank/internal/errclass"
	"github.com/tank-snapshotter/tank/internal/userfile"
)

// MaxFileSize bounds the bytes of a hosts.toml, a certificate or a key.
const MaxFileSize = 1 << 20

// Find returns the directory below hostsDir with the hosts.toml and the certificates of a registry,
// by containerd's rules, or "" if there is none.
//
// Class: errdefs.ErrInternal if the file system fails.
func Find(hostsDir, registry string) (string, error) {
	if hostsDir == "" {
		return "", nil
	}
	dir, err := config.HostDirFromRoot(hostsDir)(registry)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	return dir, errclass.Ensure(err)
}

// Files are the files of one registry in a directory that containerd's code may read. That code
// opens files without a limit and blocks on pipes. Dir is therefore the user's own directory only
// if all files are regular and not too large, and otherwise a copy.
type Files struct {
	Dir  string // "": the registry has no files
	TOML []byte // the content of hosts.toml; nil: there is none
	made string // the directory to remove; "": none
}

// Read reads and checks the files of a registry below the directory root. The caller calls Remove,
// also after an error.
//
// Classes: errdefs.ErrInvalidArgument for files that cannot be used; ErrInternal or
// ErrResourceExhausted if the file system fails; the error of the context.
func Read(ctx context.Context, root, registry string) (h Files, err error) {
	defer func() { err = errclass.Ensure(err) }()
	if h.Dir, err = Find(root, registry); h.Dir == "" || err != nil {
		return h, err
	}
	file := filepath.Join(h.Dir, "hosts.toml")
	h.TOML, err = userfile.ReadFile(ctx, file, MaxFileSize)
	if errors.Is(err, fs.ErrNotExist) {
		if _, e := os.Lstat(file); errors.Is(e, fs.ErrNotExist) { // and not a link to a missing file
			err = nil
		}
	}
	if err != nil {
		return h, err
	}
	if err := Validate(h.TOML); err != nil {
		return h, fmt.Errorf("file %s: %w", file, err)
	}
	copies := map[string][]byte{} // by path: the contents of files that are not regular
	if h.TOML != nil && !regular(file) {
		copies[file] = h.TOML
	}
	for _, name := range certificates(h.Dir, h.TOML) {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(h.Dir, name)
		}
		if regular(path) {
			if fi, err := os.Stat(path); err == nil && fi.Size() > MaxFileSize {
				return h, fmt.Errorf("file %s: more than %d bytes: %w", path, MaxFileSize, errdefs.ErrInvalidArgument)
			}
			continue
		}
		data, err := userfile.ReadFile(ctx, path, MaxFileSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue // containerd's code reports it
		}
		if err != nil {
			return h, err
		}
		copies[name] = data
	}
	if len(copies) == 0 {
		return h, nil
	}
	return h, h.materialize(file, copies)
}

// regular reports whether a path leads to a regular file.
func regular(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular()
}

// certificates returns the paths of the certificates and keys that containerd's code may read:
// those in hosts.toml, and those in its directory, which containerd uses if hosts.toml is missing
// or wrong.
func certificates(dir string, hosts []byte) (names []string) {
	var doc map[string]any
	if len(hosts) > 0 && toml.Unmarshal(hosts, &doc) == nil {
		_ = eachCertificate(doc, func(name string) error {
			if name != "" {
				names = append(names, name)
			}
			return nil
		})
	}
	for _, pattern := range []string{"*.crt", "*.cert", "*.key"} {
		beside, _ := filepath.Glob(filepath.Join(escapeGlob(dir), pattern))
		for _, path := range beside {
			names = append(names, filepath.Base(path))
		}
	}
	return names
}

var globMeta = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`)

// escapeGlob returns a pattern that matches only path.
func escapeGlob(path string) string { return globMeta.Replace(path) }

// materialize makes a directory to which only this user has access. It has the copies, under the
// names of their files, and symbolic links to all other files of the user's directory.
func (h *Files) materialize(hostsFile string, copies map[string][]byte) error {
	made, err := os.MkdirTemp("", "tank-hosts-")
	if err != nil {
		return err
	}
	user, text := h.Dir, string(h.TOML)
	h.Dir, h.made = made, made
	entries, err := os.ReadDir(user)
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(user)
	if err != nil {
		return err
	}
	delete(copies, hostsFile)
	n := 0
	for name, data := range copies {
		n++
		path := filepath.Join(made, fmt.Sprintf("%d.copy", n))
		if name == filepath.Base(name) {
			path = filepath.Join(made, name)
		} else if text, err = replacePath(text, name, path); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	}
	if h.TOML != nil {
		if err := os.WriteFile(filepath.Join(made, "hosts.toml"), []byte(text), 0o600); err != nil {
			return err
		}
	}
	for _, e := range entries {
		err := os.Symlink(filepath.Join(absolute, e.Name()), filepath.Join(made, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// replacePath replaces a path in the strings of a TOML document.
func replacePath(text, from, to string) (string, error) {
	replaced := text
	for _, quote := range []string{`"`, `'`} {
		replaced = strings.ReplaceAll(replaced, quote+from+quote, quote+to+quote)
	}
	if replaced == text {
		return "", fmt.Errorf("certificate %q: the path of a pipe must be written without escapes: %w", from,
			errdefs.ErrInvalidArgument)
	}
	return replaced, nil
}

// Remove removes the directory with the copies, if there is one.
//
// Class: errdefs.ErrInternal.
func (h *Files) Remove() error {
	if h.made == "" {
		return nil
	}
	return errclass.Ensure(os.RemoveAll(h.made))
}
