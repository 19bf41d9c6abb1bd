package containerdconfig

import "fmt"

// Finding is one thing in a containerd config that does not fit Tank, or that is worth knowing.
type Finding struct {
	// Note is true if nothing has to be changed.
	Note bool
	// Where is the place: a section such as [proxy_plugins.tank], or a file. "" for the config as a whole.
	Where string
	// Problem is what is wrong and what follows from it: a predicate of Where, or a whole sentence if Where is "".
	Problem string
	// Remedy is what to do about the problem, in sentences. "" if Problem makes that clear.
	Remedy string
}

// String returns the finding as text on one line. The text of a note begins with "Note: ".
func (f Finding) String() string {
	text := f.Problem + "."
	if f.Where != "" {
		text = f.Where + " " + text
	}
	if f.Remedy != "" {
		text += " " + f.Remedy
	}
	if f.Note {
		text = "Note: " + text
	}
	return text
}

// findings collects the findings of a check. Its methods return the new finding, so that a remedy can be added.
type findings []*Finding

func (f *findings) wrong(where, problem string, args ...any) *Finding {
	return f.add(&Finding{Where: where, Problem: fmt.Sprintf(problem, args...)})
}

func (f *findings) note(where, problem string, args ...any) *Finding {
	return f.add(&Finding{Note: true, Where: where, Problem: fmt.Sprintf(problem, args...)})
}

func (f *findings) add(found *Finding) *Finding {
	*f = append(*f, found)
	return found
}

func (f *Finding) remedy(format string, args ...any) { f.Remedy = fmt.Sprintf(format, args...) }

// all returns copies of the findings.
func (f findings) all() []Finding {
	list := make([]Finding, len(f))
	for i, found := range f {
		list[i] = *found
	}
	return list
}
