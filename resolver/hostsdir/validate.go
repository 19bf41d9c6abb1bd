package hostsdir

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// hostTable is the part of a hosts.toml that describes one host.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   *bool          `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// Validate checks the content of a hosts.toml. containerd only logs what it cannot decode, and
// continues without it: with another host, or without the CA and the headers that the user wants.
// Class: errdefs.ErrInvalidArgument. An empty file is valid.
func Validate(data []byte) error {
	var doc struct {
		hostTable
		Server string               `toml:"server"`
		Hosts  map[string]hostTable `toml:"host"`
	}
	if err := toml.Unmarshal(data, &doc); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, column := at.Position()
			return fmt.Errorf("line %d, column %d: %w: %w", line, column, err, errdefs.ErrInvalidArgument)
		}
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	err := doc.check(doc.Server)
	for address, table := range doc.Hosts {
		if e := table.check(address); e != nil {
			err = errors.Join(err, fmt.Errorf("host %.100q: %w", address, e))
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.ReplaceAll(err.Error(), "\n", "; "), errdefs.ErrInvalidArgument)
	}
	return nil
}

var capabilities = []string{"pull", "resolve", "push", "referrers"}

// check checks the values of one host that have a syntax of their own.
func (t hostTable) check(address string) error {
	if !strings.HasPrefix(address, "http") { // as containerd does
		address = "https://" + address
	}
	if _, err := url.Parse(address); err != nil {
		return fmt.Errorf("server %.100q is not a URL", address)
	}
	for _, c := range t.Capabilities {
		if !slices.Contains(capabilities, strings.ToLower(c)) {
			return fmt.Errorf("capability %.50q is not one of %s", c, strings.Join(capabilities, ", "))
		}
	}
	if t.CA != nil && !isStrings(t.CA) {
		return errors.New("ca is neither a string nor a list of strings")
	}
	if t.Client != nil && !isPairs(t.Client) {
		return errors.New("client is neither a string nor a list of strings or of pairs of strings")
	}
	for name, value := range t.Header {
		if !isStrings(value) {
			return fmt.Errorf("header %.50q is neither a string nor a list of strings", name)
		}
	}
	if t.DialTimeout != "" {
		if _, err := time.ParseDuration(t.DialTimeout); err != nil {
			return fmt.Errorf("dial_timeout %.50q is not a duration", t.DialTimeout)
		}
	}
	return nil
}

// isStrings reports whether v is a string or a list of strings.
func isStrings(v any) bool {
	if _, ok := v.(string); ok {
		return true
	}
	list, ok := v.([]any)
	return ok && !slices.ContainsFunc(list, func(v any) bool { _, is := v.(string); return !is })
}

// isPairs reports whether v is a string, or a list of strings and of pairs of strings.
func isPairs(v any) bool {
	list, ok := v.([]any)
	if !ok {
		return isStrings(v)
	}
	return !slices.ContainsFunc(list, func(v any) bool {
		pair, ok := v.([]any)
		return !isStrings(v) || ok && len(pair) != 2
	})
}
