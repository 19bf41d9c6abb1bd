// Command reliability adds up the runs of the proofs and writes the table of docs/reliability.md.
//
// It owns the part of docs/reliability.md between its two marks, and reads docs/reliability.jsonl,
// the ledger of runs (package internal/ledger).
//
// Its invariant: a number in the table is the sum of lines of the ledger that name the storage code
// of the working tree, without counting a seed twice. The runs of earlier code are shown apart.
//
// A surprising rule: the storage code is identified by a hash of its Go files without comments and
// tests, so a better comment does not make earlier runs worthless, and no commit is needed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/tank-snapshotter/tank/internal/ledger"
)

const (
	ledgerFile = "docs/reliability.jsonl"
	tableFile  = "docs/reliability.md"
	usage      = `usage: reliability code | table | fuzz TIME [PATTERN]
  code   print the commit and the hash of the storage code, the value of TANK_LEDGER_CODE
  table  write the table of docs/reliability.md from docs/reliability.jsonl
  fuzz   run each fuzz target that matches PATTERN for TIME, and record the executions
Run it in the top directory of the repository.`
)

func main() {
	args := append(os.Args[1:], "", "", "") // missing arguments are empty
	var err error
	switch command, n := args[0], len(os.Args)-1; {
	case command == "code" && n == 1:
		err = printCode()
	case command == "table" && n == 1:
		err = writeTable()
	case command == "fuzz" && (n == 2 || n == 3):
		err = fuzz(args[1], args[2])
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "reliability:", err)
		os.Exit(1)
	}
}

func printCode() error {
	code, err := codeHash(".")
	if err != nil {
		return err
	}
	fmt.Println(commit(), code)
	return nil
}

// commit names the commit of the working tree, with -dirty if files differ from it, or is "unknown".
func commit() string {
	args := []string{"describe", "--always", "--dirty", "--exclude", "*"}
	b, err := exec.CommandContext(context.Background(), "git", args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

func writeTable() error {
	code, err := codeHash(".")
	if err != nil {
		return err
	}
	runs, err := ledger.Read(ledgerFile)
	if err != nil {
		return err
	}
	table, err := tableOf(runs, code)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(tableFile)
	if err != nil {
		return err
	}
	changed, err := replaceBetween(string(text), table)
	if err != nil {
		return err
	}
	return os.WriteFile(tableFile, []byte(changed), 0o644)
}

// The marks around the part of docs/reliability.md that this program writes.
const (
	begin = "<!-- written by `make reliability` -->\n"
	end   = "<!-- end of what `make reliability` writes -->\n"
)

func replaceBetween(text, table string) (string, error) {
	before, rest, ok := strings.Cut(text, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return "", fmt.Errorf("%s lacks its marks", tableFile)
	}
	return before + begin + "\n" + table + "\n" + end + after, nil
}
