package registrytest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// TokenServer issues bearer tokens and checks them for a Registry.
type TokenServer struct {
	// URL is the realm.
	URL string
	// Fault sees every request first. nil: none. Set it before the first request.
	Fault Fault
	// Users are the names and passwords that get a token. Empty: everyone gets one.
	Users map[string]string
	// Refresh are the valid refresh tokens.
	Refresh map[string]bool
	// ExpiresIn is the member expires_in of the answers, as JSON. "": they have none.
	ExpiresIn string
	// Realm is the realm of the challenges. "": URL.
	Realm string

	server *httptest.Server

	mu       sync.Mutex
	good     map[string]string // user by token
	issued   int
	requests []TokenRequest
}

// TokenRequest is a request that a TokenServer received.
type TokenRequest struct {
	Method        string
	Authorization string
	Form          url.Values // of the query or the body
}

// NewTokenServer starts a server that stops at the end of the test.
func NewTokenServer(tb testing.TB) *TokenServer {
	s := &TokenServer{good: map[string]string{}}
	s.server = httptest.NewServer(s)
	s.URL = s.server.URL + "/token"
	tb.Cleanup(s.server.Close)
	return s
}

// Requests returns the requests so far.
func (s *TokenServer) Requests() []TokenRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]TokenRequest(nil), s.requests...)
}

// Revoke makes all tokens so far invalid.
func (s *TokenServer) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.good)
}

// ServeHTTP handles a request for a token.
func (s *TokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	s.requests = append(s.requests, TokenRequest{r.Method, r.Header.Get("Authorization"), r.Form})
	s.mu.Unlock()
	if s.Fault != nil && s.Fault(w, r) {
		return
	}
	user, password, _ := r.BasicAuth()
	switch {
	case r.Method == http.MethodPost && s.Refresh[r.Form.Get("refresh_token")]:
		user = "refreshed"
	case r.Method == http.MethodPost, len(s.Users) > 0 && (s.Users[user] == "" || s.Users[user] != password):
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.issued++
	token := fmt.Sprintf("token-%d", s.issued)
	s.good[token] = user
	answer := map[string]any{"token": token}
	if r.Method == http.MethodPost {
		answer = map[string]any{"access_token": token}
	}
	if s.ExpiresIn != "" {
		answer["expires_in"] = json.RawMessage(s.ExpiresIn)
	}
	_, _ = w.Write(JSON(answer))
}

// Guard refuses requests without a valid token of the server. It is for Registry.Guard.
func (s *TokenServer) Guard(w http.ResponseWriter, r *http.Request) bool {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	_, ok := s.good[token]
	s.mu.Unlock()
	if ok {
		return false
	}
	realm := s.Realm
	if realm == "" {
		realm = s.URL
	}
	w.Header().Add("WWW-Authenticate",
		fmt.Sprintf(`Bearer realm=%q,service="registry, the",scope="repository:x:pull"`, realm))
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

// Basic is a Guard that accepts one user, with basic authentication.
func Basic(user, password string) Fault {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			return false
		}
		w.Header().Add("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
}
