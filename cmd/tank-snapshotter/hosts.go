package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// maxHostsFiles bounds what is sent of a hosts directory, in bytes.
const maxHostsFiles = 4 << 20

// readHostsFiles reads a hosts directory for a process that shall not open it: hosts.toml files and certificates, by
// path relative to it. One that is not there is an error only when the user named it.
func readHostsFiles(dir string, named bool) (map[string][]byte, error) {
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) && !named {
			return nil, nil
		}
		return nil, usageError{fmt.Errorf("--hosts-dir: %w", err)}
	}
	files, total := map[string][]byte{}, 0
	for _, pattern := range []string{"*/hosts.toml", "*/*.crt", "*/*.cert", "*/*.key", "*/*.pem"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, usageError{fmt.Errorf("--hosts-dir: %w", err)}
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				return nil, usageError{fmt.Errorf("--hosts-dir: %w", err)}
			}
			if total += len(data); total > maxHostsFiles {
				return nil, usageError{fmt.Errorf("--hosts-dir %s: more than %d bytes of files", dir, maxHostsFiles)}
			}
			rel, err := filepath.Rel(dir, name)
			if err != nil {
				return nil, usageError{fmt.Errorf("--hosts-dir: %w", err)}
			}
			files[rel] = data
		}
	}
	return files, nil
}
