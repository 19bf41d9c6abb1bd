package auth

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

var alice = Credential{Username: "alice", Password: "se:cret"}

func encoded(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// utf16le encodes s as some shells on Windows do.
func utf16le(s string) []byte {
	data := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(s)) {
		data = append(data, byte(u), byte(u>>8))
	}
	return data
}

// TestD25DockerConfig checks that a credential is used for exactly its registry.
func TestD25DockerConfig(t *testing.T) {
	bin := t.TempDir()
	helper := func(name, script string) {
		if err := os.WriteFile(filepath.Join(bin, "docker-credential-"+name), []byte("#!/bin/sh\n"+script),
			0o755); err != nil {
			t.Fatal(err)
		}
	}
	helper("echo", `read server || true; printf '{"ServerURL":"x","Username":"%s","Secret":"pw"}' "$server"`)
	helper("token", `echo '{"Username":"<token>","Secret":"refresh"}'`)
	helper("none", `echo "credentials not found in native keychain"; exit 1`)
	helper("broken", `echo "secret things"; exit 1`)
	helper("noise", `echo "secret things"`)
	helper("silent", "")
	helper("endless", `while :; do echo `+strings.Repeat("a", 99)+`; done`)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))

	up := Credential{Username: "u", Password: "p:q"}
	auth := `{"auths":{%q:{"auth":"` + encoded("u:p:q") + `"}}}`
	for _, tc := range []struct {
		testName, config, host string
		want                   Credential
		ok                     bool
	}{
		{"host", fmt.Sprintf(auth, "r.example.com"), "r.example.com", up, true},
		{"port", fmt.Sprintf(auth, "r.example.com:5000"), "r.example.com:5000", up, true},
		{"other port", fmt.Sprintf(auth, "r.example.com:5000"), "r.example.com", Credential{}, true},
		{"other host", fmt.Sprintf(auth, "r.example.com"), "x.r.example.com", Credential{}, true},
		{"suffix", fmt.Sprintf(auth, "example.com"), "r.example.com", Credential{}, true},
		{"suffix without dot", fmt.Sprintf(auth, "example.com"), "evilexample.com", Credential{}, true},
		{"prefix", fmt.Sprintf(auth, "r.example.com"), "r.example.com.evil.net", Credential{}, true},
		{"address", fmt.Sprintf(auth, "https://r.example.com/v1/"), "r.example.com", up, true},
		{"address with a path", fmt.Sprintf(auth, "https://r.example.com/team/repo"), "r.example.com", Credential{},
			true},
		{"hub", fmt.Sprintf(auth, "https://index.docker.io/v1/"), "docker.io", up, true},
		{"hub, its API", fmt.Sprintf(auth, "https://index.docker.io/v1/"), "registry-1.docker.io", up, true},
		{"hub, short", fmt.Sprintf(auth, "docker.io"), "docker.io", up, true},
		{"not the hub", fmt.Sprintf(auth, "https://index.docker.io/v1/"), "auth.docker.io", Credential{}, true},
		{"exact wins", `{"auths":{"https://h":{"username":"b","password":"c"},"h":{"username":"u","password":"p:q"}}}`,
			"h", up, true},
		{"unicode host", fmt.Sprintf(auth, "exampl\u0435.com"), "example.com", Credential{}, true},
		{"members", `{"auths":{"h":{"username":"u","password":"p:q"}}}`, "h", up, true},
		{"identity token", `{"auths":{"h":{"auth":"` + encoded("u:") + `","identitytoken":"i"}}}`, "h",
			Credential{Username: "u", IdentityToken: "i"}, true},
		{"registry token", `{"auths":{"h":{"registrytoken":"r"}}}`, "h", Credential{RegistryToken: "r"}, true},
		{"without padding", `{"auths":{"h":{"auth":"` + strings.TrimRight(encoded("u:p:q"), "=") + `"}}}`, "h", up,
			true},
		{"empty file", "", "h", Credential{}, true},
		{"blank file", " \r\n", "h", Credential{}, true},
		{"null", "null\n", "h", Credential{}, true},
		{"null members", `{"auths":null,"credHelpers":null,"credsStore":null}`, "h", Credential{}, true},
		{"null entry", `{"auths":{"h":null}}`, "h", Credential{}, true},
		{"only a mark", "\xef\xbb\xbf", "h", Credential{}, true},
		{"mark", "\xef\xbb\xbf" + fmt.Sprintf(auth, "h"), "h", up, true},
		{"UTF-16", string(utf16le(fmt.Sprintf(auth, "h"))), "h", up, true},
		{"UTF-16, odd", string(utf16le(fmt.Sprintf(auth, "h"))) + "\n", "h", up, true},
		{"something behind it", fmt.Sprintf(auth, "h") + "\n}", "h", up, true},
		{"spaces in base64",
			`{"auths":{"h":{"auth":" ` + encoded("u:p:q")[:4] + ` \t\r\n` + encoded("u:p:q")[4:] + `\n"}}}`,
			"h", up, true},
		{"line ends in the string",
			`{"auths":{"h":{"auth":"` + encoded("u:p:q")[:4] + "\r\n" + encoded("u:p:q")[4:] + "\n" +
				`"}}}`, "h", up, true},
		{"a quote and line ends", `{"x":"\"","auths":{"h":{"auth":"` + encoded("u:p:q") + "\n" + `"}}}`, "h", up, true},
		{"line end behind the password", `{"auths":{"h":{"auth":"` + encoded("u:p:q\r\n") + `"}}}`, "h", up, true},
		{"base64 for addresses",
			`{"auths":{"h":{"auth":"` + base64.URLEncoding.EncodeToString([]byte("u:\xff\xfe\xfd")) +
				`"}}}`, "h",
			Credential{Username: "u", Password: "\xff\xfe\xfd"}, true},
		{"trailing slash", fmt.Sprintf(auth, "h/"), "h", up, true},
		{"address, trailing slash", fmt.Sprintf(auth, "https://h/"), "h", up, true},
		{"API version", fmt.Sprintf(auth, "http://h:5000/v2/"), "h:5000", up, true},
		{"API version without scheme", fmt.Sprintf(auth, "h/v1"), "h", up, true},
		{"only an identity token", `{"auths":{"h":{"identitytoken":"i"}}}`, "h", Credential{IdentityToken: "i"}, true},
		{"token beside nonsense", `{"auths":{"h":{"auth":"!","registrytoken":"r"}}}`, "h",
			Credential{RegistryToken: "r"},
			true},
		{"token beside a name", `{"auths":{"h":{"auth":"` + encoded("u") + `","identitytoken":"i"}}}`, "h",
			Credential{IdentityToken: "i"}, true},
		{"not base64", `{"auths":{"h":{"auth":"!"}}}`, "h", Credential{}, false},
		{"no colon", `{"auths":{"h":{"auth":"` + encoded("secret things") + `"}}}`, "h", Credential{}, false},
		{"not JSON", `{"auths":secret things}`, "h", Credential{}, false},
		{"empty object", `{}`, "h", Credential{}, true},
		{"helper", `{"credHelpers":{"h":"echo"}}`, "h", Credential{Username: "h", Password: "pw"}, true},
		{"helper for the hub", `{"credHelpers":{"docker.io":"echo"}}`, "docker.io",
			Credential{Username: "https://index.docker.io/v1/", Password: "pw"}, true},
		{"helper of another", `{"credHelpers":{"g":"echo"}}`, "h", Credential{}, true},
		{"store", `{"credsStore":"echo"}`, "h", Credential{Username: "h", Password: "pw"}, true},
		{"store with token", `{"credsStore":"token"}`, "h", Credential{IdentityToken: "refresh"}, true},
		{"store knows nobody", `{"credsStore":"none","auths":{"h":{"username":"u","password":"p:q"}}}`, "h", up, true},
		{"store of another machine", `{"credsStore":"desktop.exe"}`, "h", Credential{}, false},
		{"failing store", `{"credsStore":"broken","auths":{"h":{"username":"u","password":"p:q"}}}`, "h", up, false},
		{"failing helper", `{"credHelpers":{"h":"broken"},"auths":{"h":{"username":"u","password":"p:q"}}}`, "h", up,
			false},
		{"empty answer", `{"credsStore":"silent"}`, "h", Credential{}, false},
		{"helper knows nobody", `{"credHelpers":{"h":"none"},"auths":{"h":{"username":"u"}}}`, "h", Credential{}, true},
		{"helper is missing", `{"credHelpers":{"h":"missing"}}`, "h", Credential{}, false},
		{"helper fails", `{"credHelpers":{"h":"broken"}}`, "h", Credential{}, false},
		{"helper talks", `{"credHelpers":{"h":"noise"}}`, "h", Credential{}, false},
		{"helper talks on", `{"credHelpers":{"h":"endless"}}`, "h", Credential{}, false},
		{"helper is a path", `{"credHelpers":{"h":"../x"}}`, "h", Credential{}, false},
	} {
		t.Run(tc.testName, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(tc.config), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := DockerConfig(file)(t.Context(), tc.host)
			if (err == nil) != tc.ok || got != tc.want {
				t.Fatalf("got %v, %v", got, err)
			}
			if err != nil && (strings.Contains(err.Error(), "secret things") || !errdefs.IsFailedPrecondition(err)) {
				t.Error(err)
			}
		})
	}
}

