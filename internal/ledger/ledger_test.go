package ledger

import (
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
)

func TestAppend(t *testing.T) {
	name := filepath.Join(t.TempDir(), "runs")
	t.Setenv(FileVariable, name)
	t.Setenv(CodeVariable, "abc 123")
	var both sync.WaitGroup
	for i := range 20 {
		both.Go(func() { Append(t, Run{Proof: "kills", Range: "1-5", Count: int64(i)}) })
	}
	both.Wait()
	runs, err := Read(name)
	if err != nil || len(runs) != 20 {
		t.Fatalf("%d runs, %v", len(runs), err)
	}
	r := runs[0]
	if r.Date == "" {
		t.Error("the line has no date")
	}
	r.Date, r.Count = "", 0
	if want := (Run{Proof: "kills", Range: "1-5", Commit: "abc", Code: "123"}); !reflect.DeepEqual(r, want) {
		t.Errorf("%+v", r)
	}
}

func TestReadRefuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "runs")
	for _, text := range []string{"{", `{"range":"5-1"}`, `{"range":"x"}`} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(name); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
	if runs, err := Read(name + ".missing"); err != nil || runs != nil {
		t.Errorf("a missing ledger: %v, %v", runs, err)
	}
}
