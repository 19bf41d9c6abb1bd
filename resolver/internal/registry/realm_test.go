package registry

import (
	"net/netip"
	"net/url"
	"testing"
)

// TestD02Realms checks which realms are accepted, and which get credentials.
func TestD02Realms(t *testing.T) {
	for _, tc := range []struct {
		home, realm string
		ok, trusted bool
	}{
		{"https://r.example.com", "https://r.example.com/token", true, true},
		{"https://r.example.com:5000", "https://r.example.com:5000/token?x=y", true, true},
		{"https://r.example.com", "https://R.Example.COM:443/token", true, true},
		{"https://r.example.com", "https://auth.example.com/token", true, true}, // a self-hosted GitLab
		{"https://r.example.com", "https://example.com:8443/token", true, true},
		{"https://registry-1.docker.io", "https://auth.docker.io/token", true, true},
		{"https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true, true},
		{"https://r.example.com", "https://auth.example.net/token", true, false},
		{"https://r.example.com", "https://r.example.com.evil.net/token", true, false},
		{"https://r.example.com", "https://evilexample.com/token", true, false},
		{"https://one.github.io", "https://two.github.io/token", true, false},
		{"https://one.co.uk", "https://two.co.uk/token", true, false},
		{"https://registry", "https://auth/token", true, false},
		{"https://10.0.0.1", "https://10.0.0.1:8443/token", true, false},
		{"https://10.0.0.1", "https://10.0.0.2/token", true, false},
		{"https://r.example.com", "https://10.0.0.2/token", true, false},
		{"http://r.example.com", "http://r.example.com/token", true, true},
		{"http://r.example.com:80", "https://r.example.com/token", true, true},
		{"https://r.example.com", "http://r.example.com/token", true, true}, // with HTTPS
		{"https://r.example.com:5000", "http://R.example.com/token", true, true},
		{"https://r.example.com:5000", "http://r.example.com:5000/token", true, true},
		{"https://r.example.com", "http://r.example.com:5000/token", false, false},
		{"https://r.example.com", "http://auth.example.com/token", false, false},
		{"https://r.example.com", "https://169.254.169.254/", false, false},
		{"https://r.example.com", "https://[fe80::1]/", false, false},
		{"https://r.example.com", "https://[fd00:ec2::254]/", false, false},
		{"https://r.example.com", "https://[::]/", false, false},
		{"https://r.example.com", "https://[::ffff:169.254.169.254]/", false, false},
		{"https://r.example.com", "https://[64:ff9b::a9fe:a9fe]/", false, false},
		{"https://r.example.com", "https://0.0.0.0/", false, false},
		{"http://169.254.1.1", "http://169.254.1.1/token", true, true},
		{"http://169.254.1.1", "http://169.254.1.2/token", false, false},
		{"https://r.example.com", "file:///etc/passwd", false, false},
		{"https://r.example.com", "unix:///run/x", false, false},
		{"https://r.example.com", "https:opaque", false, false},
		{"https://r.example.com", "https://", false, false},
		{"https://r.example.com", "/token", false, false},
		{"https://r.example.com", "https://u:p@r.example.com/token", false, false},
		{"https://r.example.com", "https://r.example.com/\x7f", false, false},
		{"https://r.example.com", "", false, false},
	} {
		t.Run(tc.home+" "+tc.realm, func(t *testing.T) {
			home, err := url.Parse(tc.home)
			if err != nil {
				t.Fatal(err)
			}
			u, err := realmURL(home, tc.realm)
			if (err == nil) != tc.ok {
				t.Fatal(u, err)
			}
			if err == nil && u.Scheme != "https" && home.Scheme == "https" {
				t.Errorf("%s is not HTTPS", u)
			}
			if err == nil && trusted(home, u, nil) != tc.trusted {
				t.Errorf("trusted: %v, want %v", !tc.trusted, tc.trusted)
			}
			if err == nil && !trusted(home, u, []string{u.Host}) {
				t.Error("a configured realm is not trusted")
			}
		})
	}
}

// TestD02Addresses checks which addresses may be dialed.
func TestD02Addresses(t *testing.T) {
	for _, tc := range []struct {
		addr          string
		remote, local bool // allowed for a registry on another machine, and for one on this machine
	}{
		{"93.184.216.34", true, true},
		{"10.1.2.3", true, true},
		{"127.0.0.1", false, true},
		{"::1", false, true},
		{"::ffff:127.0.0.1", false, true},
		{"169.254.169.254", false, false},
		{"fe80::1%eth0", false, false},
		{"0.0.0.0", false, false},
		{"::", false, false},
		{"224.0.0.1", false, false},
		{"100.100.100.200", false, false},
		{"64:ff9b::a9fe:a9fe", false, false},
	} {
		a := netip.MustParseAddr(tc.addr)
		if err := checkAddress(a, false); (err == nil) != tc.remote {
			t.Errorf("%s: %v", a, err)
		}
		if err := checkAddress(a, true); (err == nil) != tc.local {
			t.Errorf("%s, local registry: %v", a, err)
		}
	}
}
