package registry

import (
	"net/http"
	"strings"
)

// challenge is one authentication scheme that a registry offers (RFC 9110 section 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// maxChallenges bounds the number of challenges of one answer, and maxChallenge the bytes of one
// header line.
const (
	maxChallenges = 16
	maxChallenge  = 16 << 10
)

// challenges parses every WWW-Authenticate line. It ignores the rest of a line after a syntax
// error, and a challenge that has a parameter twice, because two parsers might read it differently.
func challenges(h http.Header) []challenge {
	var all []challenge
	for _, line := range h.Values("WWW-Authenticate") {
		if len(line) <= maxChallenge {
			all = append(all, parseChallenges(line)...)
		}
		if len(all) >= maxChallenges {
			return all[:maxChallenges]
		}
	}
	return all
}

// parseChallenges parses one line: challenges separated by commas, each a scheme with parameters
// that are separated by commas as well.
func parseChallenges(s string) []challenge {
	var all []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		scheme, rest := token(s)
		if scheme == "" {
			return all
		}
		c := challenge{scheme: strings.ToLower(scheme), params: map[string]string{}}
		if rest != "" && rest[0] != ' ' && rest[0] != '\t' && rest[0] != ',' {
			return all
		}
		var ok, twice bool
		if s, twice, ok = c.read(strings.TrimLeft(rest, " \t")); !ok {
			return all
		}
		if !twice {
			all = append(all, c)
		}
	}
}

// read parses the parameters at the beginning of s and returns the rest, which begins with the next
// challenge. twice reports a repeated parameter; ok is false after a syntax error.
func (c *challenge) read(s string) (rest string, twice, ok bool) {
	// A scheme may have a token68 instead of parameters. It is skipped.
	if i := strings.IndexByte(s, ','); i >= 0 && isToken68(strings.TrimRight(s[:i], " \t")) && !next(s[i+1:]) {
		return s[i:], false, true
	} else if i < 0 && isToken68(strings.TrimRight(s, " \t")) {
		return "", false, true
	}
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return "", twice, true
		}
		if !next(s) {
			return s, twice, true
		}
		name, after := token(s)
		after = strings.TrimLeft(after, " \t")[1:] // the equals sign
		var value string
		if value, s, ok = parameterValue(strings.TrimLeft(after, " \t")); !ok {
			return "", twice, false
		}
		name = strings.ToLower(name)
		if _, is := c.params[name]; is {
			twice = true
		}
		c.params[name] = value
		if s = strings.TrimLeft(s, " \t"); s != "" && s[0] != ',' {
			return "", twice, false
		}
	}
}

// next reports whether s begins with a parameter and not with a scheme.
func next(s string) bool {
	name, rest := token(strings.TrimLeft(s, " \t,"))
	rest = strings.TrimLeft(rest, " \t")
	return name != "" && strings.HasPrefix(rest, "=")
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func isToken68(s string) bool {
	body := strings.TrimRight(s, "=")
	if body == "" {
		return false
	}
	for i := range len(body) {
		c := body[i]
		if !isAlphanumeric(c) && strings.IndexByte("-._~+/", c) < 0 {
			return false
		}
	}
	return true
}

// token splits a token (RFC 9110 section 5.6.2) off s.
func token(s string) (string, string) {
	i := 0
	for i < len(s) {
		c := s[i]
		if !isAlphanumeric(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			break
		}
		i++
	}
	return s[:i], s[i:]
}

// parameterValue splits a token or a quoted string off s. Some registries send URLs without quotes,
// so an unquoted value ends at a comma or a space. A value with control characters is a syntax
// error.
func parameterValue(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], !strings.ContainsFunc(s[:i], isControl) && !strings.Contains(s[:i], `"`)
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case isControl(rune(c)):
			return "", "", false
		case c == '\\':
			if i++; i == len(s) || isControl(rune(s[i])) {
				return "", "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }
