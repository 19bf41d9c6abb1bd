package registry

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// FuzzReadToken: a token that readToken accepts fits into a header, its life is bounded, and no error
// repeats the answer.
func FuzzReadToken(f *testing.F) {
	f.Add([]byte(`{"token":"abc","expires_in":300}`))
	f.Add([]byte(`{"access_token":"abc","expires_in":-1e300}`))
	f.Add([]byte(`{"token":"a\nb"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		token, life, err := readToken(data)
		if err != nil {
			if !errdefs.IsDataLoss(err) && !errdefs.IsUnauthorized(err) ||
				len(data) > 60 && strings.Contains(err.Error(), string(data)) {
				t.Errorf("%q: %v", data, err)
			}
			return
		}
		bad := token == "" || len(token) > maxToken || strings.ContainsAny(token, "\r\n \x00")
		if bad || life < 0 || life > maxExpiry {
			t.Errorf("%q: %q for %v", data, token, life)
		}
	})
}
