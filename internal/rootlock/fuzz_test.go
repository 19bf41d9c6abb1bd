package rootlock

import "testing"

// FuzzParseAccess: what parseAccess accepts, String writes so that parseAccess reads the same access.
func FuzzParseAccess(f *testing.F) {
	for _, s := range []string{"root", "user 1000", "user namespace, uids 0:1:6, gids 0:1:6", ", uids ", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAccess(s)
		if err != nil {
			return
		}
		if again, err := parseAccess(a.String()); err != nil || again.String() != a.String() {
			t.Errorf("%q: %q, then %q, %v", s, a, again, err)
		}
	})
}
