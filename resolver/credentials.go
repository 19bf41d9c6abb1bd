package resolver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
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

// identity tells credentials apart without holding them.
func (c Credential) identity() string {
	if c == (Credential{}) {
		return ""
	}
	h := sha256.New()
	for _, s := range []string{c.Username, c.Password, c.IdentityToken, c.RegistryToken} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Credentials finds the credential for a registry, host or host:port exactly as references and hosts.toml name it; Docker Hub is docker.io.
// It is called when a registry asks who is there, and not before. An error ends the request.
type Credentials func(ctx context.Context, host string) (Credential, error)

// Login answers with c for the registry host, and with what next answers for all others; nil next knows nobody.
func Login(host string, c Credential, next Credentials) Credentials {
	host = hubName(host)
	return func(ctx context.Context, asked string) (Credential, error) {
		if strings.EqualFold(hubName(asked), host) {
			return c, nil
		}
		if next == nil {
			return Credential{}, nil
		}
		return next(ctx, asked)
	}
}

// hubName gives the many names of Docker Hub the one that references have.
func hubName(host string) string {
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}

// wallet remembers what Credentials answered, because a credential helper is slow and may ask its user.
type wallet struct {
	ask Credentials

	mu    sync.Mutex
	known map[string]*answer // by host
}

type answer struct {
	turn  chan struct{} // held by the one who asks
	cred  Credential
	until time.Time
}

// credentialAge bounds how long an answer is believed: helpers hand out passwords that expire.
const credentialAge = 5 * time.Minute

func (w *wallet) get(ctx context.Context, host string) (Credential, error) {
	if w.ask == nil {
		return Credential{}, nil
	}
	host = hubName(host)
	w.mu.Lock()
	if w.known == nil {
		w.known = map[string]*answer{}
	}
	a := w.known[host]
	if a == nil {
		a = &answer{turn: make(chan struct{}, 1)}
		w.known[host] = a
	}
	w.mu.Unlock()
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return Credential{}, ctx.Err()
	}
	if time.Now().Before(a.until) {
		return a.cred, nil
	}
	cred, err := w.ask(ctx, host)
	if err != nil {
		if ctx.Err() != nil {
			return Credential{}, ctx.Err()
		}
		return Credential{}, fmt.Errorf("credentials of %s: %v: %w", host, err, errdefs.ErrUnauthenticated)
	}
	for _, s := range []string{cred.Username, cred.Password, cred.IdentityToken, cred.RegistryToken} {
		if strings.ContainsAny(s, "\r\n\x00") {
			return Credential{}, fmt.Errorf("credentials of %s: control characters: %w", host, errdefs.ErrUnauthenticated)
		}
	}
	a.cred, a.until = cred, time.Now().Add(credentialAge)
	return cred, nil
}

// forget makes the next get ask again, because host did not accept what the last one answered.
func (w *wallet) forget(host string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.known, hubName(host))
}
