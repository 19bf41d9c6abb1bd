package errclasstest

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestExported(t *testing.T) {
	dir := t.TempDir()
	src := `package p

func Open() (*S, error) { return nil, nil }
func Size() int { return 0 }
func hidden() error { return nil }
func Nothing() {}
type S[T any] struct{}
func (s *S[T]) Close() (err error) { return nil }
type w struct{}
func (w) Write([]byte) (int, error) { return 0, nil }
func (w) flush() error { return nil }
`
	for name, text := range map[string]string{
		"p.go": src, "p_test.go": "package p\nfunc Test() error { return nil }\n", "x.txt": "?",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := exported(t, dir); !slices.Equal(got, []string{"Open", "S.Close", "w.Write"}) {
		t.Errorf("functions: %q", got)
	}
	Complete(t, dir, map[string]bool{"Open": true, "S.Close": true}, map[string]string{"w.Write": "never called"})
}
