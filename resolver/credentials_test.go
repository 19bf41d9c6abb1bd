package resolver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
	"github.com/tank-snapshotter/tank/resolver/auth"
	"github.com/tank-snapshotter/tank/resolver/registrytest"
)

// TestFailingStore checks that a failing credential store is a warning, and is an error only if the
// registry requires credentials.
func TestFailingStore(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\necho 'error getting credentials: secret things'; exit 1\n"
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-locked"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, tc := range []struct {
		testName, config string
		names            string // what the warning and the error contain
		login            bool   // auths has the credential
	}{
		{"locked store", `{"credsStore":"locked"}`, "docker-credential-locked: exit status 1", false},
		{"store of another machine", `{"credsStore":"desktop.exe"}`, "docker-credential-desktop.exe: not installed",
			false},
		{"locked helper", `{"credHelpers":{"HOST":"locked"}}`, "docker-credential-locked: exit status 1", false},
		{"locked store, login in the file",
			`{"credsStore":"locked","auths":{"HOST":{"username":"alice","password":"se:cret"}}}`,
			"docker-credential-locked", true},
		{"broken file", `{"auths":secret things}`, "config.json: not the JSON", false},
		{"broken entry", `{"auths":{"HOST":{"auth":"!"}}}`, "auth is not base64", false},
		{"no file", "", "config.json: a directory", false},
	} {
		for _, private := range []bool{false, true} {
			t.Run(tc.testName, func(t *testing.T) {
				reg, tokens := guarded(t)
				if private {
					tokens.Users = map[string]string{"alice": "se:cret"}
				}
				file := filepath.Join(t.TempDir(), "config.json")
				config := strings.ReplaceAll(tc.config, "HOST", reg.Host)
				err := os.WriteFile(file, []byte(config), 0o600)
				if config == "" {
					err = errors.Join(os.Remove(file), os.Mkdir(file, 0o700))
				}
				if err != nil {
					t.Fatal(err)
				}
				var mu sync.Mutex
				var warnings []string
				r := newResolver(t, func(o *Options) {
					o.Credentials = auth.DockerConfig(file)
					o.Realms = map[string][]string{reg.Host: {registrytest.MustURL(tokens.URL).Host}}
					o.Warn = func(text string) {
						mu.Lock()
						defer mu.Unlock()
						warnings = append(warnings, text)
					}
				})
				_, err = pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
				switch {
				case !private || tc.login:
					if err != nil {
						t.Fatal(err)
					}
				case !errdefs.IsUnauthorized(err) || errdefs.IsFailedPrecondition(err) ||
					!cause.Is(err, cause.CredentialStore) ||
					!strings.Contains(err.Error(), tc.names):
					t.Errorf("%v does not name %s", err, tc.names)
				}
				if len(warnings) != 1 || !strings.Contains(warnings[0], tc.names) {
					t.Errorf("warnings %q", warnings)
				}
				for _, text := range append(warnings, errorText(err)) {
					if strings.Contains(text, "secret things") {
						t.Error(text)
					}
				}
			})
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestWarnOnce checks that a store that fails for several hosts is one warning, and that the
// refusal of a registry with basic authentication names it as well.
func TestWarnOnce(t *testing.T) {
	t.Parallel()
	var warnings []string
	r := newResolver(t, func(o *Options) {
		o.Credentials = func(context.Context, string) (auth.Credential, error) {
			return auth.Credential{}, errors.New("locked")
		}
		o.Warn = func(text string) { warnings = append(warnings, text) }
	})
	for range 2 {
		reg := registrytest.New(t)
		image(reg)
		reg.Guard = registrytest.Basic("alice", "se:cret")
		for range 2 {
			_, err := pull(t.Context(), r, newStore(t), reg.Host+"/x:1", nil)
			if !errdefs.IsUnauthorized(err) || !strings.Contains(err.Error(), "locked") {
				t.Fatal(err)
			}
		}
	}
	if len(warnings) != 1 {
		t.Errorf("%q", warnings)
	}
}
