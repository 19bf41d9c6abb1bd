package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tank-snapshotter/tank/internal/ledger"
)

// target is one fuzz target.
type target struct{ dir, name string }

var fuzzFunc = regexp.MustCompile(`(?m)^func (Fuzz\w*)\(`)

// targets lists the fuzz targets of the product below a directory.
func targets(root string) (all []target, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (d.Name() == "integration" || strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range fuzzFunc.FindAllSubmatch(text, -1) {
			all = append(all, target{filepath.ToSlash(filepath.Dir(path)), string(m[1])})
		}
		return err
	})
	return all, err
}

// fuzz runs each target whose directory and name match a pattern for a time, as `go test -fuzztime` takes it, and
// records the executions. After a failure it goes on with the next target.
func fuzz(limit, pattern string) error {
	match, err := regexp.Compile(pattern)
	if err != nil {
		return err
	}
	code, err := codeHash(".")
	if err != nil {
		return err
	}
	all, err := targets(".")
	if err != nil {
		return err
	}
	var failed []string
	for _, t := range all {
		part := t.dir + "." + t.name
		if !match.MatchString(part) {
			continue
		}
		began := time.Now()
		run := ledger.Run{Proof: "fuzz", Part: part, Commit: commit(), Code: code}
		var err error
		if run.Count, err = t.run(limit); err != nil {
			run.Failures = 1
			failed = append(failed, part)
		}
		run.Seconds = int64(time.Since(began).Seconds())
		if err := ledger.Write(ledgerFile, run); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return nil
}

// run runs a target, prints its output, and returns how often it was executed.
func (t target) run(limit string) (executions int64, err error) {
	cmd := exec.CommandContext(context.Background(), "go", "test", "-run", "^$", "-fuzz", "^"+t.name+"$",
		"-fuzztime", limit, "./"+t.dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	executions, err = countExecutions(io.TeeReader(out, os.Stdout))
	return executions, errors.Join(err, cmd.Wait())
}

var execs = regexp.MustCompile(`\bexecs: (\d+) `)

// countExecutions returns the last number of executions that `go test -fuzz` has printed.
func countExecutions(r io.Reader) (n int64, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if m := execs.FindStringSubmatch(lines.Text()); m != nil {
			if n, err = strconv.ParseInt(m[1], 10, 64); err != nil {
				return 0, fmt.Errorf("output of go test: %w", err)
			}
		}
	}
	return n, lines.Err()
}
