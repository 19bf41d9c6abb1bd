// Package ledger records the runs of long tests, the proofs of docs/reliability.md.
//
// It owns no data of a root. A test appends a line of JSON to the file that TANK_LEDGER names,
// which is docs/reliability.jsonl when `make` started the test.
//
// Its invariant: a line is written once, at the end of a run, and names the code that ran. Failed
// runs are recorded as well.
//
// The surprising rule: the integration tests are a module of their own that imports nothing of
// Tank, so they write the same line with a few lines of code of their own.
package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Run is one line of the ledger.
type Run struct {
	// Proof is the name of a row of docs/reliability.md, such as "kills".
	Proof string `json:"proof"`
	// Part is what is counted apart within the proof, such as one fuzz target. Empty: nothing is.
	Part string `json:"part,omitempty"`
	// Range is "FIRST-LAST", the seeds or numbers that ran. Overlapping ranges of the same code count
	// once. Empty: the run has no seeds, so every run counts.
	Range string `json:"range,omitempty"`
	// Count is the number of cycles: kills, cuts, states, faults, executions.
	Count int64 `json:"count"`
	// Failures is how many of the cycles failed.
	Failures int64 `json:"failures"`
	// Also has further counts, which are added up, such as "histories".
	Also map[string]int64 `json:"also,omitempty"`
	// FS is the file system of the root: ext4, xfs, tmpfs.
	FS string `json:"fs,omitempty"`
	// Commit and Code name the code that ran. Append takes them from TANK_LEDGER_CODE.
	Commit string `json:"commit"`
	Code   string `json:"code"`
	// Date is the day of the run. Append sets it.
	Date string `json:"date"`
	// Seconds is how long the run took.
	Seconds int64 `json:"seconds"`
}

// The variables that `make` sets for a proof.
const (
	// FileVariable names the file to which a run is appended.
	FileVariable = "TANK_LEDGER"
	// CodeVariable has the commit and the hash of the storage code, with a space between them.
	CodeVariable = "TANK_LEDGER_CODE"
)

// Append logs the run. If TANK_LEDGER is set, it also appends the run to that file.
func Append(t testing.TB, r Run) {
	t.Helper()
	r.Date = time.Now().UTC().Format(time.DateOnly)
	r.Commit, r.Code, _ = strings.Cut(os.Getenv(CodeVariable), " ")
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", line)
	name := os.Getenv(FileVariable)
	if name == "" {
		return
	}
	if r.Code == "" {
		t.Fatalf("%s is set and %s is not: the line would not name the code", FileVariable, CodeVariable)
	}
	if err := appendLine(name, line); err != nil {
		t.Fatalf("record a run: %v", err)
	}
}

// Write appends a run to the file name. Its day is today.
func Write(name string, r Run) error {
	r.Date = time.Now().UTC().Format(time.DateOnly)
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return appendLine(name, line)
}

// appendLine writes the line in one call, so that tests at the same time do not mix their lines.
func appendLine(name string, line []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Read reads a ledger. A missing file is an empty ledger.
func Read(name string) ([]Run, error) {
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var runs []Run
	n := 0
	for line := range strings.Lines(string(b)) {
		n++
		if strings.TrimSpace(line) == "" {
			continue
		}
		var r Run
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", name, n, err)
		}
		if _, _, err := r.Bounds(); err != nil {
			return nil, fmt.Errorf("%s: line %d: %w", name, n, err)
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// Bounds returns the first and the last number of Range, or 0 and 0 if it is empty.
func (r Run) Bounds() (first, last int64, err error) {
	if r.Range == "" {
		return 0, 0, nil
	}
	if n, err := fmt.Sscanf(r.Range, "%d-%d", &first, &last); n != 2 || err != nil || first > last {
		return 0, 0, fmt.Errorf("range %q is not FIRST-LAST", r.Range)
	}
	return first, last, nil
}
