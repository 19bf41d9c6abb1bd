package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrapMarkdown(t *testing.T) {
	word := strings.Repeat("w", 30)
	three := strings.Join([]string{word, word, word}, " ")
	for name, tc := range map[string]struct{ text, want string }{
		"narrow":      {"a b\n\n- c\n", "a b\n\n- c\n"},
		"paragraph":   {three + " " + word + "\nd\n", three + "\n" + word + "\nd\n"},
		"item":        {"- " + three + " " + word + "\n", "- " + three + "\n  " + word + "\n"},
		"number":      {"1. " + three + " " + word + "\n", "1. " + three + "\n   " + word + "\n"},
		"row":         {"| " + three + " " + word + " |\n", "| " + three + " " + word + " |\n"},
		"code":        {three + " `a " + word + "`\n", three + " `a " + word + "`\n"},
		"code before": {"`a b` " + three + " " + word + "\n", "`a b` " + three + "\n" + word + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := WrapMarkdown(tc.text); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// TestCompatibilityText: docs/compatibility.md has every line that `make matrix` writes, except the rows of results.
func TestCompatibilityText(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(moduleDir(), "..", "docs", "compatibility.md"))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, line := range strings.Split(string(b), "\n") {
		have[line] = true
	}
	for _, line := range strings.Split(compatibility(nil), "\n") {
		if !have[line] && !strings.Contains(line, "| not run ") {
			t.Errorf("docs/compatibility.md lacks the line %q", line)
		}
	}
}
