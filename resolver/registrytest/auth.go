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

// TokenServer gives out bearer tokens and tells a Registry which ones are good.
type TokenServer struct {
	// URL is the realm.
	URL string
	// Fault, when set, sees every request first. Set it before the first request.
	Fault Fault
	// Users are those that may have a token, by name. Empty: anybody may, whatever they say.
	Users map[string]string
	// Refresh are the refresh tokens that are good for a token.
	Refresh map[string]bool
	// ExpiresIn is what the answers say, as JSON; empty says nothing.
	ExpiresIn string
	// Realm is what challenges name. Empty: URL.
	Realm string

	server *httptest.Server

	mu       sync.Mutex
	good     map[string]string // the tokens, with who got them
	issued   int
	requests []TokenRequest
}

// TokenRequest is what a TokenServer was asked.
type TokenRequest struct {
	Method        string
	Authorization string
	Form          url.Values // of the query or the body
}

// NewTokenServer starts one that ends with the test.
func NewTokenServer(tb testing.TB) *TokenServer {
	s := &TokenServer{good: map[string]string{}}
	s.server = httptest.NewServer(s)
	s.URL = s.server.URL + "/token"
	tb.Cleanup(s.server.Close)
	return s
}

// Requests are the requests so far.
func (s *TokenServer) Requests() []TokenRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]TokenRequest(nil), s.requests...)
}

// Revoke makes every token so far worthless.
func (s *TokenServer) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.good)
}

// ServeHTTP answers one request for a token.
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

// Guard refuses what has none of the server's tokens. It is a Registry's Guard.
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

// Basic is the Guard of a registry that knows one user.
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
