package registry

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

func TestParseChallenges(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"`,
			`bearer{realm=https://a/t scope=repository:x:pull,push service=s}`},
		{`bearer  Realm = "a" , service=b`, `bearer{realm=a service=b}`},
		{`Basic realm="a \"quoted\" \\ one"`, `basic{realm=a "quoted" \ one}`},
		{`Basic realm="x", Bearer realm="y",service="z"`, `basic{realm=x} bearer{realm=y service=z}`},
		{`Negotiate, Basic realm=x`, `negotiate{} basic{realm=x}`},
		{`Negotiate YII=, Basic realm=x`, `negotiate{} basic{realm=x}`},
		{`Negotiate YII=`, `negotiate{}`},
		{`Basic`, `basic{}`},
		{`,, Basic realm=x,,`, `basic{realm=x}`},
		{`Bearer realm="a",realm="b"`, ``},
		{`Bearer realm="a`, ``},
		{`Bearer realm="a" x`, ``},
		{"Bearer realm=\"a\r\nX: y\"", ``},
		{`Basic realm="x", Bearer realm="a`, `basic{realm=x}`},
		{``, ``},
		{`"`, ``},
	} {
		if got := show(challenges(http.Header{"Www-Authenticate": {tc.in}})); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.in, got, tc.want)
		}
	}
	many := http.Header{"Www-Authenticate": {strings.Repeat("Basic realm=x,", 1000),
		`Bearer realm="` + strings.Repeat("a", maxChallenge) + `"`}}
	if n := len(challenges(many)); n > maxChallenges {
		t.Errorf("%d challenges", n)
	}
}

func show(all []challenge) string {
	var out []string
	for _, c := range all {
		var params []string
		for _, name := range slices.Sorted(maps.Keys(c.params)) {
			params = append(params, name+"="+c.params[name])
		}
		out = append(out, c.scheme+"{"+strings.Join(params, " ")+"}")
	}
	return strings.Join(out, " ")
}

func FuzzChallenges(f *testing.F) {
	for _, s := range []string{`Bearer realm="https://a/t",service="s"`, `Negotiate YII=, Basic realm=x`,
		`Bearer realm="\"`, `=`, `a =b, c`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range challenges(http.Header{"Www-Authenticate": {s}}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Fatalf("scheme %q", c.scheme)
			}
			for name, value := range c.params {
				if name == "" || strings.ContainsFunc(name+value, isControl) {
					t.Fatalf("%q=%q", name, value)
				}
			}
			if u, err := realmURL(registrytest.MustURL("https://r.example.com"), c.params["realm"]); err == nil &&
				u.Scheme != "https" {
				t.Fatal(u)
			}
		}
	})
}