func TestDockerConfigPath(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", "")
	find := DockerConfig("")
	if c, err := find(t.Context(), "h"); err != nil || c != (Credential{}) {
		t.Fatal(c, err)
	}
	write := func(dir, user string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"),
			fmt.Appendf(nil, `{"auths":{"h":{"username":%q}}}`, user), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, ".docker"), "home")
	if c, err := find(t.Context(), "h"); err != nil || c.Username != "home" {
		t.Fatal(c, err)
	}
	other := filepath.Join(dir, "other")
	write(other, "variable")
	t.Setenv("DOCKER_CONFIG", other)
	if c, err := find(t.Context(), "h"); err != nil || c.Username != "variable" {
		t.Fatal(c, err)
	}
	if c, err := DockerConfig(filepath.Join(dir, "none"))(t.Context(), "h"); err != nil || c != (Credential{}) {
		t.Fatal(c, err)
	}
}

func TestLogin(t *testing.T) {
	find := Login("docker.io", alice, Login("h:1", Credential{Username: "b"}, nil))
	for host, want := range map[string]string{"docker.io": "alice", "registry-1.docker.io": "alice", "h:1": "b",
		"h": ""} {
		if c, err := find(t.Context(), host); err != nil || c.Username != want {
			t.Error(host, c, err)
		}
	}
}

