package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec" //nolint:depguard // runs credential helpers, which handle no content
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/userfile"
)

const (
	maxDockerConfig = 4 << 20          // bytes of a config.json
	maxHelperAnswer = 64 << 10         // bytes that a credential helper may print
	helperTimeout   = 30 * time.Second // of one credential helper; some ask a cloud, but none should ask a person
)

// dockerConfig is the part of Docker's config.json that holds credentials.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	Auth          string `json:"auth"` // base64 of username:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// DockerConfig returns a Source that reads what "docker login" writes: the file at path, the helper
// that it names for a registry (credHelpers), or its credsStore. An empty path means
// $DOCKER_CONFIG/config.json or, without that variable, ~/.docker/config.json. Without the file,
// all credentials are anonymous. Every call reads the file, so that a login needs no restart.
//
// The name of a registry must match exactly. Of a URL such as https://host/v1/ only the host
// counts; Docker Hub's https://index.docker.io/v1/ is docker.io. Errors are of class
// errdefs.ErrFailedPrecondition and contain no secret. If a helper or the store fails, the Source
// returns the credential in auths along with the error.
func DockerConfig(path string) Source {
	return func(ctx context.Context, host string) (Credential, error) {
		file := path
		if file == "" {
			file = defaultDockerConfig()
		}
		if file == "" {
			return Credential{}, nil
		}
		c, err := readDockerConfig(ctx, file)
		if errors.Is(err, os.ErrNotExist) {
			return Credential{}, nil
		}
		if err != nil {
			return Credential{}, err
		}
		return c.find(ctx, CanonicalHost(host))
	}
}

func defaultDockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker", "config.json")
}

func readDockerConfig(ctx context.Context, file string) (*dockerConfig, error) {
	data, err := userfile.ReadFile(ctx, file, maxDockerConfig)
	switch {
	case err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrNotExist)):
		return nil, fmt.Errorf("docker config: %w", err)
	case err != nil:
		return nil, fmt.Errorf("docker config: %v: %w", err, errdefs.ErrFailedPrecondition)
	}
	c, err := parseDockerConfig(data)
	if err != nil {
		return nil, fmt.Errorf("docker config %s: %w", file, err)
	}
	return c, nil
}

// find asks the helper of the registry or, without one, the store, and then looks in auths. If a
// helper or the store fails, find returns its error along with the credential in auths.
func (c *dockerConfig) find(ctx context.Context, host string) (Credential, error) {
	name := c.CredsStore
	key, hasHelper := match(c.CredHelpers, host)
	if hasHelper {
		name = c.CredHelpers[key]
	}
	var failed error
	if name != "" {
		var cred Credential
		var found bool
		cred, found, failed = runHelper(ctx, name, serverURL(host), helperTimeout)
		if found || hasHelper && failed == nil {
			return cred, nil
		}
	}
	if key, ok := match(c.Auths, host); ok {
		cred, err := c.Auths[key].decode()
		if err != nil {
			err = fmt.Errorf("docker config: auths %q: %w", key, err)
		}
		return cred, errors.Join(failed, err)
	}
	return Credential{}, failed
}

// match returns the key of the entry for host: its name, or a URL with that host.
func match[V any](entries map[string]V, host string) (string, bool) {
	if _, ok := entries[host]; ok {
		return host, true
	}
	var keys []string
	for key := range entries {
		if strings.EqualFold(keyHost(key), host) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return "", false
	}
	return slices.Min(keys), true
}

// keyHost returns the registry of a key in config.json. A key with a path other than the version of
// an API is for a part of a registry, which Docker does not support, so it matches none.
func keyHost(key string) string {
	host := strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	host, path, _ := strings.Cut(host, "/")
	switch strings.TrimSuffix(path, "/") {
	case "", "v1", "v2":
		return CanonicalHost(host)
	}
	return ""
}

// serverURL returns the name under which helpers store the credential of host.
func serverURL(host string) string {
	if host == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// runHelper runs docker-credential-NAME. found is false if the helper has no credential for the
// server.
func runHelper(ctx context.Context, name, server string, timeout time.Duration) (
	cred Credential, found bool, err error,
) {
	fail := func(cause error) (Credential, bool, error) {
		return Credential{}, false, fmt.Errorf("credential helper docker-credential-%.100s: %w: %w",
			name, cause, errdefs.ErrFailedPrecondition)
	}
	if !helperName.MatchString(name) {
		return fail(errors.New("not a valid name"))
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(limited, "docker-credential-"+name, "get")
	cmd.Stdin = strings.NewReader(server)
	var out bounded
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second // a grandchild may keep the pipe open
	if err := cmd.Run(); err != nil {
		switch {
		case ctx.Err() != nil:
			return Credential{}, false, ctx.Err()
		case limited.Err() != nil:
			return fail(fmt.Errorf("no answer within %v", timeout))
		case errors.Is(err, exec.ErrNotFound):
			return fail(errors.New("not installed"))
		}
		// The protocol defines this text for a missing credential.
		if strings.Contains(string(out.data), "credentials not found in native keychain") {
			return Credential{}, false, nil
		}
		return fail(err)
	}
	var a struct{ Username, Secret string }
	if err := json.Unmarshal(out.data, &a); err != nil {
		return fail(errors.New("the answer is not JSON"))
	}
	if a.Username == "<token>" {
		return Credential{IdentityToken: a.Secret}, true, nil
	}
	return Credential{Username: a.Username, Password: a.Secret}, a.Username != "" || a.Secret != "", nil
}

// bounded is a buffer that fails when it gets too many bytes, which ends the program that writes to
// it.
type bounded struct{ data []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.data)+len(p) > maxHelperAnswer {
		return 0, io.ErrShortBuffer
	}
	b.data = append(b.data, p...)
	return len(p), nil
}
