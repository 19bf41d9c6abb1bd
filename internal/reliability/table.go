package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tank-snapshotter/tank/internal/ledger"
)

// tableOf returns the table in Markdown: what runs on this code showed, and what those on earlier
// code did.
func tableOf(runs []ledger.Run, code string) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "The storage code has the hash `%s`.\n\n", code)
	b.WriteString("| promise | command | wanted | runs on this code | failures | commits | earlier code |\n")
	b.WriteString("|---|---|---|---|---|---|---|\n")
	known := map[string]bool{}
	for _, r := range rows {
		known[r.proof] = true
		var now, before []ledger.Run
		for _, run := range runs {
			switch {
			case run.Proof != r.proof || r.fs != "" && run.FS != r.fs:
			case run.Code == code:
				now = append(now, run)
			default:
				before = append(before, run)
			}
		}
		s, err := add(now)
		if err != nil {
			return "", err
		}
		old, err := add(before)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "| %s | `%s` | %s | %s | %d | %s | %s |\n", r.promise, r.command, r.wanted(), r.reached(s),
			s.failures, commitsOf(now), r.earlier(old))
	}
	for _, run := range runs {
		if !known[run.Proof] {
			return "", fmt.Errorf("the ledger has runs of %q, which has no row", run.Proof)
		}
	}
	return b.String(), nil
}

// sum is what a list of runs adds up to.
type sum struct {
	count, failures int64
	also            map[string]int64
}

// add adds runs up. Of runs of the same part and code whose ranges overlap, those that are longer
// count, and the others add only their failures.
func add(runs []ledger.Run) (sum, error) {
	s := sum{also: map[string]int64{}}
	type span struct{ first, last int64 }
	counted := map[string][]span{}
	runs = slices.Clone(runs)
	slices.SortStableFunc(runs, func(a, b ledger.Run) int { return int(b.Count - a.Count) })
	for _, r := range runs {
		s.failures += r.Failures
		first, last, err := r.Bounds()
		if err != nil {
			return s, err
		}
		if r.Range != "" {
			key := strings.Join([]string{r.Proof, r.Part, r.FS, r.Code}, "\x00")
			if slices.ContainsFunc(counted[key], func(o span) bool { return first <= o.last && o.first <= last }) {
				continue
			}
			counted[key] = append(counted[key], span{first, last})
		}
		s.count += r.Count
		for name, n := range r.Also {
			s.also[name] += n
		}
	}
	return s, nil
}

func (r row) wanted() string {
	switch {
	case r.want != "":
		return r.want
	case r.also != "":
		return fmt.Sprintf("%s %s of %s %s", grouped(r.goal), r.unit, grouped(r.alsoMin), r.also)
	}
	return grouped(r.goal) + " " + r.unit
}

// reached says how much was run, in bold if it is what is wanted and nothing failed.
func (r row) reached(s sum) string {
	if s.count == 0 {
		return "none yet"
	}
	text := r.said(s)
	if s.count >= r.goal && s.also[r.also] >= r.alsoMin && s.failures == 0 {
		return "**" + text + "**"
	}
	return text
}

func (r row) said(s sum) string {
	text := grouped(s.count) + " " + r.unit
	for _, name := range slices.Sorted(maps.Keys(s.also)) {
		text += fmt.Sprintf(", %s %s", grouped(s.also[name]), name)
	}
	return text
}

func (r row) earlier(s sum) string {
	if s.count == 0 {
		return ""
	}
	return fmt.Sprintf("%s, %d failed", r.said(s), s.failures)
}

// commitsOf lists the commits of the runs, in the order of the ledger.
func commitsOf(runs []ledger.Run) string {
	var commits []string
	for _, r := range runs {
		if c := "`" + r.Commit + "`"; !slices.Contains(commits, c) {
			commits = append(commits, c)
		}
	}
	return strings.Join(commits, " ")
}

// grouped writes a number with commas.
func grouped(n int64) string {
	text := fmt.Sprint(n)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
