package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf16"

	"github.com/containerd/errdefs"
)

// parseDockerConfig reads a config.json. As in Docker, an empty one is one without entries, and what follows the first
// JSON value is not looked at. A byte order mark is skipped, and line ends inside of strings too: scripts put the
// output of base64 there, which has them after 76 characters.
func parseDockerConfig(data []byte) (*dockerConfig, error) {
	var c dockerConfig
	data = withoutMark(data)
	err := json.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil && !errors.Is(err, io.EOF) {
		c = dockerConfig{}
		err = json.NewDecoder(bytes.NewReader(joinStrings(data))).Decode(&c)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		// The decoder's words may quote the file.
		return nil, fmt.Errorf("not the JSON of a Docker configuration: %w", errdefs.ErrFailedPrecondition)
	}
	return &c, nil
}

// withoutMark removes the byte order mark that editors and shells on Windows begin a file with, and turns UTF-16 into
// UTF-8.
func withoutMark(data []byte) []byte {
	if rest, ok := bytes.CutPrefix(data, []byte("\xef\xbb\xbf")); ok {
		return rest
	}
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return data
	}
	units := make([]uint16, 0, len(data)/2)
	for data = data[2:]; len(data) >= 2; data = data[2:] {
		units = append(units, order.Uint16(data))
	}
	return []byte(string(utf16.Decode(units)))
}

// joinStrings removes line ends inside of JSON strings, where they are not allowed.
func joinStrings(data []byte) []byte {
	joined := make([]byte, 0, len(data))
	var inside, escaped bool
	for _, b := range data {
		if inside && (b == '\n' || b == '\r') {
			continue
		}
		if b == '"' && !escaped {
			inside = !inside
		}
		escaped = inside && b == '\\' && !escaped
		joined = append(joined, b)
	}
	return joined
}

// decode reads one entry. The explicit members win over the encoded one, as in Docker. Spaces and line ends around and
// inside of base64 are skipped, also those that were encoded behind the password.
func (a dockerAuth) decode() (Credential, error) {
	c := Credential{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
	encoded := strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return -1
		case r == '-':
			return '+'
		case r == '_':
			return '/'
		}
		return r
	}, a.Auth)
	if encoded == "" || c.Username != "" {
		return c, nil
	}
	hasToken := c.IdentityToken != "" || c.RegistryToken != ""
	data, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(encoded, "="))
	if err != nil {
		if hasToken {
			return c, nil
		}
		return Credential{}, fmt.Errorf("auth is not base64: %w", errdefs.ErrFailedPrecondition)
	}
	user, password, ok := strings.Cut(string(data), ":")
	if !ok {
		if hasToken {
			return c, nil
		}
		return Credential{}, fmt.Errorf("auth is not username:password: %w", errdefs.ErrFailedPrecondition)
	}
	c.Username, c.Password = user, strings.TrimRight(password, "\x00\r\n")
	return c, nil
}