// TestD24CredentialsDoNotPrint checks that no verb of fmt prints a secret.
func TestD24CredentialsDoNotPrint(t *testing.T) {
	c := Credential{Username: "alice", Password: "hush", IdentityToken: "hush", RegistryToken: "hush"}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		if s := fmt.Sprintf(verb, c) + fmt.Sprintf(verb, &c) +
			fmt.Sprintf(verb, struct{ C Credential }{c}); strings.Contains(s, "hush") ||
			strings.Contains(s, "68757368") {
			t.Errorf("%s: %s", verb, s)
		}
	}
}

func FuzzDockerConfig(f *testing.F) {
	for _, s := range []string{
		`{"auths":{"h":{"auth":"dTpw"}}}`, `{"auths":{"https://index.docker.io/v1/":{"identitytoken":"x"}}}`,
		`{"auths":{"h":{"auth":"!"}},"credsStore":"x"}`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseDockerConfig(data)
		if err != nil {
			if !errdefs.IsFailedPrecondition(err) {
				t.Fatal(err)
			}
			return
		}
		for key, entry := range c.Auths {
			cred, err := entry.decode()
			if err != nil && (cred != (Credential{}) || !errdefs.IsFailedPrecondition(err)) {
				t.Fatal(cred, err)
			}
			if found, ok := match(c.Auths, keyHost(key)); keyHost(key) != "" && !ok {
				t.Fatal(key, found)
			}
		}
	})
}
