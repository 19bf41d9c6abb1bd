package main

import (
	"context"
	"encoding/json"
	"time"
)

// service is what a command asks for, of a root that this process owns (local.go) or of the process that owns it (remote.go).
type service interface {
	Pull(ctx context.Context, req pullRequest, progress func(progressEvent)) (*pulledImage, error)
	Images(ctx context.Context) ([]imageInfo, error)
	Remove(ctx context.Context, ref string) error
	GC(ctx context.Context) (reclaimed, error)
	Check(ctx context.Context) ([]fault, error)
}

// pullRequest is one pull. It names no path: the process that owns the root opens nothing that a client names.
type pullRequest struct {
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"`
	Offline  bool   `json:"offline,omitempty"`
	Refresh  bool   `json:"refresh,omitempty"`
	NoRootfs bool   `json:"noRootfs,omitempty"`
	NoSync   bool   `json:"noSync,omitempty"`
	Plain    bool   `json:"plainHTTP,omitempty"`
	// HostsDir is only for a root of this process.
	HostsDir string `json:"-"`
}

// pulledImage is what `pull --json` prints, so its names are a contract.
type pulledImage struct {
	Ref      string          `json:"ref"`
	Digest   string          `json:"digest"`
	Manifest string          `json:"manifest"`
	Rootfs   string          `json:"rootfs,omitempty"`
	Config   json.RawMessage `json:"config"`
	Cached   bool            `json:"cached"`
}

// imageInfo is one line of `images`, and one element of `images --json`.
type imageInfo struct {
	Ref      string    `json:"ref"`
	Digest   string    `json:"digest"`
	Manifest string    `json:"manifest,omitempty"`
	Platform string    `json:"platform,omitempty"`
	Rootfs   string    `json:"rootfs,omitempty"`
	Size     int64     `json:"size"` // bytes of its blobs
	Untagged bool      `json:"untagged,omitempty"`
	Created  time.Time `json:"created"`
}

// reclaimed is what a gc took away.
type reclaimed struct {
	Images, Blobs, Ingests, Layers, Rootfs, Snapshots int
	Bytes                                             int64
}

// fault is something that check found.
type fault struct {
	Message string `json:"message"`
}

// progressEvent is how far the download of one blob is.
type progressEvent struct {
	Digest string `json:"digest"`
	Offset int64  `json:"offset"`
	Total  int64  `json:"total"`
	Done   bool   `json:"done,omitempty"`
	Cached bool   `json:"cached,omitempty"`
}
