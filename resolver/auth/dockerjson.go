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

// parseDockerConfig parses a config.json. As in Docker, an empty file has no entries, and whatever
// follows the first JSON value is ignored. A byte order mark is skipped. Line breaks inside of
// strings are skipped as well, because scripts copy the output of the program base64, which breaks
// lines after 76 characters.
func parseDockerConfig(data []byte) (*dockerConfig, error) {
	var c dockerConfig
	data = withoutMark(data)
	err := json.NewDecoder(bytes.NewReader(data)).Decode(&c)
	if err != nil && !errors.Is(err, io.EOF) {
		c = dockerConfig{}
		err = json.NewDecoder(bytes.NewReader(joinStrings(data))).Decode(&c)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		// The decoder's error may quote the file.
		return nil, fmt.Errorf("not the JSON of a Docker configuration: %w", errdefs.ErrFailedPrecondition)
	}
	return &c, nil
}

// withoutMark removes the byte order mark with which some editors and shells on Windows begin a
// file, and converts UTF-16 to UTF-8.
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

// joinStrings removes line breaks inside of JSON strings, where JSON does not allow them.
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

// decode decodes one entry. As in Docker, the explicit members take precedence over the encoded
// one. White space around and inside of the base64 text is ignored, and so are line breaks that
// were encoded after the password.
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
