package unpack

import (
	"github.com/tank-snapshotter/tank/internal/idmap"
	"github.com/tank-snapshotter/tank/snapshot/beneath"
	"github.com/tank-snapshotter/tank/snapshot/entry"
	"github.com/tank-snapshotter/tank/snapshot/unpack/decompress"
	"github.com/tank-snapshotter/tank/snapshot/unpack/stream"
	"github.com/tank-snapshotter/tank/snapshot/unpack/tarlayer"
)

// Entry is entry.Entry.
type Entry = entry.Entry

// Type is entry.Type.
type Type = entry.Type

// Names of other packages.
const (
	Dir      = entry.Dir
	File     = entry.File
	Symlink  = entry.Symlink
	Fifo     = entry.Fifo
	Char     = entry.Char
	Block    = entry.Block
	Whiteout = entry.Whiteout
	Link     = entry.Link
)

// Names of other packages.
const (
	TrustedOverlay = entry.TrustedOverlay
	UserOverlay    = entry.UserOverlay
	OpaqueAttr     = entry.OpaqueAttr
	OriginAttr     = entry.OriginAttr
)

// Names of other packages.
var (
	Reserved     = entry.Reserved
	ComparePaths = entry.ComparePaths
	TypeNamed    = entry.TypeNamed
)

// Marks are beneath.Marks.
type Marks = beneath.Marks

// Names of other packages.
var (
	RemoveAll    = beneath.RemoveAll
	SetAttrs     = beneath.SetAttrs
	SetAttrsOf   = beneath.SetAttrsOf
	Chmod        = beneath.Chmod
	IsWhiteout   = beneath.IsWhiteout
	MakeWhiteout = beneath.MakeWhiteout
	Mark         = beneath.Mark
	IsOpaque     = beneath.IsOpaque
	OpenDirBelow = beneath.OpenDirBelow
)

// IDMap is idmap.Map.
type IDMap = idmap.Map

// Names of other packages.
var (
	ParseIDMap    = idmap.Parse
	ProcessIDMaps = idmap.Process
)

// ErrInvalidLayer is stream.ErrInvalidLayer.
var ErrInvalidLayer = stream.ErrInvalidLayer

// Names of other packages.
var (
	Supported        = decompress.Supported
	Decompress       = decompress.NewReader
	DecompressWithin = decompress.NewReaderWithin
)

// Limits is tarlayer.Limits.
type Limits = tarlayer.Limits

// Step is tarlayer.Step.
type Step = tarlayer.Step
