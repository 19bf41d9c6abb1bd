package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank/internal/ledger"
)

// TestCodeHash: code changes the hash; comments, layout, tests and other directories do not.
func TestCodeHash(t *testing.T) {
	dir := t.TempDir()
	for _, d := range storage {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name, text string) {
		t.Helper()
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("content/a.go", "package content\n\nfunc f() int { return 1 }\n")
	first, err := codeHash(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, name, text string
		same             bool
	}{
		{"a comment", "content/a.go", "package content\n\n// f\nfunc f() int {\n\t// one\n\treturn 1\n}\n", true},
		{"a test", "content/a_test.go", "package content\n\nvar x int\n", true},
		{"a command", "cmd/a.go", "package main\n\nvar x int\n", true},
		{"what is outside", "internal/ledger/a.go", "package ledger\n\nvar x int\n", true},
		{"code", "content/a.go", "package content\n\nfunc f() int { return 2 }\n", false},
		{"the code of before", "content/a.go", "package content\n\nfunc f() int { return 1 }\n", true},
		{"a file more", "content/b.go", "package content\n", false},
	} {
		put(c.name, c.text)
		now, err := codeHash(dir)
		if err != nil || (now == first) != c.same {
			t.Errorf("%s: the hash is %s after %s, %v", c.what, now, first, err)
		}
	}
}

func TestTable(t *testing.T) {
	runs := []ledger.Run{
		{Proof: "restarts", Range: "1-300", Count: 300, Commit: "a", Code: "now"},
		{Proof: "restarts", Range: "1-100", Count: 100, Commit: "a", Code: "now"}, // the same seeds once more
		{Proof: "restarts", Range: "301-500", Count: 200, Commit: "b", Code: "now"},
		{Proof: "restarts", Range: "1-7", Count: 7, Failures: 1, Commit: "c", Code: "before"},
		{Proof: "cuts", FS: "xfs", Range: "1-1000", Count: 1000, Failures: 2, Commit: "a", Code: "now"},
		{Proof: "states", Count: 1_000_000, Also: map[string]int64{"histories": 10}, Commit: "a", Code: "now"},
	}
	text, err := tableOf(runs, "now")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| 500 restarts | **500 restarts** | 0 | `a` `b` | 7 restarts, 1 failed |",
		"| `make cuts FS=xfs` | 1,000 cuts | 1,000 cuts | 2 | `a` |  |",
		"| `make cuts FS=ext4` | 1,000 cuts | none yet | 0 |",
		"| 1,000,000 states, 10 histories | 0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the table lacks %s:\n%s", want, text)
		}
	}
	if _, err := tableOf([]ledger.Run{{Proof: "kill"}}, "now"); err == nil {
		t.Error("a run without a row is accepted")
	}
}

func TestReplaceBetween(t *testing.T) {
	got, err := replaceBetween("a\n"+begin+"old\n"+end+"b\n", "new\n")
	if want := "a\n" + begin + "\nnew\n\n" + end + "b\n"; got != want || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := replaceBetween("a\n"+begin, "new"); err == nil {
		t.Error("a missing mark is accepted")
	}
}

// TestLedger: the ledger in the repository can be read and added up.
func TestLedger(t *testing.T) {
	runs, err := ledger.Read(filepath.Join("../..", ledgerFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tableOf(runs, ""); err != nil {
		t.Fatal(err)
	}
}
