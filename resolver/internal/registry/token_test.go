package registry

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestD18TokenAnswers checks which answers have a valid token, and its life.
func TestD18TokenAnswers(t *testing.T) {
	big := strings.Repeat("a", maxToken+1)
	for _, tc := range []struct {
		in   string
		life time.Duration
		ok   bool
	}{
		{`{"token":"t"}`, time.Minute, true},
		{`{"access_token":"t"}`, time.Minute, true},
		{`{"token":"t","expires_in":300}`, 5 * time.Minute, true},
		{`{"token":"t","expires_in":0}`, 0, true},
		{`{"token":"t","expires_in":-1}`, 0, true},
		{`{"token":"t","expires_in":1e12}`, maxExpiry, true},
		{`{"token":"t","expires_in":1e400}`, 0, false},
		{`{"token":"t\r\nX: y"}`, 0, false},
		{`{"token":"a b"}`, 0, false},
		{`{"token":"ä"}`, 0, false},
		{`{"token":""}`, 0, false},
		{`{}`, 0, false},
		{`[]`, 0, false},
		{`<html>`, 0, false},
		{`{"token":"` + big + `"}`, 0, false},
	} {
		token, life, err := readToken([]byte(tc.in))
		if (err == nil) != tc.ok || life != tc.life || strings.Contains(fmt.Sprint(err), "aaa") {
			t.Errorf("%.60s: %.10q, %v, %v", tc.in, token, life, err)
		}
	}
}

// TestTokenOnce checks that only one of several callers asks the token server.
func TestTokenOnce(t *testing.T) {
	c := NewTokenCache()
	var asked atomic.Int32
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			token, _, err := c.token(t.Context(), tokenKey{scope: "s"}, func() (string, time.Duration, error) {
				time.Sleep(time.Millisecond)
				return fmt.Sprint(asked.Add(1)), time.Minute, nil
			})
			if token != "1" || err != nil {
				t.Error(token, err)
			}
		})
	}
	group.Wait()
	for i := range 2 * maxEntries {
		if _, _, err := c.token(t.Context(), tokenKey{scope: fmt.Sprint(i)},
			func() (string, time.Duration, error) { return "t", 0, nil }); err != nil {
			t.Fatal(err)
		}
		c.setRequirement(repositoryKey{repository: fmt.Sprint(i)}, requirement{})
	}
	if len(c.tokens) > maxEntries || len(c.requirements) > maxEntries {
		t.Errorf("%d tokens, %d demands", len(c.tokens), len(c.requirements))
	}
}

// TestSkew checks that a token is not used in the last part of its life.
func TestSkew(t *testing.T) {
	c := NewTokenCache()
	asked := 0
	get := func(life time.Duration) {
		_, _, err := c.token(t.Context(), tokenKey{},
			func() (string, time.Duration, error) { asked++; return "t", life, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	get(time.Minute)
	if left := time.Until(c.tokens[tokenKey{}].until); left > 51*time.Second || left < 45*time.Second {
		t.Error(left)
	}
	get(time.Minute)
	c.tokens[tokenKey{}].until = time.Now().Add(-time.Second)
	get(2 * time.Second)
	if left := time.Until(c.tokens[tokenKey{}].until); left > 1500*time.Millisecond || asked != 2 {
		t.Error(left, asked)
	}
}
