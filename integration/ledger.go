package integration

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// Run is a line of docs/reliability.jsonl. Tank's package internal/ledger explains its fields and reads it.
type Run struct {
	Proof    string           `json:"proof"`
	Part     string           `json:"part,omitempty"`
	Range    string           `json:"range,omitempty"`
	Count    int64            `json:"count"`
	Failures int64            `json:"failures"`
	Also     map[string]int64 `json:"also,omitempty"`
	FS       string           `json:"fs,omitempty"`
	Commit   string           `json:"commit"`
	Code     string           `json:"code"`
	Date     string           `json:"date"`
	Seconds  int64            `json:"seconds"`
}

// Record logs a run of a proof. If TANK_LEDGER is set, it also appends the run to that file, with the code that
// TANK_LEDGER_CODE names.
func Record(t testing.TB, r Run, began time.Time) {
	t.Helper()
	r.Date, r.Seconds = time.Now().UTC().Format(time.DateOnly), int64(time.Since(began).Seconds())
	r.Commit, r.Code, _ = strings.Cut(os.Getenv("TANK_LEDGER_CODE"), " ")
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", line)
	name := os.Getenv("TANK_LEDGER")
	if name == "" {
		return
	}
	if r.Code == "" {
		t.Fatal("TANK_LEDGER is set and TANK_LEDGER_CODE is not: the line would not name the code")
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err == nil {
		_, err = f.Write(append(line, '\n'))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Errorf("record a run: %v", err)
	}
}
