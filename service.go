package tank

import (
	"context"
	"encoding/json"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/tank-snapshotter/tank/resolver/auth"
)

// Service is what a root does for programs and users. [*Tank] is the service of a root that this process
// owns; package [github.com/tank-snapshotter/tank/plugin/admin] has the service of a root that another
// process owns.
//
// Its methods may be called by several goroutines at once. The names in the JSON of its types are a contract.
type Service interface {
	// Root returns the absolute path of the root.
	Root() string
	// Pull fetches an image and, unless opts forbid it, assembles its root filesystem. A tag is always resolved
	// again, unless opts are offline. opts may be nil.
	//
	// Classes of its errors: errdefs.ErrInvalidArgument for the reference and the options;
	// errdefs.ErrNotFound for an image that does not exist, or a [*NotCached]; errdefs.ErrUnauthenticated
	// and errdefs.ErrPermissionDenied from a registry; errdefs.ErrUnavailable for the network;
	// errdefs.ErrDataLoss and errdefs.ErrFailedPrecondition for content that fails verification or is not
	// acceptable.
	Pull(ctx context.Context, ref string, opts *PullOptions) (*Image, error)
	// Images lists the pulled platforms of all images, sorted by reference.
	Images(ctx context.Context) ([]ImageInfo, error)
	// Inspect returns all that is recorded of an image, or errdefs.ErrNotFound if nothing is recorded. A
	// reference with a digest also finds the images of other references of its repository with that digest.
	Inspect(ctx context.Context, ref string) (*ImageDetails, error)
	// Remove removes the record of an image and, unless that pull runs, what an unfinished pull of it has
	// downloaded. GC frees the space. Remove returns errdefs.ErrNotFound if there is neither. A reference with
	// a digest removes only what was pulled by that reference, and never a tag; if other references have
	// the image, the error names them.
	Remove(ctx context.Context, ref string) error
	// GC deletes the images that their tags have left, and then all files that nothing holds.
	GC(ctx context.Context) (Reclaimed, error)
	// Check compares everything on the disk with its records and seals, and calls report for each fault.
	// Its own error means that the check is not complete.
	Check(ctx context.Context, report func(Fault)) error
	// Repair mends what Check finds, and deletes what no record names. Containers may run meanwhile: what they
	// use is not changed, and later ones use what was mended. It may be canceled, or its process may end, at
	// any time. opts may be nil. Its error means that the repair is not complete; a fault that it could not
	// mend is no error.
	Repair(ctx context.Context, opts *RepairOptions) (*RepairResult, error)
	// Holders lists what each holder keeps, sorted by name. Holders of snapshots are not listed: what they
	// keep counts for the holders of the snapshots.
	Holders(ctx context.Context) ([]HolderInfo, error)
	// Release gives up everything that a holder keeps, deletes what no other holder keeps, and returns what
	// the holder kept. The reference of an image or a pull may have any form that Pull accepts. opts may be
	// nil.
	//
	// It returns errdefs.ErrNotFound if there is no such holder, errdefs.ErrInvalidArgument for the holder
	// of a snapshot, and errdefs.ErrFailedPrecondition for a pull that runs and, unless forced, for a
	// containerd that is connected or whose snapshots are mounted.
	Release(ctx context.Context, holder string, opts *ReleaseOptions) (HolderInfo, error)
	// Close ends the use of the service. A process that owns the root gives it up.
	Close() error
}

var _ Service = (*Tank)(nil)

