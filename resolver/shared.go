package resolver

import (
	"github.com/tank-snapshotter/tank/resolver/internal/download"
	"github.com/tank-snapshotter/tank/resolver/internal/registry"
)

// Connections keeps idle connections for later requests, also of other resolvers that share it. Its
// method Close closes the idle ones. The zero value is ready to use.
type Connections = registry.Connections

// TokenCache caches access tokens until they expire. Any number of resolvers may share it.
type TokenCache = registry.TokenCache

// NewTokenCache returns an empty cache.
func NewTokenCache() *TokenCache { return registry.NewTokenCache() }

// InFlight keeps concurrent fetches into one store from downloading the same blob at the same time.
// Its method Len returns the number of blobs that are being downloaded.
type InFlight = download.InFlight

// NewInFlight returns an InFlight without downloads.
func NewInFlight() *InFlight { return download.NewInFlight() }
