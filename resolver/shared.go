package resolver

import (
	"github.com/tank-snapshotter/tank/resolver/internal/download"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// Connections keeps open connections for the next request, of another resolver too if it is shared:
// a pull after a pull needs no handshake. Close closes those that are idle. The zero value has
// none.
type Connections = registry.Connections

// TokenCache keeps access tokens until they expire. It may be shared by any number of resolvers.
type TokenCache = registry.TokenCache

// NewTokenCache makes an empty cache.
func NewTokenCache() *TokenCache { return registry.NewTokenCache() }

// InFlight keeps concurrent fetches into one store from downloading the same blob twice.
type InFlight = download.InFlight

// NewInFlight makes an empty registry of downloads.
func NewInFlight() *InFlight { return download.NewInFlight() }
