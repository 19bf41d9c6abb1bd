// Package auth finds the credentials of the user of a registry.
//
// It reads Docker's config.json and runs credential helpers; it owns nothing on disk.
//
// Its invariant: no error, log line or formatted value contains a secret.
//
// The surprising rule: an error of a Source does not end a pull, because the image may be public.
// The pull continues with the credential that came with the error, and reports the error if the
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

// Credential is the credential of a user of a registry. The zero value is anonymous.
type Credential struct {
	Username string
	Password string
	// IdentityToken is an OAuth2 refresh token, which a token server exchanges for access tokens.
	IdentityToken string
	// RegistryToken is an access token that is sent to the registry unchanged, and to no token
	// server.
	RegistryToken string
}

// Format implements fmt.Formatter, so that no verb prints a secret.
func (c Credential) Format(s fmt.State, _ rune) {
	if c == (Credential{}) {
		fmt.Fprint(s, "anonymous")
		return
	}
	fmt.Fprintf(s, "credential of %q", c.Username)
}

// Identity returns a hash by which caches tell credentials apart.
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

// Source returns the credential for a registry. The host, with a port if it has one, is exactly as
// references and hosts.toml name it; Docker Hub is docker.io. A Source is called only after a
// registry has asked for credentials.
//
// An error does not end a pull, because the image may be public: the registry is asked with the
// credential that came with the error, usually the anonymous one. Options.Warn receives the error,
// and the caller does so as well if the registry then refuses.
type Source func(ctx context.Context, host string) (Credential, error)

// Login returns a Source that returns c for the registry host, and asks next about all others. A
// nil next means that the others are anonymous.
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

// CanonicalHost returns the name of a host in references: docker.io for the several names of Docker
// Hub, and host itself for all others.
func CanonicalHost(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// Cache caches the credentials of a Source, because a credential helper is slow and may ask its
// user. Make it with NewCache.
type Cache struct {
	source Source
	warn   func(context.Context, string)

	mu      sync.Mutex             // guards the fields below
	entries map[string]*cacheEntry // by host
	failed  map[string]error       // by host: the error of the last lookup
	warned  map[string]bool        // by the text of an error
}

// NewCache returns an empty cache. If source is nil, all credentials are anonymous. warn is called
// once for each error of source, by any goroutine.
func NewCache(source Source, warn func(context.Context, string)) *Cache {
	return &Cache{source: source, warn: warn}
}

// cacheEntry is the credential of one host.
type cacheEntry struct {
	sem   chan struct{} // of capacity one; held during a lookup
	cred  Credential
	until time.Time // when it expires
}

// credentialAge is the time after which a credential is looked up again: some helpers return
// passwords that expire.
const credentialAge = 5 * time.Minute

// Get returns the credential for a host, from the cache or from the source. It returns an error
// only if the context has ended.
func (c *Cache) Get(ctx context.Context, host string) (Credential, error) {
	if c.source == nil {
		return Credential{}, nil
	}
	host = CanonicalHost(host)
	c.mu.Lock()
	if c.entries == nil {
		c.entries = map[string]*cacheEntry{}
	}
	a := c.entries[host]
	if a == nil {
		a = &cacheEntry{sem: make(chan struct{}, 1)}
		c.entries[host] = a
	}
	c.mu.Unlock()
	select {
	case a.sem <- struct{}{}:
		defer func() { <-a.sem }()
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
	if time.Now().Before(a.until) {
		return a.cred, nil
	}
	cred, err := c.source(ctx, host)
	if ctx.Err() != nil {
		return Credential{}, ctx.Err()
	}
	for _, s := range []string{cred.Username, cred.Password, cred.IdentityToken, cred.RegistryToken} {
		if strings.ContainsAny(s, "\r\n\x00") {
			cred, err = Credential{}, errors.New("control characters in the credential")
		}
	}
	c.record(ctx, host, err)
	a.cred, a.until = cred, time.Now().Add(credentialAge)
	return cred, nil
}

// record keeps the result of a lookup for host. It warns of each error once, however many hosts it
// affects.
func (c *Cache) record(ctx context.Context, host string, err error) {
	c.mu.Lock()
	if c.failed == nil {
		c.failed, c.warned = map[string]error{}, map[string]bool{}
	}
	c.failed[host] = err
	known := err == nil || c.warned[err.Error()]
	if !known {
		c.warned[err.Error()] = true
	}
	c.mu.Unlock()
	if !known {
		c.warn(ctx, fmt.Sprintf("credentials of %s: %v; continuing without", host, err))
	}
}

// Explain adds to a refusal by host that its credentials could not be looked up, if that is so.
func (c *Cache) Explain(host string, refusal error) error {
	if !errdefs.IsUnauthorized(refusal) && !errdefs.IsPermissionDenied(refusal) {
		return refusal
	}
	c.mu.Lock()
	failed := c.failed[CanonicalHost(host)]
	c.mu.Unlock()
	if failed == nil {
		return refusal
	}
	// The class stays that of the refusal.
	refusal = fmt.Errorf("%w (credentials of %s: %v)", refusal, host, failed)
	return cause.Mark(refusal, cause.CredentialStore, host)
}

// Forget makes the next Get look up the credential known, because the host refused it.
func (c *Cache) Forget(host string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, CanonicalHost(host))
}
