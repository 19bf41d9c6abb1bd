// Package auth finds the credentials with which a registry knows its user.
//
// It reads Docker's config.json and runs credential helpers; it owns nothing on disk. Its invariant: no error, log line
// or formatted value contains a secret. The surprising rule: an error of a Source does not end a pull, because the image
// may be public. The pull continues with the credential that came with the error, and the error is reported if the
// registry then refuses.
package auth

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/tank-snapshotter/tank/internal/cause"
)

// Credential is what a registry knows its user by. The zero value is anonymous.
type Credential struct {
	Username string
	Password string
	// IdentityToken is an OAuth2 refresh token: the token server gives access tokens for it.
	IdentityToken string
	// RegistryToken is an access token that is sent as it is, to the registry alone.
	RegistryToken string
}

// Format keeps every verb of fmt from printing a secret.
func (c Credential) Format(s fmt.State, _ rune) {
	if c == (Credential{}) {
		fmt.Fprint(s, "anonymous")
		return
	}
	fmt.Fprintf(s, "credential of %q", c.Username)
}

// Identity tells credentials apart without holding them.
func (c Credential) Identity() string {
	if c == (Credential{}) {
		return ""
	}
	h := sha256.New()
	for _, s := range []string{c.Username, c.Password, c.IdentityToken, c.RegistryToken} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Source finds the credential for a registry, host or host:port exactly as references and hosts.toml name it; Docker Hub is docker.io.
// It is called only after a registry has asked for credentials.
//
// An error does not end a pull, because the image may be public: the registry is asked with the credential that is
// returned beside the error, usually the anonymous one. Options.Warn gets the error, and so does the caller if the
// registry then refuses.
type Source func(ctx context.Context, host string) (Credential, error)

// Login answers with c for the registry host, and with what next answers for all others; nil next knows nobody.
func Login(host string, c Credential, next Source) Source {
	host = CanonicalHost(host)
	return func(ctx context.Context, asked string) (Credential, error) {
		if strings.EqualFold(CanonicalHost(asked), host) {
			return c, nil
		}
		if next == nil {
			return Credential{}, nil
		}
		return next(ctx, asked)
	}
}

// CanonicalHost gives the many names of Docker Hub the one that references have.
func CanonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// Cache remembers what a Source answered, because a credential helper is slow and may ask its user.
type Cache struct {
	source Source
	warn   func(context.Context, string) // of a fault, once

	mu     sync.Mutex             // guards what follows
	known  map[string]*cacheEntry // by host
	failed map[string]error       // by host: what the last question ended with
	warned map[string]bool        // by the text of a fault
}

// NewCache makes an empty cache. A nil ask makes every credential anonymous; warn is called once for each fault of ask.
func NewCache(ask Source, warn func(context.Context, string)) *Cache {
	return &Cache{source: ask, warn: warn}
}

type cacheEntry struct {
	sem   chan struct{} // held by the one who asks
	cred  Credential
	until time.Time
}

// credentialAge bounds how long an answer is believed: helpers hand out passwords that expire.
const credentialAge = 5 * time.Minute

// Get returns the credential for a host, from the cache or from the source. Its error is the context's.
func (w *Cache) Get(ctx context.Context, host string) (Credential, error) {
	if w.source == nil {
		return Credential{}, nil
	}
	host = CanonicalHost(host)
	w.mu.Lock()
	if w.known == nil {
		w.known = map[string]*cacheEntry{}
	}
	a := w.known[host]
	if a == nil {
		a = &cacheEntry{sem: make(chan struct{}, 1)}
		w.known[host] = a
	}
	w.mu.Unlock()
	select {
	case a.sem <- struct{}{}:
		defer func() { <-a.sem }()
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
	if time.Now().Before(a.until) {
		return a.cred, nil
	}
	cred, err := w.source(ctx, host)
	if ctx.Err() != nil {
		return Credential{}, ctx.Err()
	}
	for _, s := range []string{cred.Username, cred.Password, cred.IdentityToken, cred.RegistryToken} {
		if strings.ContainsAny(s, "\r\n\x00") {
			cred, err = Credential{}, errors.New("control characters in the credential")
		}
	}
	w.record(ctx, host, err)
	a.cred, a.until = cred, time.Now().Add(credentialAge)
	return cred, nil
}

// note keeps what a question for host's credential ended with, and warns of a fault once, whichever hosts meet it.
func (w *Cache) record(ctx context.Context, host string, err error) {
	w.mu.Lock()
	if w.failed == nil {
		w.failed, w.warned = map[string]error{}, map[string]bool{}
	}
	w.failed[host] = err
	again := err == nil || w.warned[err.Error()]
	if !again {
		w.warned[err.Error()] = true
	}
	w.mu.Unlock()
	if !again {
		w.warn(ctx, fmt.Sprintf("credentials of %s: %v; going on without", host, err))
	}
}

// Explain adds to a refusal by host that its credentials could not be looked up.
func (w *Cache) Explain(host string, refusal error) error {
	if !errdefs.IsUnauthorized(refusal) && !errdefs.IsPermissionDenied(refusal) {
		return refusal
	}
	w.mu.Lock()
	failed := w.failed[CanonicalHost(host)]
	w.mu.Unlock()
	if failed == nil {
		return refusal
	}
	refusal = fmt.Errorf("%w (credentials of %s: %v)", refusal, host, failed) // no class of failed's: the registry refused
	return cause.Mark(refusal, cause.CredentialStore, host)
}

// Forget makes the next get ask again, because host did not accept what the last one answered.
func (w *Cache) Forget(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.known, CanonicalHost(host))
}
