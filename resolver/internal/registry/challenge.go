package registry

import (
	"net/http"
	"strings"
)

// challenge is one way to authenticate that a registry offers (RFC 9110 section 11.6.1).
type challenge struct {
	scheme string // lower case
	params map[string]string
}

// maxChallenges bounds how many are looked at, and maxChallenge how long one header line may be.
const (
	maxChallenges = 16
	maxChallenge  = 16 << 10
)

// challenges reads every WWW-Authenticate line. What follows a fault in a line is left out, as is a challenge that names a parameter twice:
// two readers might take it for different things.
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

// parseChallenges reads one line: challenges separated by commas, each a scheme followed by parameters that are separated by commas too.
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

// read takes parameters from s as long as they are parameters, and returns what follows: the next challenge, or nothing.
func (c *challenge) read(s string) (rest string, twice, ok bool) {
	// A scheme may have a token68 in the place of parameters: of no use here, but what follows it is.
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

// next says whether s begins with a parameter, and not with a scheme.
func next(s string) bool {
	name, rest := token(strings.TrimLeft(s, " \t,"))
	rest = strings.TrimLeft(rest, " \t")
	return name != "" && strings.HasPrefix(rest, "=")
}

func isToken68(s string) bool {
	body := strings.TrimRight(s, "=")
	if body == "" {
		return false
	}
	for i := range len(body) {
		c := body[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~+/", c) >= 0) {
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
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			break
		}
		i++
	}
	return s[:i], s[i:]
}

// parameterValue splits a token or a quoted string off s. Registries write addresses without quotes, so that a value without them ends at a
// comma or a space. Control characters are no part of any.
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