// PullOptions of Service.Pull. nil means the zero value.
type PullOptions struct {
	// Platform is OS/ARCH[/VARIANT]. "": this machine's.
	Platform string `json:"platform,omitempty"`
	// Offline answers from what the root has and opens no connection. The error is a [*NotCached] if
	// something is missing.
	Offline bool `json:"offline,omitempty"`
	// Refresh trusts nothing that the root has: each blob is downloaded again, and layers and rootfs are
	// compared with their seals. An image that the root has stays until the new one is complete, and an
	// intact rootfs is kept.
	Refresh bool `json:"refresh,omitempty"`
	// NoRootfs fetches and unpacks layers only, so that containerd finds the image ready.
	NoRootfs bool `json:"noRootfs,omitempty"`
	// NoSync returns before the result is on the disk. After a power cut, what is damaged is detected
	// before it is used.
	NoSync bool `json:"noSync,omitempty"`
	// PlainHTTP speaks HTTP with the registry. false: only with localhost.
	PlainHTTP bool `json:"plainHTTP,omitempty"`

	// HostsDir is a directory with a <registry>/hosts.toml for some registries. The program that calls Pull
	// reads it, also when another process owns the root. "", or a directory that does not exist: no such
	// file is read; another process that owns the root then reads its own directory.
	HostsDir string `json:"-"`
	// HostsFiles are used instead of HostsDir: the content of its files by their paths below it. A
	// hosts.toml among them may name only certificates in its own directory. nil: HostsDir counts.
	HostsFiles map[string][]byte `json:"hostsFiles,omitempty"`
	// Credentials returns the credential for a registry that asks for one. nil: all access is anonymous.
	Credentials Credentials `json:"-"`
	// Progress is called often, and by several goroutines at once. nil: nothing is reported.
	Progress func(Event) `json:"-"`
	// Log gets the lines "using cached REF (DIGEST)" and "pulling REF", and warnings, which begin with
	// WarningPrefix. nil: they are dropped.
	Log func(line string) `json:"-"`
}

// WarningPrefix begins those lines of PullOptions.Log that are warnings.
const WarningPrefix = "warning: "

// Credential identifies the user to a registry. The zero value is anonymous.
type Credential = auth.Credential

// Credentials returns the credential for a registry host.
type Credentials = auth.Source

// Event reports how far the download of one blob is.
type Event struct {
	Digest digest.Digest `json:"digest,omitempty"`
	Offset int64         `json:"offset,omitempty"` // bytes in the root, those of earlier downloads included
	Total  int64         `json:"total,omitempty"`  // bytes of the blob
	Done   bool          `json:"done,omitempty"`   // the blob is complete and verified
	Cached bool          `json:"cached,omitempty"` // the root had the blob before
}

// Image is one platform of a pulled image.
type Image struct {
	Ref      string          `json:"ref"`              // normalized
	Digest   digest.Digest   `json:"digest"`           // that the reference resolved to
	Manifest digest.Digest   `json:"manifest"`         // of the platform
	Rootfs   string          `json:"rootfs,omitempty"` // absolute path; "" if none was assembled
	Config   json.RawMessage `json:"config"`           // the image's config, unchanged
	Cached   bool            `json:"cached"`           // no blob was fetched
}

// ImageInfo is one pulled platform of an image.
type ImageInfo struct {
	Ref      string        `json:"ref"` // normalized, or REF@DIGEST for an image that its tag has left
	Digest   digest.Digest `json:"digest"`
	Manifest digest.Digest `json:"manifest,omitempty"`
	Platform string        `json:"platform,omitempty"`
	Rootfs   string        `json:"rootfs,omitempty"`   // absolute path; "" if none was assembled
	Size     int64         `json:"size"`               // bytes of the blobs
	Untagged bool          `json:"untagged,omitempty"` // its tag has left it: GC deletes it
	Created  time.Time     `json:"created"`
}

// ImageDetails is all that is recorded of an image.
type ImageDetails struct {
	Ref       string             `json:"ref"`
	Target    ocispec.Descriptor `json:"target"` // that the reference resolved to
	Untagged  bool               `json:"untagged,omitempty"`
	Created   time.Time          `json:"created"`
	Updated   time.Time          `json:"updated"`
	Platforms []PlatformDetails  `json:"platforms"` // the latest pulled first
}

// PlatformDetails is one pulled platform of an image.
type PlatformDetails struct {
	Platform string               `json:"platform"`
	Manifest ocispec.Descriptor   `json:"manifest"`
	Layers   []ocispec.Descriptor `json:"layers"`  // lowest first
	DiffIDs  []digest.Digest      `json:"diffIDs"` // of the layers
	Rootfs   string               `json:"rootfs,omitempty"`
	Config   json.RawMessage      `json:"config"`
}

// Reclaimed is what a collection deleted.
type Reclaimed struct {
	Images    int   `json:"images"`
	Blobs     int   `json:"blobs"`
	Ingests   int   `json:"ingests"`
	Layers    int   `json:"layers"` // and fix-ups
	Rootfs    int   `json:"rootfs"`
	Snapshots int   `json:"snapshots"`
	Bytes     int64 `json:"bytes"` // freed on the disk
	// Kept lists files that could not be deleted because they are immutable or append-only (chattr); "" if
	// there are none. No record names them, and the next GC tries again
	// (docs/adr/0017-pools-and-full-disks.md).
	Kept string `json:"kept,omitempty"`
	// Unfinished lists the unfinished pulls. What they have downloaded is kept for a day, so that they can
	// go on, unless the disk is almost full.
	Unfinished []Unfinished `json:"unfinished,omitempty"`
}

// Unfinished is a holder that keeps an unfinished pull: "pull/REF", or a containerd's.
type Unfinished struct {
	Holder string `json:"holder"`
	// Bytes would be freed by a release of the holder. For a containerd, they are the bytes of its
	// unfinished downloads.
	Bytes   int64 `json:"bytes"`
	Running bool  `json:"running,omitempty"` // false for a containerd, where it is not known
}

// Fault is what Check found to be wrong. It is an error of class errdefs.ErrDataLoss.
type Fault struct {
	What    string `json:"what"` // image, blob, layer, rootfs, snapshot or metadata
	Name    string `json:"name"` // of the image, blob and so on
	Message string `json:"message"`
	Damage  string `json:"damage,omitempty"` // records, missing, different or document
	Mend    string `json:"mend,omitempty"`   // records, download, unpack or assemble; "": nothing mends it
	Advice  string `json:"advice,omitempty"` // a sentence about what would mend it
	Reason  string `json:"reason,omitempty"` // from Repair: why it was not mended
	// Err is the fault as a metadata.Fault, with its repair. nil if another process found it.
	Err error `json:"-"`
}

// RepairOptions of Service.Repair. nil means the zero value. The fields are those of PullOptions.
type RepairOptions struct {
	// Offline mends only from what is here. false: blobs are downloaded from the registries of references in
	// the root.
	Offline     bool              `json:"offline,omitempty"`
	PlainHTTP   bool              `json:"plainHTTP,omitempty"`
	HostsDir    string            `json:"-"`
	HostsFiles  map[string][]byte `json:"hostsFiles,omitempty"`
	Credentials Credentials       `json:"-"`
	Progress    func(Event)       `json:"-"`
	Log         func(line string) `json:"-"`
}

// RepairResult is what Repair found.
type RepairResult struct {
	Mended  []Fault `json:"mended"`  // one for each thing that was damaged
	Remains []Fault `json:"remains"` // what is still damaged
}

// HolderInfo is a name that keeps things in the root, and what it keeps.
type HolderInfo struct {
	Holder    string `json:"holder"` // "containerd", "containerd/ID", "image/REF", "pull/REF" or "rebuilt"
	Blobs     int    `json:"blobs"`
	Ingests   int    `json:"ingests"` // unfinished downloads
	Layers    int    `json:"layers"`  // and fix-ups, also those below the holder's snapshots
	Rootfs    int    `json:"rootfs"`
	Snapshots int    `json:"snapshots"`
	Bytes     int64  `json:"bytes"`             // on the disk, measured as du does
	Exclusive int64  `json:"alone"`             // of Bytes, what no other holder keeps: a release frees it
	Freed     int64  `json:"freed,omitempty"`   // bytes that Release freed on the disk; 0 from Holders
	Running   bool   `json:"running,omitempty"` // a pull that runs
	// Database, Seen and Connected describe the containerd that acts for the holder: the path of its
	// database, when it was last connected, and whether it is connected. They are zero for other holders
	// and if nothing is known.
	Database  string    `json:"database,omitempty"`
	Seen      time.Time `json:"seen,omitzero"`
	Connected bool      `json:"connected,omitempty"`
}

// ReleaseOptions of Service.Release. nil means the zero value.
type ReleaseOptions struct {
	// Force releases the holder of a containerd although the containerd is connected or snapshots are mounted.
	Force bool `json:"force,omitempty"`
	// To is the holder of another containerd, which gets everything that the released holder keeps: for a
	// containerd whose database was moved or restored. "": everything is given up.
	To string `json:"to,omitempty"`
}
